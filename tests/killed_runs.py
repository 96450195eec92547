"""Training runs that are killed at a chosen instant, in processes that start in a fraction of a second.

Run as a program it imports everything once and then forks a process for every line of JSON on its standard input:
``{"folder": ..., "flags": [...], "kill": {"at": event, "stage": "one", "count": 2}}`` or ``{"after": seconds}``.
The answer is a line with the exit status, negative for a signal. ``{"fault": [number, error code]}`` lets one call fail
that changes a file, see `fault_campaign`.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

EVENTS = (
    "step", "record", "encode", "half written", "fsync", "replace", "after replace", "remove others", "evaluate",
    "between best and last",
)  # fmt: skip
"""Instants in training, evaluating and saving; each occurs in both stages."""

STAGE_CHANGE = ("before the change of stage", "after the change of stage")
LBFGS = ("before all structures", "after all structures")
END = ("model",)


class Trainers:
    """The program that forks; to be used in a ``with`` block.

    Args:
        environment: Variables that it has besides those of this process.
    """

    def __init__(self, environment: Mapping[str, str] = {}) -> None:
        self._environment = environment

    def __enter__(self) -> Trainers:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]),
            **self._environment,
        }
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait(30)

    def run(
        self,
        folder: Path,
        flags: list[str],
        environment: dict[str, str] | None = None,
        output: str = "output",
        **kill: Any,
    ) -> int:
        """Run the command in a folder and return its exit status."""
        assert self._program.stdin is not None and self._program.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        order = {
            "folder": str(folder), "flags": flags, "kill": kill, "environment": environment or {}, "output": output
        }  # fmt: skip
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        return int(self._program.stdout.readline())


class _HalfWritten:
    """A file in which something happens when half of what is written has been.

    Args:
        file: The file, opened for writing.
        happens: What happens; gets the name of the event.
    """

    def __init__(self, file: Any, happens: Callable[[str], None]) -> None:
        self._file, self._happens = file, happens
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self) -> _HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._happens("half written")
        self._file.write(data[len(data) // 2 :])


def _install(kill: dict[str, Any]) -> None:
    """Make the process kill itself at an event."""
    from mace.files import durable as durable_file
    from mace.reporting import records
    from mace.runs import finishing
    from mace.training import batch_step, checkpoints, evaluation, lbfgs, saving, state

    states: list[Any] = []
    hits = 0

    def happens(event: str) -> None:
        nonlocal hits
        stage = states[-1].progression.stage if states else "one"
        if event == kill["at"] and kill.get("stage", stage) == stage:
            hits += 1
            if hits == kill.get("count", 1):
                for _ in range(kill.get("times", 1)):
                    os.kill(os.getpid(), kill.get("signal", signal.SIGKILL))

    def before(owner: Any, name: str, event: str, after: str = "") -> None:
        work: Callable[..., Any] = getattr(owner, name)

        def replaced(*arguments: Any, **keywords: Any) -> Any:
            happens(event)
            result = work(*arguments, **keywords)
            happens(after)
            return result

        setattr(owner, name, replaced)

    def remembered(self: Any, *arguments: Any, **keywords: Any) -> None:
        states.append(self)
        create(self, *arguments, **keywords)

    def opened(path: Any, mode: str) -> Any:
        file = builtins.open(path, mode)
        return _HalfWritten(file, happens) if kill["at"] == "half written" else file

    create = state.TrainingState.__init__
    state.TrainingState.__init__ = remembered  # type: ignore[method-assign]
    before(batch_step.BatchStep, "take", "step")
    before(records.RecordWriter, "_append", "record")
    before(checkpoints, "encode", "encode")
    before(saving.CheckpointFolder, "save_last", "between best and last")
    before(saving.CheckpointFolder, "remove_others", "remove others")
    before(durable_file.os, "fsync", "fsync")
    before(durable_file.os, "replace", "replace", "after replace")
    durable_file.open = opened  # type: ignore[attr-defined]
    before(evaluation, "predict", "evaluate")
    before(state.TrainingState, "begin_stage_two", STAGE_CHANGE[0], STAGE_CHANGE[1])
    before(lbfgs.FullBatch, "advance", *LBFGS)
    before(finishing, "save_model", "model")


def _train(order: dict[str, Any]) -> None:
    """Be the command."""
    from mace.cli import run_train

    os.chdir(order["folder"])
    if order["environment"]:
        from mace.processes import team as distributed

        distributed.MEETING_TIME = timedelta(seconds=20)  # the other may be killed before they meet
        os.environ.update(order["environment"])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((null, output, output)):
        os.dup2(target, number)
    if "at" in order["kill"]:
        _install(order["kill"])
    sys.argv = ["mace_run_train", *order["flags"]]
    if "fault" not in order["kill"]:
        run_train.main()
        return
    from fault_campaign import one_call_fails

    with one_call_fails(Path(order["folder"]), *order["kill"]["fault"]):
        run_train.main()


def _wait(child: int, after: float | None) -> int:
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # it is not yet collected, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _warm_up() -> None:
    """Import, compile and tabulate once what every run needs."""
    import io
    import tempfile

    from rich.console import Console
    from training_runs import settings_of, write_water

    from mace.runs.run import run_training

    with tempfile.TemporaryDirectory() as folder:
        data = write_water(Path(folder) / "train.xyz")
        run_training(settings_of(Path(folder), data, "--dry_run"), Console(file=io.StringIO()))


def main() -> None:
    """Fork for every order."""
    _warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 70
            try:
                _train(order)
                status = 0
            except SystemExit as error:
                status = int(error.code or 0)
            except BaseException:  # noqa: BLE001  # the test is told
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(_wait(child, order["kill"].get("after")), flush=True)


if __name__ == "__main__":
    main()
