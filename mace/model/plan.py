"""The plan of a model: everything that determines its architecture and its constants, but nothing learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from mace.conditions import Condition
from mace.properties import PROPERTIES, predicted_with
from mace.structures.configuration import DEFAULT_HEAD

MAX_L = 4
"""Highest degree of harmonics and features; coupling coefficients are verified up to this degree."""


OUTPUTS = {
    "MACE": predicted_with("energy"),
    "ScaleShiftMACE": predicted_with("energy"),
    "AtomicDipolesMACE": predicted_with("dipole"),
    "EnergyDipolesMACE": predicted_with("energy", "dipole"),
}
"""Properties from `mace.properties.PROPERTIES` that each kind of model predicts, by its command-line name."""

DEGREES_READ = {
    model: {len(PROPERTIES[name].shape) for name in outputs if not PROPERTIES[name].derivative_of}
    for model, outputs in OUTPUTS.items()
}
"""Degrees of the features that the readouts of each kind of model read: 0 for scalars, 1 for vectors."""

LARGEST_CUTOFF = 100.0
"""Largest cutoff, chosen to be generous in any unit of length: beyond it, all atoms would be neighbors."""

MOST_LAYERS, MOST_HEADS, MOST_CONDITIONS = 100, 1000, 100
LARGEST_WIDTH = 100_000
"""Largest number of channels, and largest width of a hidden layer."""

Width = Annotated[int, Field(ge=1, le=LARGEST_WIDTH)]
Degree = Annotated[int, Field(ge=0, le=MAX_L)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
"""An energy or a factor; the bounds allow all-electron energies of the heaviest atoms in any unit, but not NaN."""


LEFT_OUT_WHERE_ABSENT = ("conditions", "condition_readout", "heads")
"""Fields that are left out of a plan if empty, so that it is written as it was before these fields existed."""


class InteractionPlan(BaseModel):
    """The kind of interaction used by a layer.

    Attributes:
        residual: Whether to add a linear map of the layer's input to its output, one per element if messages are
            ``linear``. Without it, that map acts on the messages instead, and an isolated atom has exactly its
            reference energy.
        normalization: Whether to divide messages by the mean number of neighbors or by a learned density.
        messages: ``linear``: sums over neighbors are mixed linearly. ``attention``: the same, but radial weights also
            depend on the features of both atoms. ``nonlinear``: radial weights depend on both elements, and the sums,
            added to a map of the atom's own features, pass through gates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    residual: bool
    normalization: Literal["count", "density"] = "count"
    messages: Literal["linear", "attention", "nonlinear"] = "linear"

    @model_validator(mode="after")
    def _consistent(self) -> InteractionPlan:
        if self.messages == "attention" and not (self.residual and self.normalization == "count"):
            raise ValueError("an interaction with attention has a residual and divides by the number of neighbors")
        if self.messages == "nonlinear" and not (self.residual and self.normalization == "density"):
            raise ValueError("a non-linear interaction has a residual and divides by a density")
        return self

    @property
    def is_directed(self) -> bool:
        """Whether the radial weights of an edge differ from those of the reverse edge."""
        return self.messages != "linear"


class HeadPlan(BaseModel):
    """Constants of a head; it also has its own readout weights.

    Attributes:
        name: Name of the head.
        reference_energies: Energy of the isolated atom of each element in eV.
        scale: Factor on the learned atomic energy, eV.
        shift: Constant added to the scaled energy of every atom, eV.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=1000)
    reference_energies: tuple[Number, ...] = Field(max_length=118)
    scale: Number = 1.0
    shift: Number = 0.0


class ModelPlan(BaseModel):
    """Everything needed to build a model with random weights; stored in the model file.

    Attributes:
        model: Kind of model, as named on the command line.
        r_max: Cutoff in Angstrom.
        radial_type: Kind of radial basis.
        num_radial_basis: Number of radial functions.
        num_cutoff_basis: Exponent of the cutoff polynomial.
        distance_transform: Transformation of distances before the radial basis.
        cutoff_after_network: Multiply the radial weights, instead of the radial basis, by the cutoff polynomial.
        pair_repulsion: Add the screened nuclear repulsion of Ziegler, Biersack and Littmark.
        l_max: Highest degree of the harmonics.
        n_channels: Number of channels of every degree.
        hidden_l: Degrees passed from layer to layer, increasing from 0.
        message_channels: Channels of the features that neighbors send, per layer; None for ``n_channels`` in all.
        message_l: Degrees of the features that neighbors send after the first layer, from ``hidden_l``; None for all.
        interactions: Kind of interaction of each layer.
        product_of_all_elements: Share the weights of the symmetric contraction among all elements.
        correlation: Correlation order of the symmetric contraction in each layer, the number of its factors.
        radial_mlp: Widths of the hidden layers of the radial network.
        readout_channels: Width of the hidden layer of the last energy readout; 0 if no energy is predicted.
        readout_biases: Give the last energy readout a second hidden layer, with biases there and in its output.
        last_readout_only: Read energies from the last layer only.
        readout_vectors: Width of the hidden layer of the last dipole readout; 0 for no such readout, for example if no
            dipole is predicted.
        gate: Activation of the last readout.
        avg_num_neighbors: Mean number of neighbors, by which messages are divided.
        atomic_numbers: The elements, in increasing order.
        reference_energies: Energy of the isolated atom of each element in eV; empty if no energy is predicted.
        scale: Factor on the learned atomic energy, eV.
        shift: Constant added to the scaled energy of every atom, eV.
        dipole_scale: Factor on the learned atomic dipoles, e*Angstrom.
        conditions: What energies depend on besides the atoms, such as a total charge.
        condition_readout: Add an energy read from the initial channels of each atom, of its element and conditions.
        heads: Heads of a model that has several, for levels of theory that share everything but the readouts; empty for
            a model with one. With several, each head has its own reference energies, scale and shift, and here
            ``reference_energies`` is empty, ``scale`` one and ``shift`` zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: Literal["MACE", "ScaleShiftMACE", "AtomicDipolesMACE", "EnergyDipolesMACE"]
    r_max: float = Field(gt=0, le=LARGEST_CUTOFF)
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = "bessel"
    num_radial_basis: int = Field(default=8, ge=1, le=1000)
    num_cutoff_basis: int = Field(default=5, ge=2, le=100)
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    cutoff_after_network: bool = False
    pair_repulsion: bool = False
    l_max: Degree = 3
    n_channels: Width
    hidden_l: tuple[Degree, ...] = Field(max_length=MAX_L + 1)
    interactions: tuple[InteractionPlan, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    message_channels: tuple[Width, ...] | None = Field(default=None, max_length=MOST_LAYERS)
    message_l: tuple[Degree, ...] | None = Field(default=None, max_length=MAX_L + 1)
    product_of_all_elements: bool = False
    correlation: tuple[int, ...] = Field(max_length=MOST_LAYERS)
    radial_mlp: tuple[Width, ...] = Field(default=(64, 64, 64), max_length=MOST_LAYERS)
    readout_channels: int = Field(default=16, ge=0, le=LARGEST_WIDTH)
    readout_vectors: int = Field(default=0, ge=0, le=LARGEST_WIDTH)
    readout_biases: bool = False
    last_readout_only: bool = False
    gate: Literal["silu", "tanh", "abs", "None"] = "silu"
    avg_num_neighbors: float = Field(gt=0, le=1e6)
    atomic_numbers: tuple[Annotated[int, Field(ge=1, le=118)], ...] = Field(min_length=1, max_length=118)
    reference_energies: tuple[Number, ...] = Field(max_length=118)
    scale: Number = 1.0
    shift: Number = 0.0
    dipole_scale: Number = 1.0
    conditions: tuple[Condition, ...] = Field(default=(), max_length=MOST_CONDITIONS)
    condition_readout: bool = False
    heads: tuple[HeadPlan, ...] = Field(default=(), max_length=MOST_HEADS)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        return {name: value for name, value in written.items() if value or name not in LEFT_OUT_WHERE_ABSENT}

    @model_validator(mode="after")
    def _consistent(self) -> ModelPlan:
        if self.hidden_l[:1] != (0,) or list(self.hidden_l) != sorted(set(self.hidden_l)):
            raise ValueError("hidden degrees must rise from 0")
        if self.hidden_l[-1] > self.l_max:
            raise ValueError(f"hidden degree {self.hidden_l[-1]} exceeds l_max = {self.l_max}")
        if len(self.correlation) != len(self.interactions):
            raise ValueError("one correlation order per layer is needed")
        if not all(1 <= order <= 4 for order in self.correlation):
            raise ValueError("correlation orders lie between 1 and 4")
        if any(len(head.reference_energies) != self.n_reference_energies for head in self.every_head):
            raise ValueError("one reference energy per element is needed, none where no energy is predicted")
        reads_numbers, reads_vectors = 0 in DEGREES_READ[self.model], 1 in DEGREES_READ[self.model]
        if reads_vectors and 1 not in self.hidden_l:
            raise ValueError("a dipole needs hidden features of degree 1")
        if self.readout_vectors and not reads_vectors or self.readout_channels and not reads_numbers:
            raise ValueError("the last readout has widths for what the model does not predict")
        if reads_numbers and not self.readout_channels:
            raise ValueError("the last readout of energies needs a width")
        if self.last_readout_only and self.n_layers == 1:
            raise ValueError("a last readout only needs several layers: in mace-torch one layer would have none")
        if (self.last_readout_only or self.readout_biases) and reads_vectors:
            raise ValueError("models of dipoles have a readout of every layer, without biases")
        if list(self.atomic_numbers) != sorted(set(self.atomic_numbers)):
            raise ValueError("atomic numbers must rise")
        self._check_messages()
        self._check_conditions()
        self._check_heads()
        return self

    def _check_heads(self) -> None:
        names = [head.name for head in self.heads]
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("several heads have different names, and one head is none of several")
        if names and "energy" not in self.outputs:
            raise ValueError("heads are of energies")
        if names and (self.reference_energies, self.scale, self.shift) != ((), 1.0, 0.0):
            raise ValueError("reference energies, scale and shift are those of the heads where there are several")

    def _check_messages(self) -> None:
        if not self.radial_mlp and self.is_directed:
            raise ValueError("a radial network that depends on atoms has a hidden layer")
        channels, degrees = self.message_channels, self.message_l
        if channels is not None and (len(channels) != self.n_layers or min(channels) < 1):
            raise ValueError("one number of channels of messages per layer is needed")
        if degrees is not None and (not degrees or [l for l in self.hidden_l if l in degrees] != list(degrees)):
            raise ValueError("the degrees of messages are some of the hidden degrees")

    def _check_conditions(self) -> None:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError("every condition has a name of its own")
        if names and "dipole" in self.outputs:
            raise ValueError("models of dipoles have no conditions")
        if self.condition_readout and not names:
            raise ValueError("there are no conditions whose energy could be read")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Properties that the model predicts, from `mace.properties.PROPERTIES`."""
        return OUTPUTS[self.model]

    @property
    def is_directed(self) -> bool:
        """Whether in any layer the radial weights of an edge differ from those of the reverse edge."""
        return any(kind.is_directed for kind in self.interactions)

    @property
    def n_layers(self) -> int:
        """Number of interactions."""
        return len(self.interactions)

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return len(self.atomic_numbers)

    @property
    def n_reference_energies(self) -> int:
        """Number of reference energies per head."""
        return len(self.atomic_numbers) if "energy" in self.outputs else 0

    @property
    def every_head(self) -> tuple[HeadPlan, ...]:
        """The heads; a single one named `DEFAULT_HEAD` if the model does not have several."""
        one = HeadPlan(
            name=DEFAULT_HEAD, reference_energies=self.reference_energies, scale=self.scale, shift=self.shift
        )
        return self.heads or (one,)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the heads, in the order of their weights."""
        return tuple(head.name for head in self.every_head)

    def energies_of_heads(self) -> list[dict[int, float]]:
        """Return the reference energies of every head in eV by atomic number; zeros if no energy is predicted."""
        none = (0.0,) * self.n_elements
        return [
            dict(zip(self.atomic_numbers, head.reference_energies or none, strict=True)) for head in self.every_head
        ]

    @property
    def n_readout_heads(self) -> int:
        """Number of readouts per layer: one per head, except that the heads of dipole models share theirs."""
        return 1 if "dipole" in self.outputs else max(1, len(self.heads))

    def of_head(self, head: int) -> ModelPlan:
        """Return the plan of a single-head model with the given head of several."""
        if not self.heads:
            return self
        taken = self.heads[head]
        own = {"reference_energies": taken.reference_energies, "scale": taken.scale, "shift": taken.shift}
        return self.model_copy(update={"heads": (), **own})

    def l_in(self, layer: int) -> tuple[int, ...]:
        """Return the input degrees of a layer: element scalars for the first layer, then the hidden degrees."""
        return (0,) if layer == 0 else self.hidden_l

    def l_of_messages(self, layer: int) -> tuple[int, ...]:
        """Return the degrees of the features that neighbors send in a layer."""
        return self.l_in(layer) if layer == 0 or self.message_l is None else self.message_l

    def channels_of_messages(self, layer: int) -> int:
        """Return the number of channels of the features that neighbors send in a layer."""
        return self.n_channels if self.message_channels is None else self.message_channels[layer]

    def l_out(self, layer: int) -> tuple[int, ...]:
        """Return the output degrees of a layer; for the last, only scalars, and vectors if dipoles are predicted."""
        last = (0, 1) if 1 in DEGREES_READ[self.model] else (0,)
        return last if layer == self.n_layers - 1 else self.hidden_l


def first_problem(error: ValidationError, start: str = "plan") -> str:
    """Describe the first validation error of a plan, as ``'plan.r_max' is not valid (...)``.

    Args:
        error: The validation error.
        start: What to call the plan.
    """
    first = error.errors(include_url=False)[0]
    place, value = ".".join(str(part)[:40] for part in (start, *first["loc"][:5])), first["input"]
    number = isinstance(value, float) or isinstance(value, int) and abs(value) < 1e15
    return f"{place!r} is not valid ({first['msg'][:200]}{f', not {value:.6g}' if number else ''})"
