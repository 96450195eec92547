"""When and how the state of a run is written to disk, and what happens if that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from mace.errors import UserError
from mace.files.durable import free_name, is_full
from mace.files.ownership import Ownership
from mace.model.plan import ModelPlan
from mace.reporting.records import RecordWriter
from mace.training.checkpoints import CheckpointFolder, encode

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")

RETRY_SECONDS = 60.0
"""How long training goes on before a failed write of the state is retried."""

FINAL_ATTEMPTS, FINAL_PAUSE = 20, 30.0
"""Number of attempts, and seconds between them, to write the files at the end of a run while the disk is full."""

_Weights = Mapping[str, Tensor]


class StateKeeper:
    """Keeps the state of a run on disk, and in memory to go back to.

    Args:
        checkpoints: The checkpoint files.
        records: The history of the run; its current length is part of the state.
        plan: Plan of the model.
        facts: Further content of a saved state: hashes of the data, number of processes, and the id ``run``.
        minutes: Interval between saves within an epoch, in addition to those at the ends of epochs.
        writes: Whether this process writes files; otherwise it keeps the state in memory only.
        ownership: Checks that the files belong to this run; None if no other run can use them.
        clock: Returns the seconds since some fixed time.
    """

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        records: RecordWriter,
        plan: ModelPlan,
        facts: Mapping[str, Any],
        minutes: float,
        writes: bool = True,
        ownership: Ownership | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints, self.records, self._plan, self._facts = checkpoints, records, plan, facts
        self._interval, self._writes, self._clock = 60.0 * minutes, writes, clock
        self._ownership = ownership or Ownership(checkpoints.tag)
        self._due_at = clock() + self._interval
        self._waiting: dict[tuple[str, int], _Weights] = {}
        self._failed = False
        self.last_good = b""

    @property
    def run(self) -> str:
        """Id of the run."""
        run: str = self._facts["run"]
        return run

    @property
    def due(self) -> bool:
        """Whether a state should be written now, in the middle of an epoch."""
        return self._writes and (self._clock() >= self._due_at or bool(self._ownership.usurper))

    def keep_weights(self, weights: _Weights, epoch: int, stage: str, best: bool) -> None:
        """Keep validated weights, to be written with the next state.

        Args:
            weights: Weights by name; they must not be changed afterwards.
            epoch: Counted from zero.
            stage: ``one`` or ``two``.
            best: Whether they are the best of their stage; weights of that stage still waiting are then dropped.
        """
        if not self._writes:
            return
        if best and not self._checkpoints.keeps_earlier:
            self._waiting = {key: value for key, value in self._waiting.items() if key[0] != stage}
        self._waiting[stage, epoch] = weights

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state and the waiting weights; if writing fails, warn and go on.

        Files of the run that have been removed or replaced since the last save are reported and written again.

        Args:
            state: Everything needed to resume; see `mace.training.state.TrainingState.state_dict`.

        Raises:
            UserError: If another process has taken over the files of this run; the state is saved in a separate folder.
        """
        state = {**state, **self._facts, "records": self.records.position}
        best = {(stage, epoch): state["best"][stage] for stage, epoch in state["progression"]["best_epochs"].items()}
        if not self._writes:
            self.last_good = encode(state)
            return
        if not self._ownership.look():
            # stop in favor of the process that took over the files, without losing the training so far
            own = self._checkpoints
            folder = free_name(own.folder, f"{own.tag}_displaced-")
            reason = f"{self._ownership.usurper}, and this process, which had them before, has stopped"
            try:
                CheckpointFolder(folder, own.tag).save_last(state)
            except OSError as error:
                raise UserError(f"{reason}; its state could not be written to {folder} ({error.strerror}).") from error
            raise UserError(
                f"{reason}; its state and best weights are in {folder}, and --work_dir=NEW --checkpoints_dir={folder} "
                "--restart_latest goes on from there."
            )
        try:
            # files that were removed or replaced are written again; foreign files are never rotated
            changed = self._checkpoints.changed()
            for path, what in changed.items():
                _LOGGER.warning("%s %s while the run goes on; it is written anew", path, what)
            self._checkpoints.reject(changed)
            if changed:
                self._waiting = {**best, **self._waiting}
            self.records.synchronize()
            for stage, epoch in list(self._waiting):
                self._checkpoints.save_weights(self._waiting[stage, epoch], self._plan, epoch, stage, self.run)
                del self._waiting[stage, epoch]
            self.last_good = self._checkpoints.save_last(state)
        except OSError as error:
            self.last_good = encode(state)
            self._due_at = self._clock() + min(RETRY_SECONDS, self._interval)
            self._failed = True
            _LOGGER.warning(
                "%s: the state cannot be written (%s); training goes on and tries again. %sa run that is stopped now "
                "goes on from the last state on the disk",
                self._checkpoints.last,
                error.strerror or error,
                "Make room: " if is_full(error) else "Until that is mended, ",
            )
            return
        if self._failed:
            _LOGGER.info("%s: the state could be written again", self._checkpoints.last)
        self._failed = False
        self._due_at = self._clock() + self._interval
        self._checkpoints.remove_others(best)


def insist(write: Callable[[], _Result], what: str, pause: Callable[[float], None] = time.sleep) -> _Result:
    """Write a file at the end of a run; while the disk is full, wait and try again.

    Args:
        write: Function that writes the file.
        what: Name of the file in messages.
        pause: Function that waits for the given number of seconds.

    Raises:
        UserError: If it fails for another reason, or the disk is still full after `FINAL_ATTEMPTS`.
    """
    for attempt in range(FINAL_ATTEMPTS):
        try:
            return write()
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not is_full(cause) or attempt == FINAL_ATTEMPTS - 1:
                raise
        _LOGGER.warning("%s: there is no room on the disk; trying again in %.0f s", what, FINAL_PAUSE)
        pause(FINAL_PAUSE)
    raise AssertionError("unreachable")
