"""The initial model of a run."""

from __future__ import annotations

import logging
import os

import torch

from mace.finetuning.foundation import Foundation, keeps_readouts, start_from
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.processes.devices import PRECISIONS
from mace.settings import TrainingSettings

_LOGGER = logging.getLogger(__name__)


def model_inputs(settings: TrainingSettings) -> list[str]:
    """Return the files that the initial model depends on, besides the data."""
    named = (settings.foundation_model, settings.init_from, settings.E0s)
    return [name for name in named if isinstance(name, str) and os.path.isfile(name)]


def initial_model(
    plan: ModelPlan, settings: TrainingSettings, device: torch.device, foundation: Foundation | None = None
) -> MACE:
    """Build a model with weights drawn from the seed, or taken from a foundation model if one is given."""
    model = MACE(plan).to_precision(PRECISIONS[settings.default_dtype])
    model.initialize(torch.Generator().manual_seed(settings.seed))
    if foundation is not None:
        start_from(foundation, model, keeps_readouts(settings))
    return model.move(device)


def log_model(model: MACE, settings: TrainingSettings) -> None:
    """Log a description of the model."""
    plan = model.plan
    _LOGGER.info("===========MODEL DETAILS===========")
    hidden = " + ".join(f"{plan.n_channels}x{degree}{'eo'[degree % 2]}" for degree in plan.hidden_l)
    _LOGGER.info("Message passing with %d channels and max_L=%d (%s)", plan.n_channels, plan.hidden_l[-1], hidden)
    _LOGGER.info(
        "%d layers, correlation orders %s (body orders %s), spherical harmonics up to: l=%d",
        plan.n_layers,
        list(plan.correlation),
        [order + 1 for order in plan.correlation],
        plan.l_max,
    )
    _LOGGER.info(
        "%d radial basis functions, cutoff polynomial of order %d", plan.num_radial_basis, plan.num_cutoff_basis
    )
    _LOGGER.info(
        "Radial cutoff: %s A (total receptive field for each atom: %s A)", plan.r_max, plan.r_max * plan.n_layers
    )
    _LOGGER.info("Distance transform for radial basis functions: %s", plan.distance_transform)
    _LOGGER.info("Number of parameters: %d", sum(p.numel() for p in model.parameters()))
    if settings.edge_irreps is not None:
        sent = [plan.channels_of_messages(layer) for layer in range(plan.n_layers)]
        degrees = ", ".join(map(str, plan.l_of_messages(plan.n_layers - 1)))
        _LOGGER.info("Neighbors send %s channels, layer by layer, of the degrees %s that atoms have", sent, degrees)
    if plan.is_directed and not plan.cutoff_after_network:
        _LOGGER.warning(
            "Radial weights that depend on atoms are not zero where the radial functions are: energies jump when an "
            "atom crosses r_max, as in mace-torch; --apply_cutoff=False makes them smooth"
        )
    if not plan.interactions[0].residual and "Residual" in settings.interaction_first:
        why = "so that an isolated atom has exactly its E0" if "energy" in plan.outputs else "as in all models but one"
        _LOGGER.info("--model=%s: the first interaction has no residual, %s", plan.model, why)
