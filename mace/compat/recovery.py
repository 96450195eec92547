"""From a model of mace-torch to a plan: every number is read from shapes, buffers and attributes of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mace.compat.modules import Module, Original, number
from mace.compat.pickles import Name, Record
from mace.errors import UserError
from mace.model.plan import MAX_L, WITH_DIPOLE, WITH_ENERGY, InteractionPlan, ModelPlan
from mace.units import DEBYE_OF_MACE_TORCH

KINDS = ("MACE", "ScaleShiftMACE", *WITH_DIPOLE)
_OTHER_KINDS = {
    "AtomicDielectricMACE": "models of polarizabilities do not exist here",
    "BOTNet": "BOTNet models do not exist here",
    "ScaleShiftBOTNet": "BOTNet models do not exist here",
    "PolarMACE": "models with long-range electrostatics do not exist here",
    "MACELES": "models with latent Ewald summation do not exist here",
    "LAMMPS_MACE": "this is a copy for LAMMPS; name the model it was made from",
}
_INTERACTIONS = {
    "RealAgnosticInteractionBlock": InteractionPlan(residual=False),
    "RealAgnosticResidualInteractionBlock": InteractionPlan(residual=True),
    "RealAgnosticDensityInteractionBlock": InteractionPlan(residual=False, normalization="density"),
    "RealAgnosticDensityResidualInteractionBlock": InteractionPlan(residual=True, normalization="density"),
}
_GATES = {"silu": "silu", "tanh": "tanh", "abs": "abs", "absolute": "abs"}
_RADIAL_TYPES = {"bessel_weights": "bessel", "gaussian_weights": "gaussian", "n": "chebyshev"}
# attributes of a model that change what it computes, with the value at which they do not
_HARMLESS = {"apply_cutoff": True, "use_so3": False, "use_agnostic_product": False, "use_last_readout_only": False}
_ENERGIES = "atomic_energies_fn.atomic_energies"
_USUAL_WIDTH = 16
"""Width of the hidden layer that a model of one layer does not have."""
MAX_ATOMIC_NUMBER = 118
SMALLEST_CUTOFF, LARGEST_CUTOFF = 0.1, 1000.0
_PRECISIONS = {np.dtype("<f4"): "float32", np.dtype("<f8"): "float64"}


class CannotConvert(Exception):
    """The file is sound, but its model has something that does not exist here; the message says what."""


@dataclass(frozen=True)
class Known:
    """What shapes alone do not tell, for checkpoints; None where it has to come from the file.

    Attributes:
        avg_num_neighbors: What messages are divided by.
        gate: Activation of the last readout.
        interactions: Kind of each layer.
        heads: Names of the heads.
    """

    avg_num_neighbors: float | None = None
    gate: str | None = None
    interactions: tuple[InteractionPlan, ...] | None = None
    heads: tuple[str, ...] | None = None


class Reader:
    """Looks things up in a file and says what is missing.

    Args:
        original: The file.
        known: What is known besides.
    """

    def __init__(self, original: Original, known: Known) -> None:
        self.original, self.known = original, known
        self.state = original.state
        self.tree = original.tree

    def array(self, name: str) -> np.ndarray:
        """Return a weight or buffer.

        Raises:
            CannotConvert: If the file has none of this name.
        """
        if name not in self.state:
            raise CannotConvert(f"it has no '{name}'")
        return self.state[name]

    def scalar(self, name: str) -> float:
        """Return a buffer of one value."""
        values = self.array(name)
        if values.size != 1:
            raise CannotConvert(f"'{name}' has {values.size} values instead of one")
        return float(values.reshape(-1)[0])

    def attribute(self, path: str, name: str) -> Any:
        """Return an attribute of a module, None if there is none."""
        module = self.module(path)
        return module.attributes.get(name) if module is not None else None

    def module(self, path: str) -> Module | None:
        """Return a module by its dotted path, None if there is none."""
        if self.tree is None:
            return None
        return self.tree.find(path) if path else self.tree

    def count(self, prefix: str) -> int:
        """Count the parts of a list of modules."""
        found = {name[len(prefix) :].partition(".")[0] for name in self.state if name.startswith(prefix)}
        if found != {str(i) for i in range(len(found))}:
            raise CannotConvert(f"the parts of '{prefix.rstrip('.')}' are not numbered in a row")
        return len(found)


def heads_of(reader: Reader) -> tuple[str, ...]:
    """Return the names of the heads, numbers where the file has no names."""
    n = 1 if dipole_kind(reader) == "AtomicDipolesMACE" else len(np.atleast_2d(reader.array(_ENERGIES)))
    names = reader.known.heads or (reader.tree.attributes.get("heads") if reader.tree is not None else None)
    if n == 1 and not names:
        return ("Default",)
    if not isinstance(names, (list, tuple)) or len(names) != n or not all(isinstance(name, str) for name in names):
        return tuple(str(i) for i in range(n))
    return tuple(names)


def choose_head(path: Path, heads: tuple[str, ...], head: str | None) -> int:
    """Return the index of the wanted head.

    Raises:
        UserError: If there are several and none is named, or there is none of this name.
    """
    if head is None and len(heads) == 1:
        return 0
    listed = ", ".join(heads)
    if head is None:
        raise UserError(
            f"{path}: the model has {len(heads)} heads ({listed}), and models here have one; choose one with "
            f"--head {heads[-1]} (head='{heads[-1]}' in Python)."
        )
    if head in heads:
        return heads.index(head)
    if len(heads) == 1 and head.lower() == "default":
        return 0
    raise UserError(f"{path}: the model has no head '{head}'; its heads are {listed}.")


def precision_of(state: Mapping[str, np.ndarray]) -> str:
    """Return the precision of the weights.

    Raises:
        CannotConvert: If it is neither float32 nor float64.
    """
    dtype = state["node_embedding.linear.weight"].dtype if "node_embedding.linear.weight" in state else None
    if dtype not in _PRECISIONS:
        raise CannotConvert(f"its weights are {dtype or 'missing'}, neither float32 nor float64")
    return _PRECISIONS[dtype]


def recover_plan(reader: Reader, head: int) -> ModelPlan:
    """Recover the plan of a model.

    Args:
        reader: The file.
        head: Which of its heads.

    Returns:
        The plan.

    Raises:
        CannotConvert: If something is missing or does not exist here.
    """
    kind = dipole_kind(reader)
    numbers = [int(z) for z in reader.array("atomic_numbers").reshape(-1)]
    if not all(1 <= z <= MAX_ATOMIC_NUMBER for z in numbers):
        raise CannotConvert("its atomic numbers are none")
    energies = _reference_energies(reader, kind, len(numbers))
    n_layers = reader.count("interactions.")
    if n_layers < 1:
        raise CannotConvert("it has no interactions")
    n_channels = _exact(reader.array("node_embedding.linear.weight").size, len(numbers), "node_embedding")
    hidden, l_max = _degrees(reader, 0), _l_max(reader)
    if n_layers == 1:
        hidden = (0,) if kind is None else (0, 1)
    interactions = _interactions(reader, n_layers, n_channels, len(numbers), l_max, hidden)
    scale, shift = _scale_shift(reader, head)
    readout = _last_readout(reader, n_layers, n_channels, len(energies), kind)
    word = kind or ("MACE" if not interactions[0].residual and shift == 0.0 else "ScaleShiftMACE")
    numbers_of_neighbors = _avg_num_neighbors(reader, n_layers, interactions)
    try:
        return ModelPlan.model_validate(
            {
                "model": word,
                "r_max": _cutoff(reader),
                "l_max": l_max,
                "n_channels": n_channels,
                "hidden_l": hidden,
                "interactions": interactions,
                "correlation": tuple(_correlation(reader, layer, l_max) for layer in range(n_layers)),
                "radial_mlp": _radial_mlp(reader),
                "avg_num_neighbors": numbers_of_neighbors,
                "atomic_numbers": tuple(numbers),
                "reference_energies": tuple(float(energy) for energy in energies[head]),
                "scale": scale,
                "shift": shift,
                "dipole_scale": 1.0 if kind is None else DEBYE_OF_MACE_TORCH,
                **readout,
                **_radial(reader),
            }
        )
    except ValidationError as error:
        raise CannotConvert(f"its plan is not possible here: {error.errors()[0]['msg']}") from error


def dipole_kind(reader: Reader) -> str | None:
    """Return the class of a model of dipoles, None for one of energies; a checkpoint tells it by its shapes.

    Raises:
        CannotConvert: If it is a model of dipoles whose last layer has no vectors.
    """
    last = reader.count("products.") - 1
    if reader.tree is not None:
        kind = reader.tree.kind if reader.tree.kind in WITH_DIPOLE else None
    elif _ENERGIES not in reader.state:
        kind = "AtomicDipolesMACE"
    elif last > 0:
        kind = "EnergyDipolesMACE" if 1 in _degrees(reader, last) else None
    else:
        # one layer may have vectors that nothing reads; a map to energy and dipole has twice the weights
        n_heads, numbers = len(np.atleast_2d(reader.array(_ENERGIES))), reader.array("atomic_numbers")
        per_channel = reader.array("readouts.0.linear.weight").size * numbers.size
        both = per_channel == 2 * reader.array("node_embedding.linear.weight").size
        kind = "EnergyDipolesMACE" if both and n_heads == 1 else None
    if kind is not None and 1 not in _degrees(reader, last):
        raise CannotConvert("its last layer has no vectors")
    return kind


def _reference_energies(reader: Reader, kind: str | None, n_elements: int) -> np.ndarray:
    """Return the reference energies, ``[heads, elements]``; one head without elements where no energy is predicted."""
    if kind is not None and kind not in WITH_ENERGY:
        return np.zeros((1, 0))
    energies = np.atleast_2d(reader.array(_ENERGIES))
    if energies.shape[1] != n_elements:
        raise CannotConvert(f"it has {energies.shape[1]} reference energies for {n_elements} elements")
    return energies


def check_kind(reader: Reader) -> None:
    """Refuse what does not exist here by its name.

    Raises:
        CannotConvert: If it is such a model.
    """
    tree = reader.tree
    if tree is not None and tree.kind not in KINDS:
        why = _OTHER_KINDS.get(tree.kind, "this class of models is not known")
        raise CannotConvert(f"its kind is {tree.kind}: {why}")
    for name, harmless in _HARMLESS.items():
        found = tree.attributes.get(name, harmless) if tree is not None else harmless
        if isinstance(found, bool) and found is not harmless:
            raise CannotConvert(f"it was made with {name}={found}, which does not exist here")
    for path, name in (("radial_embedding", "apply_cutoff"), ("products.0", "use_agnostic_product")):
        found = reader.attribute(path, name)
        if isinstance(found, bool) and found is not _HARMLESS[name]:
            raise CannotConvert(f"it was made with {name}={found}, which does not exist here")
    foreign = sorted({name.split(".")[0] for name in reader.state} & {"joint_embedding", "embedding_readout", "les"})
    if foreign:
        raise CannotConvert(f"it has a {foreign[0]}, which does not exist here")
    if any(".linear_mid." in name for name in reader.state) or any(
        name.startswith("readouts.") and name.endswith("bias") and array.size for name, array in reader.state.items()
    ):
        raise CannotConvert("its readout has biases (NonLinearBiasReadoutBlock), which do not exist here")


def _cutoff(reader: Reader) -> float:
    r_max = reader.scalar("r_max")
    if not SMALLEST_CUTOFF <= r_max <= LARGEST_CUTOFF:
        raise CannotConvert(f"its cutoff of {r_max:.3g} Angstrom is none")
    return r_max


def _exact(total: int, divisor: int, what: str) -> int:
    if divisor < 1 or total % divisor or not total:
        raise CannotConvert(f"the {total} weights of {what} do not fit {divisor} elements or channels")
    return total // divisor


def _contraction(layer: int, place: int) -> str:
    return f"products.{layer}.symmetric_contractions.contractions.{place}."


def _degrees(reader: Reader, layer: int) -> tuple[int, ...]:
    """Return the degrees a layer gives out, from the shapes of its coupling coefficients."""
    n = reader.count(f"products.{layer}.symmetric_contractions.contractions.")
    degrees = []
    for place in range(n):
        shape = reader.array(_contraction(layer, place) + "U_matrix_1").shape
        degrees.append(0 if len(shape) == 2 else (shape[0] - 1) // 2)
    return tuple(degrees)


def _l_max(reader: Reader) -> int:
    n = reader.array(_contraction(0, 0) + "U_matrix_1").shape[-2]
    l_max = math.isqrt(n) - 1
    if (l_max + 1) ** 2 != n or not 0 <= l_max <= MAX_L:
        raise CannotConvert(f"its {n} spherical harmonics are no complete set up to a degree of at most {MAX_L}")
    return l_max


def _correlation(reader: Reader, layer: int, l_max: int) -> int:
    """Return the factors of a layer's contraction, after making sure that all coefficients have the shape for it.

    Large coefficients are thus paid for with a large file: nothing is computed for a false claim.
    """
    prefix = _contraction(layer, 0) + "U_matrix_"
    correlation = sum(name.startswith(prefix) for name in reader.state)
    for place, degree in enumerate(_degrees(reader, layer)):
        for order in range(1, correlation + 1):
            name = f"{_contraction(layer, place)}U_matrix_{order}"
            shape = reader.array(name).shape
            start = (2 * degree + 1,) if degree else ()
            if order > MAX_L or shape[:-1] != (*start, *([(l_max + 1) ** 2] * order)):
                raise CannotConvert(f"'{name}' has the shape {list(shape)}")
    return correlation


def _radial_mlp(reader: Reader) -> tuple[int, ...]:
    prefix = "interactions.0.conv_tp_weights."
    n = sum(name.startswith(prefix + "layer") for name in reader.state)
    if n < 1:
        raise CannotConvert("its radial network is of another kind than FullyConnectedNet")
    return tuple(reader.array(f"{prefix}layer{i}.weight").shape[1] for i in range(n - 1))


def _interactions(
    reader: Reader, n_layers: int, n_channels: int, n_elements: int, l_max: int, hidden: tuple[int, ...]
) -> tuple[InteractionPlan, ...]:
    """Return the kind of every layer from its class or, in a checkpoint, from the shapes of its weights."""
    if reader.tree is not None:
        plans = []
        for layer in range(n_layers):
            module = reader.module(f"interactions.{layer}")
            kind = module.kind if module is not None else "nothing"
            if kind not in _INTERACTIONS:
                raise CannotConvert(f"its layer {layer} is a {kind}, which does not exist here")
            plans.append(_INTERACTIONS[kind])
        return tuple(plans)
    if reader.known.interactions is not None:
        return reader.known.interactions
    plans = []
    for layer in range(n_layers):
        per_degree = n_elements * n_channels**2
        n_maps = _exact(reader.array(f"interactions.{layer}.skip_tp.weight").size, per_degree, f"layer {layer}")
        l_in, l_out = hidden if layer else (0,), _degrees(reader, layer)
        n_residual, n_plain = len(set(l_in) & set(l_out)), l_max + 1
        if n_residual == n_plain:
            raise CannotConvert(f"a checkpoint does not tell the kind of its layer {layer}")
        density = any(name.startswith(f"interactions.{layer}.density_fn.") for name in reader.state)
        plans.append(InteractionPlan(residual=n_maps == n_residual, normalization="density" if density else "count"))
    return tuple(plans)


def _avg_num_neighbors(reader: Reader, n_layers: int, interactions: tuple[InteractionPlan, ...]) -> float:
    found = set()
    for layer in range(n_layers):
        path = f"interactions.{layer}"
        name = f"{path}.avg_num_neighbors"
        stored = reader.attribute(path, "avg_num_neighbors")
        value = reader.scalar(name) if name in reader.state else number(stored)
        if value is not None:
            found.add(value)
    if len(found) > 1:
        raise CannotConvert(f"its layers have different numbers of neighbors ({sorted(found)})")
    if found:
        return found.pop()
    if reader.known.avg_num_neighbors is not None:
        return reader.known.avg_num_neighbors
    if all(plan.normalization == "density" for plan in interactions):
        return 1.0  # not used by these layers
    raise CannotConvert("a checkpoint does not tell avg_num_neighbors")


def _scale_shift(reader: Reader, head: int) -> tuple[float, float]:
    """Return scale and shift of a head, buffers in most versions and plain numbers in the oldest."""
    values = []
    for name, neutral in (("scale", 1.0), ("shift", 0.0)):
        if f"scale_shift.{name}" in reader.state:
            stored = np.atleast_1d(reader.state[f"scale_shift.{name}"]).reshape(-1)
            values.append(float(stored[head if len(stored) > 1 else 0]))
        else:
            attribute = reader.attribute("scale_shift", name)
            attribute = attribute[head] if isinstance(attribute, list) and len(attribute) > head else attribute
            value = number(attribute)
            if value is None and reader.module("scale_shift") is not None:
                raise CannotConvert(f"its scale_shift has no {name}")
            values.append(neutral if value is None else value)
    return values[0], values[1]


def _last_readout(
    reader: Reader, n_layers: int, n_channels: int, n_heads: int, kind: str | None
) -> dict[str, int | str]:
    """Return widths and activation of the last readout."""
    if reader.count("readouts.") != n_layers:
        raise CannotConvert(f"it has {reader.count('readouts.')} readouts for {n_layers} layers")
    path = f"readouts.{n_layers - 1}"
    if n_layers == 1:
        return {"readout_channels": 0 if kind == "AtomicDipolesMACE" else _USUAL_WIDTH}
    if f"{path}.linear_1.weight" not in reader.state:
        module = reader.module(path)
        raise CannotConvert(f"its last readout is {module.kind if module else 'of another kind'}")
    total = reader.array(f"{path}.linear_1.weight").size
    if kind is None:
        return {
            "readout_channels": _exact(total, n_channels * n_heads, "the last readout"),
            "gate": _gate(reader, path),
        }
    # every vector of the hidden layer has a gate besides, where scalars reach the layer
    width, outputs = _exact(total, n_channels, "the last readout"), reader.array(f"{path}.linear_2.weight").size
    vectors = width if kind == "AtomicDipolesMACE" else width - outputs
    return {"readout_channels": outputs - vectors, "readout_vectors": vectors, "gate": _gate(reader, path)}


def _gate(reader: Reader, path: str) -> str:
    """Return the activation of a readout."""
    if reader.tree is None:
        if reader.known.gate is None:
            raise CannotConvert("a checkpoint does not tell the activation of its last readout (gate)")
        return reader.known.gate
    functions = []
    for place in ("non_linearity", "equivariant_nonlin.act_scalars", "equivariant_nonlin.act_gates"):
        functions += [reader.attribute(f"{path}.{place}.acts.0", "f"), reader.attribute(f"{path}.{place}", "f")]
    functions += [reader.attribute(f"{path}.equivariant_nonlin", name) for name in ("_act_scalar", "_act_gate")]
    names = {_function_name(function) for function in functions if function is not None}
    for name in sorted(names):
        if name not in _GATES:
            raise CannotConvert(f"the activation {name} of its last readout does not exist here")
    if len(names) > 1:
        raise CannotConvert(f"its last readout has several activations ({', '.join(sorted(names))})")
    return _GATES[names.pop()] if names else "None"


def _function_name(function: Any) -> str:
    """Name a function; those of torch's compiled part are written as an attribute of something."""
    if isinstance(function, Record) and function.name is not None and function.name.name == "getattr":
        return str(function.arguments[-1]) if function.arguments else "getattr"
    return function.name if isinstance(function, Name) else "of an unknown kind"


def _radial(reader: Reader) -> dict[str, Any]:
    """Return what decides the functions of the distance."""
    prefix = "radial_embedding.bessel_fn."
    kinds = [word for name, word in _RADIAL_TYPES.items() if prefix + name in reader.state]
    if len(kinds) != 1:
        raise CannotConvert("its radial basis is of an unknown kind")
    stored = next(reader.state[prefix + name] for name in _RADIAL_TYPES if prefix + name in reader.state)
    transform = "None"
    names = {
        name.rpartition(".")[2] for name in reader.state if name.startswith("radial_embedding.distance_transform.")
    }
    if names:
        transform = "Agnesi" if {"a", "q", "p"} <= names else "Soft" if "alpha" in names else "unknown"
    if transform == "unknown":
        raise CannotConvert("its distance transform is of an unknown kind")
    return {
        "radial_type": kinds[0],
        "num_radial_basis": stored.size,
        "num_cutoff_basis": int(reader.scalar("radial_embedding.cutoff_fn.p")),
        "distance_transform": transform,
        "pair_repulsion": any(name.startswith("pair_repulsion_fn.") for name in reader.state),
    }
