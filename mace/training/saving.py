"""When and how the state of a run is put on the disk, also when the disk does not want it."""

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
"""After a state could not be written, how long training goes on before it is tried again."""

FINAL_ATTEMPTS, FINAL_PAUSE = 20, 30.0
"""How often, and seconds after how long, the files at the end of a run are tried again when the disk is full."""

_Weights = Mapping[str, Tensor]


class StateKeeper:
    """Keep the state of a run: on the disk, and in memory as what to go back to.

    Args:
        checkpoints: The files.
        records: The history, whose length belongs to the state.
        plan: Of the model.
        facts: What else belongs to a saved state: hashes of the data, processes, and ``run``, its id.
        minutes: How often a state is due besides those at the ends of epochs.
        writes: Whether this process writes files; the others keep their state in memory alone.
        ownership: Whether the files are this run's own; None where nobody else can have them.
        clock: Seconds since some fixed time.
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
        """Whether a state is to be written now, in the middle of an epoch."""
        return self._writes and (self._clock() >= self._due_at or bool(self._ownership.usurper))

    def keep_weights(self, weights: _Weights, epoch: int, stage: str, best: bool) -> None:
        """Take validated weights, to be written with the next state.

        Args:
            weights: By name; not to be changed any more.
            epoch: Counted from zero.
            stage: ``one`` or ``two``.
            best: Whether they are the best of their stage, so that others still waiting are not.
        """
        if not self._writes:
            return
        if best and not self._checkpoints.keeps_earlier:
            self._waiting = {key: value for key, value in self._waiting.items() if key[0] != stage}
        self._waiting[stage, epoch] = weights

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state and the weights that wait; if the disk does not let it, warn and go on.

        Files of the run that are gone or were replaced by others since the last time are told and written anew.

        Args:
            state: All that is needed to go on, see `mace.training.state.TrainingState.state_dict`.

        Raises:
            UserError: If another process has taken the files of this run; the state is kept beside them.
        """
        state = {**state, **self._facts, "records": self.records.position}
        best = {(stage, epoch): state["best"][stage] for stage, epoch in state["progression"]["best_epochs"].items()}
        if not self._writes:
            self.last_good = encode(state)
            return
        if not self._ownership.look():
            # give way to the process that has taken the files, without losing what was learned
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
            # files that somebody removed or replaced are written anew, and those that are not ours never rotated
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
        write: Writes it.
        what: The file, for messages.
        pause: Waits for some seconds.

    Raises:
        UserError: If it fails for another reason, or there is still no room after `FINAL_ATTEMPTS`.
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
