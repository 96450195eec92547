"""The state from which a run resumes, and files of earlier runs that are in its way."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mace.compat.modules import read_original
from mace.errors import UserError
from mace.files.durable import free_name
from mace.model.model_file import load_model
from mace.model.plan import ModelPlan
from mace.processes.team import Team
from mace.reporting.records import results_path
from mace.runs.folders import RunFolders, model_files
from mace.settings import TrainingSettings
from mace.training.checkpoints import CheckpointFolder, UnusableCheckpoint, differing_fields, load_safely
from mace.training.stages import total_epochs
from mace.training.state import TrainingState

_LOGGER = logging.getLogger(__name__)

FIXED_SETTINGS = ("E0s", "scaling", "mean", "std", "compute_avg_num_neighbors", "avg_num_neighbors")
"""Settings that became constants of the model when the run started and cannot change when it is resumed."""

UNTOLD = ("restart_latest", "take_over", "config", "devices", "distributed", "launcher", "quiet")
"""Settings whose changes do not affect the run and are not reported when it is resumed."""


def find_state(settings: TrainingSettings, checkpoints: CheckpointFolder, plan: ModelPlan) -> dict[str, Any] | None:
    """Read the state to resume from, if resuming is requested and there is a state.

    Args:
        settings: The current settings.
        checkpoints: The checkpoints of the run.
        plan: Plan of the model that would be built without a saved state.

    Returns:
        The state, with its path as ``file`` and the list of checkpoints that could not be used as ``unusable``; None
        to start from the beginning.

    Raises:
        UserError: If no state can be read, files belong to different runs or another program, or the state is that of
            a different model; the message names the differences.
    """
    if not settings.restart_latest:
        return None
    if not checkpoints.states():
        for path in checkpoints.of_epochs():
            if _is_original(path):
                raise UserError(
                    f"--restart_latest: {path} is a checkpoint of mace-torch, whose runs cannot be continued; to start "
                    f"from its weights convert it with 'mace_import_model {path} start.model' (it says what else it "
                    "needs) and use --init_from=start.model, or remove --restart_latest to start afresh."
                )
        _LOGGER.info("--restart_latest: there is no %s yet; starting from the beginning", checkpoints.last)
        return None
    saved, path, unusable = _read_state(checkpoints)
    saved = _with_best(saved, path, checkpoints, unusable, settings)
    started_with = ModelPlan.model_validate_json(saved["plan"])
    before = settings_of(saved)
    # the state of the schedule-free optimizer has a different meaning from that of the others
    optimizer = ["optimizer"] if "schedulefree" in (before.optimizer, settings.optimizer) else []
    corrections = ["lora", "lora_rank", "lora_alpha"] if before.lora or settings.lora else []
    fixed = _changes(before, settings, [*FIXED_SETTINGS, *optimizer, *corrections])
    fixed += _changes_of_heads(before, settings)
    if fields := differing_fields(started_with, plan) + fixed:
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


def require_one_state(team: Team, checkpoints: CheckpointFolder) -> None:
    """Check that the state from which all resume is not on the disk of another machine than that of the first process.

    Launchers may put the first process on another machine than the last time. If only that machine has the folder of
    the run, all would begin anew, or from an older state.

    Raises:
        UserError: If another process sees a state that is not the one the first process sees.
    """
    try:
        with open(checkpoints.last, "rb") as file:  # network file systems tell what is true now of open files only
            found = os.fstat(file.fileno())
        mark = (found.st_size, found.st_mtime_ns)
    except OSError:
        mark = None
    of_all = team.gather((socket.gethostname(), mark))
    first, expected = of_all[0]
    for rank, (machine, seen) in enumerate(of_all):
        if seen not in (None, expected):
            has = "has none" if expected is None else "has another one"
            raise UserError(
                f"--restart_latest: process {rank} on {machine} finds a state of the run in {checkpoints.last}, but "
                f"process 0 on {first} {has}; put the folder of the run where all machines see it, or move the right "
                f"state to {first}."
            )


def _is_original(path: Path) -> bool:
    """Return whether a file is a checkpoint of mace-torch."""
    try:
        load_safely(path)
    except UnusableCheckpoint:
        try:
            return read_original(path).tree is None
        except UserError:
            return False
    return False


def _read_state(checkpoints: CheckpointFolder) -> tuple[dict[str, Any], Path, dict[Path, str]]:
    """Read the last usable complete state, and compare it with the previous one.

    Returns:
        The state, its file, and why others cannot be used.
    """
    try:
        saved, path, unusable = checkpoints.load_last()
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
    """Check that two files belong to the same run.

    Raises:
        UserError: If they do not.
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
    """Complete the best weights of a state from their files, and check these files.

    Returns:
        The state; best weights that are found nowhere are recorded as lost, and their stage has no best epoch.

    Raises:
        UserError: If files belong to another run, or no best weights are left of a finished run.
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
    goes_on = goes_on and progression["epoch"] < total_epochs(settings)
    if not goes_on and not progression["best_epochs"] and progression["lost"]:
        problems = "; ".join(problem.rstrip(".") for problem in unusable.values())
        raise UserError(f"{problems}: the run is finished, and no other file has its best weights; put the file back.")
    return {**saved, "progression": progression, "best": best}


def settings_of(saved: Mapping[str, Any]) -> TrainingSettings:
    """Read the settings of a saved state; settings that no longer exist are left out."""
    found, known = json.loads(saved["settings"]), TrainingSettings.model_fields
    # defaults were saved too, but nobody typed them
    return TrainingSettings.model_validate({k: v for k, v in found.items() if k in known and v != known[k].default})


def _changes(before: TrainingSettings, settings: TrainingSettings, names: list[str]) -> list[str]:
    return [
        f"{name} {getattr(before, name)} -> {getattr(settings, name)}"
        for name in names
        if getattr(before, name) != getattr(settings, name)
    ]


def _changes_of_heads(before: TrainingSettings, settings: TrainingSettings) -> list[str]:
    """List changed constants of heads that exist in both; other heads are a difference of the models."""

    def constant(of: TrainingSettings, head: str, field: str) -> Any:
        own = getattr((of.heads or {})[head], field)
        return getattr(of, field) if own is None else own

    return [
        f"{field} of head {name} {constant(before, name, field)} -> {constant(settings, name, field)}"
        for name in settings.heads or {}
        if name in (before.heads or {})
        for field in ("E0s", "scaling", "mean", "std")
        if constant(before, name, field) != constant(settings, name, field)
        and (getattr(before, field) == getattr(settings, field))  # else this is said already
    ]


def resume(state: TrainingState, saved: dict[str, Any], digests: Mapping[str, str], processes: int) -> None:
    """Resume from a saved state and log what is different now.

    Args:
        state: The training state to restore.
        saved: The saved state.
        digests: Hashes of the current data files.
        processes: Current number of processes.
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
    changed = [path for path, digest in digests.items() if saved["data"].get(path, digest) != digest]
    if state.lbfgs is not None and (changes or changed):
        state.lbfgs.restart()
    for path in changed:
        _LOGGER.warning("%s has changed on the disk since the run was stopped; it goes on with the new data", path)


def make_way(
    settings: TrainingSettings, checkpoints: CheckpointFolder, folders: RunFolders, saved: Mapping[str, Any] | None
) -> None:
    """Move away files that would be mistaken for those of this run.

    Args:
        settings: Settings of the run.
        checkpoints: The checkpoints of the run.
        folders: Folders of the run.
        saved: The state from which it resumes; None if it starts from the beginning.

    Raises:
        UserError: If a file cannot be moved; nothing is lost in that case.
    """
    try:
        checkpoints.remove_unfinished()
        if saved is not None:
            checkpoints.reject(saved["unusable"])
            return
        # keep files of an earlier run with the same name and seed apart from those of the new one
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
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoints.folder}: files of an earlier run cannot be moved out of the way "
            f"({error.strerror or error}); see to that, or choose another --name."
        ) from error


def seed_of_model(path: Path) -> int | None:
    """Return the seed of the run that wrote a model file; None if there is no such file or it does not say."""
    try:
        return load_model(path).metadata.seed
    except UserError:
        return None
