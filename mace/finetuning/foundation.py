"""Fine-tuning: training that starts from the weights of a foundation model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mace.compat.importing import open_model
from mace.compat.layers import word_of_interaction
from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.files.published import foundation_file
from mace.graphs.dataset import Dataset
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.model.prediction import predict
from mace.planning.model_plan import constants_of_heads, interaction_plans
from mace.planning.replay import replays
from mace.settings import TrainingSettings, provided

_LOGGER = logging.getLogger(__name__)

_DECIDED = {
    "r_max": ("r_max",),
    "radial_type": ("radial_type",),
    "num_radial_basis": ("num_radial_basis",),
    "num_cutoff_basis": ("num_cutoff_basis",),
    "apply_cutoff": ("cutoff_after_network",),
    "distance_transform": ("distance_transform",),
    "pair_repulsion": ("pair_repulsion",),
    "max_ell": ("l_max",),
    "hidden_irreps": ("n_channels", "hidden_l"),
    "num_channels": ("n_channels",),
    "max_L": ("hidden_l",),
    "num_interactions": ("interactions",),
    "interaction": ("interactions",),
    "interaction_first": ("interactions",),
    "edge_irreps": ("message_channels", "message_l"),
    "use_edge_irreps_first": ("message_channels",),
    "use_agnostic_product": ("product_of_all_elements",),
    "correlation": ("correlation",),
    "radial_MLP": ("radial_mlp",),
    "MLP_irreps": ("readout_channels", "readout_vectors"),
    "use_last_readout_only": ("last_readout_only",),
    "gate": ("gate",),
    "use_embedding_readout": ("condition_readout",),
    "avg_num_neighbors": ("avg_num_neighbors",),
}
"""Settings that a foundation model determines, with the corresponding fields of its plan."""

_NO_EFFECT = ("scaling", "std", "compute_avg_num_neighbors")
"""Settings that would change constants with which the weights were trained, unless they have their default values."""

FROM_FOUNDATION = ("foundation", "estimated")
"""Values of ``--E0s`` that need a foundation model."""

SHIFT_SAMPLE = 256
"""Number of structures for computing the mean error of the energy at the start."""


@dataclass(frozen=True)
class Foundation:
    """The foundation model from which training starts.

    Attributes:
        source: Its name as given by the user.
        model: The model, in the precision of the run.
        head: The head that was taken, if the file has several.
    """

    source: str
    model: MACE
    head: str | None = None

    @property
    def words(self) -> str:
        """Its name, and the head that was taken."""
        return self.source if self.head is None else f"{self.source}, head {self.head}"

    @property
    def plan(self) -> ModelPlan:
        """The plan of the model."""
        return self.model.plan

    @property
    def energies(self) -> dict[int, float]:
        """Reference energies in eV by atomic number; empty if no energy is predicted."""
        return dict(zip(self.plan.atomic_numbers, self.plan.reference_energies, strict=False))


def open_foundation(settings: TrainingSettings, dtype: torch.dtype) -> Foundation | None:
    """Open the model given by ``--foundation_model``, if any.

    Raises:
        UserError: If it cannot be opened, or given settings are incompatible with its presence or absence.
    """
    typed = provided(settings)
    name = settings.foundation_model
    if name is None:
        if settings.E0s in FROM_FOUNDATION:
            raise UserError(f"--E0s={settings.E0s} takes the energies of a foundation model; add --foundation_model.")
        return None
    if settings.init_from is not None:
        raise UserError("--init_from and --foundation_model both say what to start from; give only one of them.")
    for word in _NO_EFFECT:
        if word in typed and getattr(settings, word) != type(settings).model_fields[word].default:
            raise UserError(
                f"--{word} cannot be combined with --foundation_model, whose weights belong to its own scale and "
                "number of neighbors; remove the flag."
            )
    for head, own in (settings.heads or {}).items():
        for word in set(own.given()) & {*_NO_EFFECT}:
            raise UserError(
                f"--heads: {word} of the head {head} cannot be combined with --foundation_model, whose weights belong "
                "to its own scale; leave it out."
            )
    model = open_model(foundation_file(name), "cpu", dtype, foundation_head(settings)).model
    if model.plan.heads:
        names = model.plan.head_names
        raise UserError(
            f"--foundation_model: {name} has {len(names)} heads ({', '.join(names)}), and training starts from one; "
            f"choose it with --foundation_head, for example --foundation_head={names[-1]}."
        )
    return Foundation(name, model, foundation_head(settings))


def foundation_head(settings: TrainingSettings) -> str | None:
    """Return the head of the foundation model that was asked for.

    Raises:
        UserError: If two different ones were.
    """
    arguments, head = dict(settings.foundation_model_kwargs), settings.foundation_head
    other = arguments.pop("head", None)
    if None not in (head, other) and head != other:
        raise UserError(
            f"--foundation_head={head} contradicts --foundation_model_kwargs, where head is {other}; give one of them."
        )
    if arguments:
        _LOGGER.warning("--foundation_model_kwargs: %s changes nothing here", ", ".join(map(str, arguments)))
    return head or other


def keeps_readouts(settings: TrainingSettings) -> bool:
    """Return whether the readouts start from those of the foundation model."""
    return settings.foundation_model_readout and settings.foundation_filter_elements


def foundation_plan(
    settings: TrainingSettings,
    foundation: Foundation,
    wanted: ModelPlan,
    train: Mapping[str, Dataset],
    shifts: Mapping[str, float],
) -> ModelPlan:
    """Return the plan of the foundation model with new elements, reference energies, heads and conditions.

    The shift of every head is adjusted so that energies are right on average at the start: new reference energies, from
    another level of theory or a least-squares fit, shift all energies.

    Args:
        settings: The given settings.
        foundation: The foundation model.
        wanted: The plan that the settings alone would give; its elements, reference energies and conditions are used.
        train: Training structures of the heads whose energies are to be right on average; the others keep their shift.
        shifts: Shifts that were given, by head.

    Returns:
        The plan of the model to be trained.

    Raises:
        UserError: If a given setting contradicts the foundation model: given settings are never overridden.
    """
    refuse_contradictions(settings, foundation, wanted)
    plan = foundation.plan
    heads = [one.model_copy(update={"scale": plan.scale, "shift": plan.shift}) for one in wanted.every_head]
    elements = {name: getattr(wanted, name) for name in ("atomic_numbers", "conditions")}
    plan = plan.model_copy(update=elements | constants_of_heads(heads))
    shifts = dict(shifts)
    if plan.model != "MACE" and "energy" in plan.outputs:  # in others, isolated atoms keep their reference energies
        model = MACE(plan, foundation.model.dtype)
        start_from(foundation, model, keep_readouts=True)
        for name in train.keys() - shifts.keys():
            shifts[name] = plan.every_head[0].shift + (measured_shift(model, train[name], settings.batch_size) or 0.0)
    if len(heads) == 1:  # its name in the plan is not that of the run
        shifts = dict.fromkeys(plan.head_names, next(iter(shifts.values()), heads[0].shift))
    heads = [one.model_copy(update={"shift": shifts.get(one.name, one.shift)}) for one in heads]
    return plan.model_copy(update=constants_of_heads(heads))


def refuse_contradictions(settings: TrainingSettings, foundation: Foundation, wanted: ModelPlan) -> None:
    """Check that no given setting contradicts the foundation model.

    Raises:
        UserError: If one contradicts it: given settings are never overridden.
    """
    plan = foundation.plan
    if plan.outputs != wanted.outputs:
        raise UserError(
            f"--model={settings.model} does not fit the foundation model {foundation.source}, which is of the kind "
            f"{plan.model}; add --model={plan.model}."
        )
    # which interactions a name means depends on the kind of model, here that of the foundation model
    words = interaction_plans(settings.model_copy(update={"model": plan.model}))
    wanted = wanted.model_copy(update={"interactions": words})
    for name in sorted(provided(settings) & _DECIDED.keys()):
        for field in _DECIDED[name]:
            asked, has = getattr(wanted, field), getattr(plan, field)
            if asked == has:
                continue
            shown = str(has)
            if isinstance(asked, float) and isinstance(has, float):
                if abs(asked - has) <= 1e-6 * abs(has):
                    continue  # the cutoff of single-precision models is rounded
                shown = f"{has:.6g}"
            elif field == "interactions":
                shown = ", ".join(word_of_interaction(kind) for kind in has)
            raise UserError(
                f"--{name}={getattr(settings, name)} contradicts the foundation model {foundation.source}, whose "
                f"{field} is {shown}; remove the flag, or train from scratch without --foundation_model."
            )


@torch.no_grad()
def start_from(foundation: Foundation, model: MACE, keep_readouts: bool) -> None:
    """Copy the weights of the foundation model to a model, for the elements of the latter.

    An element that the foundation model does not know starts from the element of nearest atomic number.

    Args:
        foundation: The foundation model.
        model: The model; its plan differs from that of the foundation model in elements, reference energies and heads
            only. All its heads start from the same readouts.
        keep_readouts: Whether to copy the readouts too; otherwise they keep their current weights.
    """
    old, new = foundation.plan.atomic_numbers, model.plan.atomic_numbers
    rows = torch.tensor([old.index(nearest_element(z, old)) for z in new])
    source = dict(foundation.model.named_parameters())
    for name, parameter in model.named_parameters():
        role, origin = model.roles[name], re.sub(r"\.heads\.\d+", "", name)
        weight: torch.Tensor = source[origin]
        if role.group == "readouts" and not keep_readouts:
            continue
        if role.element_axis is not None:
            weight = weight.index_select(role.element_axis, rows)
        # some maps are divided by the square root of the number of elements or heads
        parameter.copy_(weight * (role.fan_in / foundation.model.roles[origin].fan_in) ** 0.5)


def nearest_element(number: int, known: Sequence[int]) -> int:
    """Return an element itself or, if it is not known, the known element of nearest atomic number.

    >>> nearest_element(9, (1, 6, 8))
    8
    """
    return min(known, key=lambda other: (abs(other - number), other))


def measured_shift(model: MACE, train: Dataset, batch_size: int) -> float | None:
    """Return the shift of every atom's energy that makes the energies right on average.

    Args:
        model: The model at the start.
        train: Training structures.
        batch_size: Number of structures to evaluate at a time.

    Returns:
        The mean error in eV per atom; None if no structure has an energy.
    """
    errors: list[float] = []
    for each in train.batches(batch_size, np.arange(min(len(train), SHIFT_SAMPLE))):
        batch = each.to(model.embedding.device)
        energy = predict(model, batch.graph, forces=False).energy
        assert energy is not None, "asked of models with energies only"
        counts = torch.bincount(batch.graph.structure_of_atom, minlength=batch.graph.n_structures).cpu()
        differences = (batch.targets.values["energy"].cpu() - energy.detach().cpu()) / counts
        errors += differences[batch.targets.labeled["energy"].cpu()].tolist()
    return sum(errors) / len(errors) if errors else None


def log_foundation(settings: TrainingSettings, foundation: Foundation, model: MACE) -> None:
    """Log the foundation model and how the model to be trained differs from it."""
    old_energies = foundation.energies
    old, new = set(foundation.plan.atomic_numbers), set(model.plan.atomic_numbers)
    _LOGGER.info("===========FINE-TUNING===========")
    _LOGGER.info("Starting from the foundation model %s", foundation.words)
    if "model" in provided(settings) and settings.model != model.plan.model:
        _LOGGER.warning(
            "--model=%s: the foundation model is of the kind %s, and so is the result, as in mace-torch",
            settings.model,
            model.plan.model,
        )
    if not replays(settings) and "multiheads_finetuning" not in provided(settings):
        _LOGGER.info(
            "Fine-tuning on the given structures alone; --pt_train_file replays structures of the foundation model's "
            "training, so that it does not forget them"
        )
    if new - old:
        nearest = {z: nearest_element(z, sorted(old)) for z in sorted(new - old)}
        starts = ", ".join(f"{chemical_symbol(z)} from {chemical_symbol(near)}" for z, near in nearest.items())
        _LOGGER.warning("Elements the foundation model does not know start from the nearest one: %s", starts)
    _LOGGER.info(
        "Elements kept: %s; left out: %s",
        ", ".join(chemical_symbol(z) for z in sorted(new & old)) or "none",
        ", ".join(chemical_symbol(z) for z in sorted(old - new)) or "none",
    )
    for head in model.plan.every_head:
        of_head = f"Head {head.name}: " if model.plan.heads else ""
        for number, energy in zip(model.plan.atomic_numbers, head.reference_energies, strict=False):
            if number in old_energies and abs(energy - old_energies[number]) > 1e-6:
                symbol = chemical_symbol(number)
                _LOGGER.info("%sE0 of %s: %.6f eV, was %.6f eV", of_head, symbol, energy, old_energies[number])
        before = foundation.plan.shift
        _LOGGER.info("%sScale %.6g eV (kept), shift %.6g eV, was %.6g eV", of_head, head.scale, head.shift, before)
    if not keeps_readouts(settings):
        _LOGGER.info("--foundation_model_readout: the readouts start from random weights")
