"""What a run goes on from: a saved state of the same run, weights of another one, or nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mace.errors import UserError
from mace.model.model_file import check_finite, load_model, misfit
from mace.model.plan import ModelPlan, first_problem
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder, differing_fields, load_safely
from mace.training.folders import RunFolders, model_files
from mace.training.records import results_path
from mace.training.state import TrainingState

_LOGGER = logging.getLogger(__name__)

FIXED_SETTINGS = ("E0s", "scaling", "mean", "std", "compute_avg_num_neighbors", "avg_num_neighbors")
"""Settings that became constants of the model when a run was started, and cannot change when it is resumed."""

UNTOLD = ("restart_latest", "config", "distributed", "launcher", "quiet")
"""Settings whose change changes nothing of the run."""

CONSTANTS = ("avg_num_neighbors", "scale", "shift")
"""Constants of a model that weights were trained with, and without which they mean something else."""


def find_state(
    settings: TrainingSettings, checkpoints: CheckpointFolder, plan: ModelPlan, device: torch.device
) -> dict[str, Any] | None:
    """Read the state to go on from, if that is asked for and there is one.

    Args:
        settings: The present settings.
        checkpoints: Where states are.
        plan: What the model would be without a state.
        device: Where tensors go.

    Returns:
        The state, or None to begin anew.

    Raises:
        UserError: If no state can be read, or it is of another model; the differences are named.
    """
    if not settings.restart_latest:
        return None
    if not checkpoints.last.exists() and not checkpoints.previous.exists():
        _LOGGER.info("--restart_latest: there is no %s yet; starting from the beginning", checkpoints.last)
        return None
    saved, path, problem = checkpoints.load_last(device)
    if problem is not None:
        _LOGGER.warning("%s Going on from the state before, %s", problem, path)
    started_with = ModelPlan.model_validate_json(saved["plan"])
    if fields := differing_fields(started_with, plan) + _fixed_changes(saved, settings):
        raise UserError(
            f"{path}: the run was started with another model ({'; '.join(fields)}); set these back to go on "
            "with it, or choose another --name to start afresh."
        )
    if started_with != plan:
        _LOGGER.warning(
            "The data now give other reference energies, scale or number of neighbors; the model keeps those it was "
            "started with"
        )
    if settings.init_from is not None:
        _LOGGER.info("--init_from has no effect on a run that is resumed")
    return {**saved, "file": str(path)}


def settings_of(saved: Mapping[str, Any]) -> TrainingSettings:
    """Read the settings of a saved state; those that do not exist any more are left out."""
    found = json.loads(saved["settings"])
    return TrainingSettings.model_validate({k: v for k, v in found.items() if k in TrainingSettings.model_fields})


def _fixed_changes(saved: Mapping[str, Any], settings: TrainingSettings) -> list[str]:
    """Describe what cannot change in a resumed run, besides the shape of the model."""
    before = settings_of(saved)
    names = list(FIXED_SETTINGS)
    if "schedulefree" in (before.optimizer, settings.optimizer):
        names.append("optimizer")  # its state means something else than that of the others
    return _changes(before, settings, names)


def _changes(before: TrainingSettings, settings: TrainingSettings, names: list[str]) -> list[str]:
    return [
        f"{name} {getattr(before, name)} -> {getattr(settings, name)}"
        for name in names
        if getattr(before, name) != getattr(settings, name)
    ]


def resume(state: TrainingState, saved: dict[str, Any], digests: Mapping[str, str], processes: int) -> None:
    """Take up a saved state and say what is different now.

    Args:
        state: What is trained.
        saved: The saved state.
        digests: Hashes of the present data files.
        processes: How many train now.
    """
    before = settings_of(saved)
    names = [name for name in TrainingSettings.model_fields if name not in UNTOLD]
    changes = _changes(before, state.settings, names)
    if saved["processes"] != processes:
        changes.append(f"processes {saved['processes']} -> {processes}")
    state.resume(saved, before)
    progression = state.progression
    place = f" after {progression.structures_done} structures" if progression.structures_done else ""
    _LOGGER.info("Restarting from %s at epoch %d%s", saved["file"], progression.epoch, place)
    if changes:
        _LOGGER.info("continuing with: %s", ", ".join(changes))
    for path, digest in digests.items():
        if saved["data"].get(path, digest) != digest:
            _LOGGER.warning("%s has changed on the disk since the run was stopped; it goes on with the new data", path)


def begin_anew(settings: TrainingSettings, checkpoints: CheckpointFolder, folders: RunFolders) -> None:
    """Move all files of an earlier run of the same name away, so that they never mix with the new one's."""
    models = [file for stage in ("one", "two") for file in model_files(settings, folders, stage)]
    had_checkpoints, had_models = bool(checkpoints.files()), any(model.exists() for model in models)
    target = checkpoints.set_aside(models)
    if had_checkpoints:
        _LOGGER.warning("An earlier run had the same name and seed; its checkpoints were moved to %s", target)
    if had_models:
        _LOGGER.warning("The models of an earlier run of the same name were moved to %s", target)
    results = results_path(folders.results, settings.name, settings.seed)
    if results.exists():
        number = 1
        while (moved := results.with_name(f"{results.stem}_earlier-{number}{results.suffix}")).exists():
            number += 1
        results.rename(moved)
        _LOGGER.warning("The results of the earlier run were moved to %s", moved)


class StartingWeights:
    """The weights of another run, from a model file or a checkpoint.

    Args:
        path: A ``.model`` file, ``<tag>_last.pt`` or ``<tag>_epoch-<n>.pt``.

    Raises:
        UserError: If it is neither, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                is_archive = file.read(4) == b"PK\x03\x04"
        except OSError as error:
            raise UserError(f"--init_from: {path} cannot be opened ({error.strerror or error}).") from error
        self.plan: ModelPlan
        self.weights: dict[str, Tensor]
        if is_archive:
            self.plan, self.weights = _weights_of_checkpoint(path)
        else:
            model = load_model(path).model
            self.plan, self.weights = model.plan, model.state_dict()
        if self.plan.heads:
            raise UserError(
                f"--init_from: {path} has several heads ({', '.join(self.plan.head_names)}), and training goes on from "
                "one; use --foundation_model and --foundation_head instead."
            )

    def adapted(self, plan: ModelPlan) -> ModelPlan:
        """Return a plan with the constants that belong to the weights.

        Args:
            plan: Of the new run.

        Returns:
            The same with scale, shift and number of neighbors of the weights; its reference energies stay.

        Raises:
            UserError: If the weights are of a model of another shape.
        """
        if fields := differing_fields(self.plan, plan):
            hint = " (name all elements with --atomic_numbers)" if any("atomic_numbers" in f for f in fields) else ""
            raise UserError(
                f"--init_from: {self.path} has another model than the settings ({'; '.join(fields)}); set these alike"
                f"{hint}, or start without it."
            )
        constants = {name: getattr(self.plan, name) for name in CONSTANTS}
        for name, value in constants.items():
            if getattr(plan, name) != value:
                _LOGGER.info("%s: %s stays as in %s, instead of %s", name, value, self.path, getattr(plan, name))
        return plan.model_copy(update=constants)


def _weights_of_checkpoint(path: Path) -> tuple[ModelPlan, dict[str, Tensor]]:
    """Read plan and weights, those that would have been validated, out of a checkpoint.

    A right checksum says that the bytes are those that were written, not what wrote them.

    Raises:
        UserError: If it cannot be read, or its content is not that of a run.
    """
    try:
        content = load_safely(path)
        plan = ModelPlan.model_validate_json(content["plan"])
        weights = dict(content["weights"])
        if content.get("average") is not None:
            weights = dict(zip(weights, content["average"]["averages"], strict=True))
        if problem := misfit(plan, {name: tuple(weight.shape) for name, weight in weights.items()}):
            raise UserError(f"--init_from: the weights in {path} do not fit the plan beside them: {problem}.")
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"--init_from: in {path} {first_problem(error)}; name another file.") from error
    except (AssertionError, AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"--init_from: {path} is no checkpoint of a run ({type(error).__name__}: {str(error)[:100]}); name another "
            "file."
        ) from error
    check_finite(weights, path, "name another file for --init_from")
    return plan, weights
