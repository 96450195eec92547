"""Processes that work on tasks one after the other; what they return does not depend on how many they are.

A worker is this file run by another Python. It gets pickled tasks on its standard input and answers on its standard
output; when the input ends, as it does when this process is killed, it ends too, whatever it is doing.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, BinaryIO, Generic, TypeVar

from mace.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_LENGTH = struct.Struct("<Q")
_PATIENCE = 10.0
"""Seconds a process has to end by itself."""


class Workers(Generic[Task]):
    """Some processes that work on tasks, inside a ``with`` block; a single one is this process itself.

    Args:
        n_processes: How many.
        describe: Names a task in words, for the message if a process dies over it.
    """

    def __init__(self, n_processes: int, describe: Callable[[Task], str]) -> None:
        self._n_processes, self._describe = n_processes, describe
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers[Task]:
        """Return the object itself; processes start with the first tasks."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.close()
            except OSError:  # it is dead already
                pass
        for process in self._processes:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Do all tasks, which are begun in their order, and yield the index and the result of each as it is done.

        Args:
            work: What is done with a task; a function of a module, which other processes can import.
            tasks: The tasks.

        Raises:
            UserError: What the first of the tasks raised that could not be done; the tasks before it are done.
        """
        if self._n_processes == 1 or len(tasks) <= 1:
            for place, task in enumerate(tasks):
                yield place, work(task)
            return
        while len(self._processes) < min(self._n_processes, len(tasks)):
            self._processes.append(_start())
        pending = iter(enumerate(tasks))
        lock, stop = threading.Lock(), threading.Event()
        answers: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()

        def serve(process: subprocess.Popen[bytes]) -> None:
            """Hand tasks to a process until there are no more."""
            while True:
                with lock:
                    place, task = (-1, None) if stop.is_set() else next(pending, (-1, None))
                if task is None:
                    answers.put((-1, "idle", None))
                    return
                kind, answer = self._ask(process, work, task)
                if kind != "done":
                    stop.set()
                answers.put((place, kind, answer))
                if kind == "dead":
                    answers.put((-1, "idle", None))
                    return

        for process in self._processes:
            threading.Thread(target=serve, args=(process,), daemon=True, name="mace worker").start()
        failures: dict[int, Any] = {}
        busy = len(self._processes)
        try:
            while busy:
                place, kind, answer = answers.get()
                if kind == "idle":
                    busy -= 1
                elif kind == "done":
                    yield place, answer
                else:
                    failures[place] = answer
        finally:
            stop.set()
        if failures:
            raise failures[min(failures)]

    def _ask(self, process: subprocess.Popen[bytes], work: Callable[[Task], Any], task: Task) -> tuple[str, Any]:
        """Let a process do a task, and return ``done`` with the result, or what went wrong with an exception."""
        assert process.stdin is not None and process.stdout is not None
        try:
            _send(process.stdin, (work, task))
            found: tuple[str, Any] = _receive(process.stdout)
            return found
        except (OSError, EOFError):
            return "dead", UserError(f"{self._describe(task)}: {_last_words(process)}")


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """Say how a process ended that should not have."""
    try:
        status = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return "a process no longer answers; run the command again, which goes on from here."
    if status == -signal.SIGKILL:
        how = "was killed, as happens where memory runs out; run the command again with fewer processes (--num_process)"
    elif status < 0:
        how = f"was ended by signal {-status}; run the command again"
    else:
        how = f"ended with status {status}; run the command again"
    return f"a process that prepared these structures {how}, which goes on from here."


def _start() -> subprocess.Popen[bytes]:
    """Start a process that finds the same modules as this one."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def _send(stream: BinaryIO | Any, message: Any) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> Any:
    """Return the next message.

    Raises:
        EOFError: If there is none.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)  # from our own process


def serve() -> None:
    """Do tasks until the standard input ends, and end at once when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    # what a library prints must not get between the answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                tasks.put(_receive(sys.stdin.buffer))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        work, task = tasks.get()
        done: Future[Any] = Future()
        try:
            done.set_result(work(task))
        except Exception as error:  # noqa: BLE001  # the first process raises it
            trace = RuntimeError(f"{error!r} in a worker:\n{traceback.format_exc()}")
            done.set_exception(error if isinstance(error, UserError) else trace)
        problem = done.exception()
        answer = ("done", done.result()) if problem is None else ("failed", problem)
        try:
            _send(answers, answer)
        except OSError:
            os._exit(1)
