"""Fine-tuning: a training that starts from the weights of another model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mace.compat.importing import open_model
from mace.compat.layers import word_of_interaction
from mace.elements import chemical_symbol
from mace.errors import UserError
from mace.files.published import foundation_file
from mace.graphs.dataset import Dataset
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.model.prediction import predict
from mace.planning.model_plan import interaction_plans
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
"""Settings that a foundation model decides, with the fields of its plan that they mean."""

_NO_EFFECT = ("scaling", "std", "compute_avg_num_neighbors")
"""Settings that would change constants the weights were trained with, unless they have their default values."""

FROM_FOUNDATION = ("foundation", "estimated")
"""Words of ``--E0s`` that need a foundation model."""

SHIFT_SAMPLE = 256
"""Structures on which the mean error of the energy is measured at the start."""


@dataclass(frozen=True)
class Foundation:
    """What a training starts from.

    Attributes:
        source: How the user named it.
        model: The model, in the precision of the run.
    """

    source: str
    model: MACE

    @property
    def plan(self) -> ModelPlan:
        """The plan of the model."""
        return self.model.plan

    @property
    def energies(self) -> dict[int, float]:
        """Reference energies by atomic number, eV; none where no energy is predicted."""
        return dict(zip(self.plan.atomic_numbers, self.plan.reference_energies, strict=False))


def open_foundation(settings: TrainingSettings, dtype: torch.dtype) -> Foundation | None:
    """Open what ``--foundation_model`` names, if anything.

    Raises:
        UserError: If it cannot be opened, or settings were typed that have no meaning with or without it.
    """
    typed = provided(settings)
    name = settings.foundation_model
    if name is None:
        if settings.E0s in FROM_FOUNDATION:
            raise UserError(f"--E0s={settings.E0s} takes the energies of a foundation model; add --foundation_model.")
        return None
    if settings.init_from is not None:
        raise UserError("--init_from and --foundation_model both say what to start from; give only one of them.")
    if "multiheads_finetuning" in typed and settings.multiheads_finetuning:
        raise UserError(
            "--multiheads_finetuning: fine-tuning with replay of the foundation model's data is not available yet; "
            "set it to False to fine-tune on the given structures alone."
        )
    for word in _NO_EFFECT:
        if word in typed and getattr(settings, word) != type(settings).model_fields[word].default:
            raise UserError(
                f"--{word} cannot be combined with --foundation_model, whose weights belong to its own scale and "
                "number of neighbors; remove the flag."
            )
    model = open_model(foundation_file(name), "cpu", dtype, settings.foundation_head).model
    if model.plan.heads:
        names = model.plan.head_names
        raise UserError(
            f"--foundation_model: {name} has {len(names)} heads ({', '.join(names)}), and training starts from one; "
            f"choose it with --foundation_head, for example --foundation_head={names[-1]}."
        )
    return Foundation(name, model)


def foundation_plan(
    settings: TrainingSettings,
    foundation: Foundation,
    wanted: ModelPlan,
    train: Dataset,
) -> ModelPlan:
    """Take the plan of the foundation model, with new elements and reference energies.

    The shift is moved so that energies are right on average at the start: new reference energies, of another level of
    theory or from a least-squares fit, move all energies at once.

    Args:
        settings: What was typed.
        foundation: What is started from.
        wanted: The plan that the settings alone would give; its elements and reference energies are taken.
        train: Training structures.

    Returns:
        The plan of the model to be trained.

    Raises:
        UserError: If a typed setting contradicts the foundation model: nothing that was typed is overridden.
    """
    refuse_contradictions(settings, foundation, wanted)
    plan = foundation.plan
    elements = {name: getattr(wanted, name) for name in ("atomic_numbers", "reference_energies", "conditions")}
    plan = plan.model_copy(update=elements)
    if settings.mean is not None:
        return plan.model_copy(update={"shift": settings.mean})
    if plan.model == "MACE" or "energy" not in plan.outputs:
        return plan  # isolated atoms keep exactly their reference energies
    model = MACE(plan, foundation.model.dtype)
    start_from(foundation, model, keep_readouts=True)
    error = measured_shift(model, train, settings.batch_size)
    return plan if error is None else plan.model_copy(update={"shift": plan.shift + error})


def refuse_contradictions(settings: TrainingSettings, foundation: Foundation, wanted: ModelPlan) -> None:
    """Compare typed settings with the foundation model.

    Raises:
        UserError: If one contradicts it: nothing that was typed is overridden.
    """
    plan = foundation.plan
    if plan.outputs != wanted.outputs:
        raise UserError(
            f"--model={settings.model} does not fit the foundation model {foundation.source}, which is of the kind "
            f"{plan.model}; add --model={plan.model}."
        )
    # which layers a word means depends on the kind of model, which is the foundation's
    words = interaction_plans(settings.model_copy(update={"model": plan.model}))
    wanted = wanted.model_copy(update={"interactions": words})
    for name in sorted(provided(settings) & _DECIDED.keys()):
        for field in _DECIDED[name]:
            asked, has = getattr(wanted, field), getattr(plan, field)
            if not _same(asked, has):
                raise UserError(
                    f"--{name}={getattr(settings, name)} contradicts the foundation model {foundation.source}, whose "
                    f"{field} is {_shown(has)}; remove the flag, or train from scratch without --foundation_model."
                )


def _same(asked: object, has: object) -> bool:
    if isinstance(asked, float) and isinstance(has, float):
        return abs(asked - has) <= 1e-6 * abs(has)  # models in single precision have a rounded cutoff
    return asked == has


def _shown(value: object) -> str:
    if isinstance(value, tuple) and value and hasattr(value[0], "residual"):
        return ", ".join(word_of_interaction(kind) for kind in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@torch.no_grad()
def start_from(foundation: Foundation, model: MACE, keep_readouts: bool) -> None:
    """Give a model the weights of the foundation model, those of its own elements.

    An element the foundation model does not know starts as the one of the nearest atomic number.

    Args:
        foundation: What is started from.
        model: The model; its plan differs from the foundation's in elements and reference energies only.
        keep_readouts: Whether to take the readouts too; otherwise they keep the weights they have.
    """
    old, new = foundation.plan.atomic_numbers, model.plan.atomic_numbers
    rows = torch.tensor([old.index(nearest_element(z, old)) for z in new])
    # these maps are divided by the root of the number of elements
    factor = (len(new) / len(old)) ** 0.5
    source = dict(foundation.model.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith(("readouts.", "dipole_readouts.")) and not keep_readouts:
            continue
        parameter.copy_(_of_elements(name, source[name], rows, factor, model.plan.product_of_all_elements))


def _of_elements(name: str, weight: Tensor, rows: Tensor, factor: float, product_of_all: bool) -> Tensor:
    if name.endswith("embedding"):  # of the atoms themselves, or of elements that radial weights depend on
        return weight[rows] * factor
    if name.endswith(".skip"):
        return weight[:, rows] * factor
    return weight[rows] if ".weights.l" in name and not product_of_all else weight


def nearest_element(number: int, known: Sequence[int]) -> int:
    """Return an element itself or, if it is not known, the known one of the nearest atomic number.

    >>> nearest_element(9, (1, 6, 8))
    8
    """
    return min(known, key=lambda other: (abs(other - number), other))


def measured_shift(model: MACE, train: Dataset, batch_size: int) -> float | None:
    """Return what has to be added to every atom's energy so that the energies are right on average.

    Args:
        model: The model at the start.
        train: Training structures.
        batch_size: How many to evaluate at a time.

    Returns:
        The mean error in eV per atom, None if no structure has an energy.
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


def tell_foundation(settings: TrainingSettings, foundation: Foundation, model: MACE) -> None:
    """Log what will be trained from what."""
    old_energies = foundation.energies
    old, new = set(foundation.plan.atomic_numbers), set(model.plan.atomic_numbers)
    _LOGGER.info("===========FINE-TUNING===========")
    _LOGGER.info("Starting from the foundation model %s", foundation.source)
    if "model" in provided(settings) and settings.model != model.plan.model:
        _LOGGER.warning(
            "--model=%s: the foundation model is of the kind %s, and so is the result, as in mace-torch",
            settings.model,
            model.plan.model,
        )
    if "multiheads_finetuning" not in provided(settings):
        _LOGGER.warning(
            "Fine-tuning on the given structures alone: replay of the foundation model's data "
            "(--multiheads_finetuning=True, the default of mace-torch) is not available yet"
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
    for number, energy in zip(model.plan.atomic_numbers, model.plan.reference_energies, strict=False):
        if number in old_energies and abs(energy - old_energies[number]) > 1e-6:
            _LOGGER.info("E0 of %s: %.6f eV, was %.6f eV", chemical_symbol(number), energy, old_energies[number])
    before, after = foundation.plan.shift, model.plan.shift
    _LOGGER.info("Scale %.6g eV (kept), shift %.6g eV, was %.6g eV", model.plan.scale, after, before)
    if not settings.foundation_model_readout:
        _LOGGER.info("--foundation_model_readout: the readouts start from random weights")
    _LOGGER.info(
        "Trained: all %d parameters with learning rate %g", sum(p.numel() for p in model.parameters()), settings.lr
    )
