"""What a run goes on from: a saved state of the same run, weights of another one, or nothing."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mace.compat.modules import read_original
from mace.errors import UserError
from mace.files.durable import free_name
from mace.model.model_file import check_finite, load_model, misfit
from mace.model.plan import ModelPlan, first_problem
from mace.reporting.records import results_path
from mace.runs.folders import RunFolders, model_files
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder, UnusableCheckpoint, differing_fields, load_safely
from mace.training.state import TrainingState

_LOGGER = logging.getLogger(__name__)

FIXED_SETTINGS = ("E0s", "scaling", "mean", "std", "compute_avg_num_neighbors", "avg_num_neighbors")
"""Settings that became constants of the model when a run was started, and cannot change when it is resumed."""

UNTOLD = ("restart_latest", "take_over", "config", "distributed", "launcher", "quiet")
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
        The state with ``file``, where it is from, and ``unusable``, the files beside it that are not what they should
        be; None to begin anew.

    Raises:
        UserError: If no state can be read, files are of different runs or another program, or the state is of another
            model; the differences are named.
    """
    if not settings.restart_latest:
        return None
    if not checkpoints.states():
        _refuse_original(checkpoints)
        _LOGGER.info("--restart_latest: there is no %s yet; starting from the beginning", checkpoints.last)
        return None
    saved, path, unusable = _read_state(checkpoints, device)
    saved = _with_best(saved, path, checkpoints, unusable, settings)
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
    return {**saved, "file": str(path), "unusable": list(unusable)}


def _refuse_original(checkpoints: CheckpointFolder) -> None:
    """Make sure that a folder without a state is not that of a run of mace-torch.

    Raises:
        UserError: If it is.
    """
    for path in checkpoints.of_epochs():
        try:
            load_safely(path)
        except UnusableCheckpoint:
            if _is_original(path):
                raise UserError(
                    f"--restart_latest: {path} is a checkpoint of mace-torch, whose runs cannot be continued; to start "
                    f"from its weights convert it with 'mace_import_model {path} start.model' (it says what else it "
                    "needs) and use --init_from=start.model, or remove --restart_latest to start afresh."
                ) from None


def _is_original(path: Path) -> bool:
    """Tell whether a file is a checkpoint of mace-torch."""
    try:
        return read_original(path).tree is None
    except UserError:
        return False


def _read_state(checkpoints: CheckpointFolder, device: torch.device) -> tuple[dict[str, Any], Path, dict[Path, str]]:
    """Read the last complete state that can be used, and compare it with the one before.

    Returns:
        The state, its file, and why others cannot be used.
    """
    try:
        saved, path, unusable = checkpoints.load_last(device)
    except UnusableCheckpoint as error:
        best = ", ".join(str(file) for file in checkpoints.of_epochs())
        hint = f"start from the best weights ({best}) with --init_from under another --name, or " if best else ""
        raise UserError(f"{str(error).rstrip('.')}; {hint}move these files away to start afresh.") from error
    for problem in unusable.values():
        _LOGGER.warning("%s Going on from the state before, %s", problem, path)
    if path == checkpoints.last and os.path.lexists(checkpoints.previous):
        try:
            before = checkpoints.load_state(checkpoints.previous)
        except UnusableCheckpoint as error:
            _LOGGER.warning("%s It is not needed: %s can be read", error, path)
            return saved, path, {checkpoints.previous: str(error)}
        _require_same_run(saved, path, before, checkpoints.previous)
        places = [(s["progression"]["epoch"], s["progression"].get("structures_done", 0)) for s in (saved, before)]
        if places[1] > places[0]:
            _LOGGER.warning(
                "%s is older (epoch %d) than %s (epoch %d), as if the two had been exchanged; going on from it",
                path, places[0][0], checkpoints.previous, places[1][0],
            )  # fmt: skip
    return saved, path, unusable


def _require_same_run(saved: Mapping[str, Any], path: Path, other: Mapping[str, Any], other_path: Path) -> None:
    """Make sure that two files are of the same run.

    Raises:
        UserError: If they are not.
    """
    one, two = saved["run"], other["run"]
    if None not in (one, two) and one != two:
        raise UserError(
            f"{other_path}: this is of another run ({two}, not {one} as {path}); move away the file that does not "
            "belong there, or choose another --name to start afresh."
        )


def _with_best(
    saved: dict[str, Any],
    path: Path,
    checkpoints: CheckpointFolder,
    unusable: dict[Path, str],
    settings: TrainingSettings,
) -> dict[str, Any]:
    """Complete the best weights of a state by their files, and check these.

    Returns:
        The state; best weights that are nowhere are lost, and the next ones of their stage are the best.

    Raises:
        UserError: If files are of another run, or no best weights are left of a finished run.
    """
    progression, best = {"lost": {}, **saved["progression"]}, dict(saved["best"])
    for stage, epoch in list(progression["best_epochs"].items()):
        try:
            weights = checkpoints.load_weights(epoch, stage)
        except UnusableCheckpoint as error:
            unusable[checkpoints.of_epoch(epoch, stage)] = str(error)
            if stage in best:
                _LOGGER.warning("%s It is written anew from %s", error, path)
                continue
            _LOGGER.warning("%s The best weights of stage %s are lost", error, stage)
            progression["lost"] = {**progression["lost"], stage: epoch}
            progression["best_epochs"] = {s: e for s, e in progression["best_epochs"].items() if s != stage}
            if (stage == "two") == progression["stage_two"]:
                progression |= {"lowest_loss": math.inf, "evaluations_without_gain": 0}
            else:
                progression["lowest_loss_of_stage_one"] = math.inf
        else:
            _require_same_run(saved, path, weights, checkpoints.of_epoch(epoch, stage))
            best.setdefault(stage, weights["weights"])
    goes_on = not progression["finished"] or settings.patience > settings_of(saved).patience
    goes_on = goes_on and progression["epoch"] < settings.max_num_epochs
    if not goes_on and not progression["best_epochs"] and progression["lost"]:
        problems = "; ".join(problem.rstrip(".") for problem in unusable.values())
        raise UserError(f"{problems}: the run is finished, and no other file has its best weights; put the file back.")
    return {**saved, "progression": progression, "best": best}


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


def make_way(
    settings: TrainingSettings, checkpoints: CheckpointFolder, folders: RunFolders, saved: Mapping[str, Any] | None
) -> None:
    """Move files away that would be mistaken for those of this run.

    Args:
        settings: Of the run.
        checkpoints: Where states are.
        folders: Of the run.
        saved: The state from which it goes on; None if it begins anew.

    Raises:
        UserError: If a file cannot be moved; nothing is lost then.
    """
    try:
        checkpoints.remove_unfinished()
        if saved is None:
            _begin_anew(settings, checkpoints, folders)
        else:
            checkpoints.reject(saved["unusable"])
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoints.folder}: files of an earlier run cannot be moved out of the way "
            f"({error.strerror or error}); see to that, or choose another --name."
        ) from error


def _begin_anew(settings: TrainingSettings, checkpoints: CheckpointFolder, folders: RunFolders) -> None:
    """Move all files of an earlier run of the same name and seed away, so that they never mix with the new one's."""
    models = [
        file
        for stage in ("one", "two")
        for file in model_files(settings, folders, stage)
        if seed_of_model(file) in (None, settings.seed)
    ]
    had_checkpoints, had_models = bool(checkpoints.files()), any(model.exists() for model in models)
    target = checkpoints.set_aside(models)
    if had_checkpoints:
        _LOGGER.warning("An earlier run had the same name and seed; its checkpoints were moved to %s", target)
    if had_models:
        _LOGGER.warning("The models of an earlier run of the same name were moved to %s", target)
    results = results_path(folders.results, settings.name, settings.seed)
    if results.exists():
        moved = free_name(results.parent, f"{results.stem}_earlier-", results.suffix)
        results.rename(moved)
        _LOGGER.warning("The results of the earlier run were moved to %s", moved)


def seed_of_model(path: Path) -> int | None:
    """Return the seed of the run that wrote a model file; None if there is no such file or it does not tell."""
    try:
        return load_model(path).metadata.seed
    except UserError:
        return None


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
