"""From settings and data to the plan of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mace.compat.layers import KINDS_OF_INTERACTIONS
from mace.conditions import Condition
from mace.elements import ElementTable
from mace.equivariant.irreps import Irrep, parse_irreps
from mace.errors import UserError
from mace.graphs.dataset import Dataset
from mace.model.plan import DEGREES_READ, MAX_L, OUTPUTS, HeadPlan, InteractionPlan, ModelPlan
from mace.settings import TrainingSettings
from mace.structures.reference_energies import ReferenceEnergies
from mace.structures.statistics import Scaling, Summary, choose_scaling

DEFAULT_CHANNELS, DEFAULT_MAX_L = 128, 1

NO_SCALING = Scaling(shift=0.0, scale=1.0)
"""Scaling of dipole models: none, as in the original."""


@dataclass(frozen=True)
class HiddenFeatures:
    """Channels and degrees of the features passed between layers."""

    n_channels: int
    degrees: tuple[int, ...]


def hidden_features(settings: TrainingSettings) -> HiddenFeatures:
    """Parse ``--hidden_irreps``, ``--num_channels`` and ``--max_L``; the latter two together win, as in mace-torch.

    Raises:
        UserError: If they request features that the model cannot have.
    """
    channels, max_L = settings.num_channels, settings.max_L
    if settings.hidden_irreps is None or (channels is not None and max_L is not None):
        channels = DEFAULT_CHANNELS if channels is None else channels
        features = HiddenFeatures(channels, tuple(range((DEFAULT_MAX_L if max_L is None else max_L) + 1)))
    else:
        features = _parse_hidden(settings.hidden_irreps)
    if features.degrees[-1] > settings.max_ell:
        raise UserError(
            f"hidden features of degree {features.degrees[-1]} need --max_ell of at least {features.degrees[-1]}, "
            f"but it is {settings.max_ell}."
        )
    if 1 in DEGREES_READ[settings.model] and 1 not in features.degrees:
        raise UserError(
            f"--model={settings.model} needs vectors among the hidden features; choose --max_L of at least 1, or "
            "--hidden_irreps with 1o."
        )
    return features


def overruled_features(settings: TrainingSettings) -> list[str]:
    """List which of ``--hidden_irreps``, ``--num_channels`` and ``--max_L`` are overruled, as sentences for the log."""
    if settings.hidden_irreps is None:
        return []
    features = hidden_features(settings)
    means = " + ".join(f"{features.n_channels}x{l}{'eo'[l % 2]}" for l in features.degrees)
    if settings.num_channels is not None and settings.max_L is not None:
        try:
            if _parse_hidden(settings.hidden_irreps) == features:
                return []
        except UserError:
            pass  # if it cannot be parsed, it differs from what is built
        return [
            f"--hidden_irreps='{settings.hidden_irreps}' is overruled by --num_channels={settings.num_channels} and "
            f"--max_L={settings.max_L}, as in mace-torch: {means}"
        ]
    return [
        f"--{name}={given} is overruled by --hidden_irreps='{settings.hidden_irreps}', as in mace-torch: {means}"
        for name, given, meant in (
            ("num_channels", settings.num_channels, features.n_channels),
            ("max_L", settings.max_L, features.degrees[-1]),
        )
        if given not in (None, meant)
    ]


def read_irreps(flag: str, text: str) -> list[tuple[int, Irrep]]:
    """Parse irreps, or raise an error that names the flag."""
    try:
        return parse_irreps(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}.") from error


def _parse_hidden(text: str) -> HiddenFeatures:
    features = _parse_equal_channels("--hidden_irreps", text)
    if features.degrees[0] != 0:
        raise UserError(f"--hidden_irreps='{text}': begin with 0e and let the degrees rise, each once.")
    return features


def _parse_equal_channels(flag: str, text: str) -> HiddenFeatures:
    """Parse irreps with the parity of spherical harmonics, all with the same number of channels."""
    terms = read_irreps(flag, text)
    channels = {multiplicity for multiplicity, _ in terms}
    if len(channels) != 1:
        raise UserError(
            f"{flag}='{text}' has unequal numbers of channels; all degrees need the same, as in '128x0e + 128x1o'."
        )
    if unnatural := [str(irrep) for _, irrep in terms if not irrep.is_natural]:
        raise UserError(
            f"{flag}='{text}': {', '.join(unnatural)} does not have the parity of a spherical harmonic; use 0e, 1o, "
            "2e, 3o, 4e."
        )
    degrees = tuple(irrep.l for _, irrep in terms)
    if list(degrees) != sorted(set(degrees)):
        raise UserError(f"{flag}='{text}': begin with 0e and let the degrees rise, each once.")
    if degrees[-1] > MAX_L or channels == {0}:
        raise UserError(f"{flag}='{text}': degrees go up to {MAX_L} and at least one channel is needed.")
    return HiddenFeatures(channels.pop(), degrees)


def interaction_plans(settings: TrainingSettings) -> tuple[InteractionPlan, ...]:
    """Return the kind of each interaction; in all models but ScaleShiftMACE, the first has no residual.

    This follows the original: with ``--model=MACE``, a residual first layer is replaced by the plain one.
    """
    first, others = settings.interaction_first, settings.interaction
    if settings.model != "ScaleShiftMACE" and "Residual" in first:
        first = "RealAgnosticInteractionBlock"
    words = [first] + [others] * (settings.num_interactions - 1)
    return tuple(KINDS_OF_INTERACTIONS[word] for word in words)


@dataclass(frozen=True)
class SentFeatures:
    """Channels and degrees of the features that neighbors send; None if the same as those of the hidden features."""

    channels: tuple[int, ...] | None = None
    degrees: tuple[int, ...] | None = None


def sent_features(settings: TrainingSettings, hidden: HiddenFeatures) -> SentFeatures:
    """Parse ``--edge_irreps`` and ``--use_edge_irreps_first``.

    Degrees that the hidden features lack are left out; in the original, their messages are always zero.

    Raises:
        UserError: If no degree is left.
    """
    text = settings.edge_irreps
    if text is None:
        return SentFeatures()
    wanted = _parse_equal_channels("--edge_irreps", text)
    degrees = tuple(l for l in wanted.degrees if l in hidden.degrees)
    if not degrees:
        raise UserError(f"--edge_irreps='{text}': the hidden features have none of these to send; add 0e.")
    if settings.use_edge_irreps_first and 0 not in wanted.degrees:
        raise UserError(f"--edge_irreps='{text}': the first layer has only scalars to send; add 0e.")
    first = wanted.n_channels if settings.use_edge_irreps_first else hidden.n_channels
    channels = (first, *[wanted.n_channels] * (settings.num_interactions - 1))
    return SentFeatures(
        None if set(channels) == {hidden.n_channels} else channels,
        None if degrees == hidden.degrees else degrees,
    )


@dataclass(frozen=True)
class ReadoutWidths:
    """Numbers of scalars and vectors in the hidden layer of the last readout; 0 for those the model does not read."""

    scalars: int
    vectors: int


def readout_widths(settings: TrainingSettings) -> ReadoutWidths:
    """Parse ``--MLP_irreps``.

    Raises:
        UserError: If it has anything but scalars, and vectors for models of dipoles.
    """
    text, degrees = settings.MLP_irreps, DEGREES_READ[settings.model]
    terms = read_irreps("--MLP_irreps", text)
    widths = {str(irrep): multiplicity for multiplicity, irrep in terms}
    allowed = ("0e", "1o") if 1 in degrees else ("0e",)
    if len(widths) != len(terms) or not widths.keys() <= set(allowed) or not all(widths.values()):
        if 1 in degrees:
            raise UserError(f"--MLP_irreps='{text}': write scalars and vectors, each once, as in '16x0e + 16x1o'.")
        raise UserError(f"--MLP_irreps='{text}': the readout has scalars only, write for example '16x0e'.")
    return ReadoutWidths(widths.get("0e", 0) if 0 in degrees else 0, widths.get("1o", 0))


def plan_model(
    settings: TrainingSettings,
    elements: ElementTable,
    energies: Mapping[str, ReferenceEnergies],
    scaling: Mapping[str, Scaling],
    avg_num_neighbors: float,
    conditions: tuple[Condition, ...] = (),
) -> ModelPlan:
    """Make the plan of a model from settings and statistics of the data.

    Args:
        settings: The given settings.
        elements: The elements.
        energies: Their reference energies, by head; empty if no energy is predicted.
        scaling: Scale and shift of the interaction energy, by head.
        avg_num_neighbors: Mean number of neighbors, by which messages are divided.
        conditions: Conditions that energies depend on besides the atoms; see `mace.preparation.condition_keys`.

    Returns:
        The plan.

    Raises:
        UserError: If the settings contradict each other.
    """
    features, readout = hidden_features(settings), readout_widths(settings)
    sent = sent_features(settings, features)
    correlation = settings.correlation
    heads = [
        HeadPlan(
            name=name,
            reference_energies=tuple(energies[name].energies[z] for z in elements) if energies else (),
            scale=of_head.scale,
            shift=of_head.shift if settings.model == "ScaleShiftMACE" else 0.0,
        )
        for name, of_head in scaling.items()
    ]
    return ModelPlan(
        model=settings.model,  # type: ignore[arg-type]  # checked with the settings
        r_max=settings.r_max,
        radial_type=settings.radial_type,
        num_radial_basis=settings.num_radial_basis,
        num_cutoff_basis=settings.num_cutoff_basis,
        distance_transform=settings.distance_transform,
        cutoff_after_network=not settings.apply_cutoff,
        pair_repulsion=settings.pair_repulsion and "energy" in OUTPUTS[settings.model],
        l_max=settings.max_ell,
        n_channels=features.n_channels,
        hidden_l=features.degrees,
        interactions=interaction_plans(settings),
        message_channels=sent.channels,
        message_l=sent.degrees,
        product_of_all_elements=settings.use_agnostic_product,
        correlation=tuple(correlation) if isinstance(correlation, list) else (correlation,) * settings.num_interactions,
        radial_mlp=tuple(settings.radial_MLP),
        readout_channels=readout.scalars,
        readout_vectors=readout.vectors,
        last_readout_only=settings.use_last_readout_only,
        gate=settings.gate,
        avg_num_neighbors=avg_num_neighbors,
        atomic_numbers=elements.atomic_numbers,
        conditions=conditions,
        condition_readout=settings.use_embedding_readout and bool(conditions),
        **constants_of_heads(heads),
    )


def constants_of_heads(heads: Sequence[HeadPlan]) -> dict[str, Any]:
    """Return the fields of a plan that hold the constants of its heads; with one head, they are those of the model."""
    if len(heads) > 1:
        return {"heads": tuple(heads), "reference_energies": (), "scale": 1.0, "shift": 0.0}
    one = heads[0]
    return {"reference_energies": one.reference_energies, "scale": one.scale, "shift": one.shift}


def decide_scaling(settings: TrainingSettings, summary: Summary) -> Scaling:
    """Compute scale and shift from the data, unless ``--std`` and ``--mean`` set them; dipole models have none."""
    if "dipole" in OUTPUTS[settings.model]:
        return NO_SCALING
    measured = choose_scaling(summary, settings.scaling)
    return Scaling(
        shift=measured.shift if settings.mean is None else settings.mean,
        scale=measured.scale if settings.std is None else settings.std,
        warnings=measured.warnings if settings.mean is None or settings.std is None else (),
    )


def decide_neighbors(settings: TrainingSettings, train_set: Dataset) -> float:
    """Return the mean number of neighbors in the training set, unless it is set by the user."""
    return train_set.average_neighbors() if settings.compute_avg_num_neighbors else settings.avg_num_neighbors
