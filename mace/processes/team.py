"""The processes of a run: sharing the work, summing gradients, agreeing on decisions, and ending together.

Every process holds all weights and knows all structures. A step uses ``size * batch_size`` structures, of which each
process computes a share; gradients are summed over the processes, so all update their weights in the same way.
Decisions are based on numbers that all processes share; only the first process writes files.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from mace.errors import RunInterrupted, UserError
from mace.processes.devices import device_count, device_identity, is_out_of_memory, synchronize, using
from mace.processes.launch import Launch
from mace.processes.watchdog import INTERVAL, Watchdog

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MEETING_TIME = timedelta(minutes=10)
"""How long processes wait for each other at the start."""

LONGEST_WAIT = timedelta(minutes=60)
"""How long processes wait for what others compute before torch takes that for an error; NCCL then ends the program
without a word. Processes that are gone are noticed long before, and a step may wait ten minutes for a slow disk."""

_BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""What adds up numbers on devices; torch for AMD has RCCL under the name of NVIDIA's."""

_TELLING_TIME = 3.0
"""Seconds for telling the others of an error."""


class LostProcess(UserError):
    """Another process has ended or cannot be reached."""


class Team:
    """The processes of a run; this base class is a run of a single process.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
    """

    rank, size = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, structures: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return the structures of a batch that this process computes; all processes get about as many edges.

        Args:
            structures: Indices of the structures of the batch.
            edges: Number of edges of each structure.
        """
        return structures

    def add_up(self, parameters: Sequence[nn.Parameter], numbers: Tensor, kind: str) -> Tensor:
        """Sum the gradients over all processes, in place, together with some numbers.

        Args:
            parameters: Parameters with the gradients of this process's share.
            numbers: Numbers to sum, ``[any]``.
            kind: The loss they are gradients of, which determines the parameters that have one.

        Returns:
            The sums of the numbers, ``[any]``.
        """
        return numbers

    def gather(self, item: _Item) -> list[_Item]:
        """Return the items of all processes, in order of rank."""
        return [item]

    def once(self, compute: Callable[[], _Result]) -> _Result:
        """Compute something in the first process, for all.

        Raises:
            UserError: If it does there; all processes raise it.
        """
        found, problem = None, None
        if self.is_first:
            try:
                found = compute()
            except UserError as error:
                problem = error
        found, told = self.broadcast((found, problem and str(problem)))
        if told is not None:
            raise problem or UserError(told)
        return found  # type: ignore[return-value]  # that of the others is ignored

    def broadcast(self, item: _Item) -> _Item:
        """Return the item of the first process."""
        return item

    def any(self, condition: bool) -> bool:
        """Return whether a condition holds in at least one process."""
        return any(self.gather(condition))

    def together(self) -> None:
        """Wait until all processes have reached this point.

        The first one may get there late, as it alone writes files. If the others ended before, they would be taken for
        lost, and launchers end a process soon after another one.
        """

    def unless_lost(self, work: Callable[[], _Result]) -> _Result:
        """Do work that waits for what other processes compute, as long as there are all of them."""
        return work()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let files be written inside a ``with`` block without haste, even if another process has failed meanwhile."""
        yield

    def require_agreement(self, what: str, facts: Mapping[str, str]) -> None:
        """Check that all processes were given the same input, before they work on it together.

        Args:
            what: What the facts are about, for the message.
            facts: Values of this process, by name.

        Raises:
            UserError: If the values of any processes differ; all processes raise the same error.
        """
        of_all = self.gather(dict(facts))
        for rank, others in enumerate(of_all):
            names = [name for name in {**of_all[0], **others} if of_all[0].get(name) != others.get(name)]
            if names:
                shown = ", ".join(
                    f"{n} is {_short(others.get(n))} instead of {_short(of_all[0].get(n))}" for n in names
                )
                raise UserError(
                    f"Process {rank} has other {what} than process 0 ({shown}); start all with the same command and "
                    "the same files."
                )

    @contextmanager
    def explaining(self, ending: Callable[[], None]) -> Iterator[None]:
        """Report a lost process as such if its loss makes the launcher send a signal inside a ``with`` block.

        Args:
            ending: Called once another process is known to be lost; may ignore further signals.
        """
        yield

    def leave(self) -> None:
        """Disconnect from the other processes, once all have reached this point."""

    def __enter__(self) -> Team:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End together with the other processes."""


class DistributedTeam(Team):
    """A team of several processes.

    Args:
        launch: The place of this process among them.
        device: ``cpu``, or a CUDA or XPU device of this process's own.

    Raises:
        UserError: If the others cannot be reached, or two processes have the same device.
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.rank, self.size, self._device = launch.rank, launch.size, device
        self._used: dict[str, list[bool]] = {}
        hosts_store = launch.rank == 0 and not launch.has_store

        def meet() -> tuple[TCPStore, TCPStore]:
            store = TCPStore(launch.address, launch.port, launch.size, hosts_store, MEETING_TIME)
            # what processes say to each other stays on the CPU, where it does not wait for a device
            dist.init_process_group(
                "gloo",
                store=PrefixStore("mace", store),
                rank=launch.rank,
                world_size=launch.size,
                timeout=LONGEST_WAIT,
            )
            # a separate connection: the watchdog must communicate while the other one waits
            return store, TCPStore(launch.address, launch.port, launch.size, False, MEETING_TIME, False)

        try:
            store, other = heeding_signals(meet)
        except RuntimeError as error:
            raise LostProcess(
                f"process {launch.rank} of {launch.size} did not meet the others at {launch.address}:{launch.port} "
                f"({_first_line(error)}); check that all were started and that the port is free and open."
            ) from error
        self._store = store  # kept: the first process serves the others as long as it lives
        self._watchdog = Watchdog(other, launch.rank, launch.size)
        self._watchdog.watch(
            self.gather(f"{socket.gethostname()}, process id {os.getpid()}"),
            f"{launch.address}:{launch.port}" if launch.has_store else None,
        )
        self._group = None if device.type == "cpu" else self._connect_devices()

    def _connect_devices(self) -> dist.ProcessGroup:
        """Connect the devices, for the sums of gradients.

        A communicator is made with the first sum and needs memory of the device, of which a step may leave none.

        Raises:
            UserError: If two processes have the same device.
        """
        host, identity = socket.gethostname(), device_identity(self._device)
        every = self.gather((host, identity))
        for rank, own in enumerate(every):
            first = every.index(own)
            if first != rank and own[1] is not None:
                raise UserError(
                    f"Processes {first} and {rank} have the same device, {self._device.type} {own[1]} of {own[0]}; "
                    "start no more processes than there are devices, and let each see one of its own or all."
                )
        backend = _BACKENDS[self._device.type]

        def connect() -> dist.ProcessGroup:
            with using(self._device):
                group = dist.new_group(timeout=LONGEST_WAIT, backend=backend)
                dist.all_reduce(torch.ones(1, device=self._device), group=group)
                synchronize(self._device)
            return group

        try:
            return self.unless_lost(connect)
        except RuntimeError as error:
            raise UserError(
                f"The devices cannot be connected by {backend.upper()} ({_first_line(error)[:200]}); NCCL_DEBUG=INFO "
                "makes it say more, and a single process needs no connection."
            ) from error

    def share(self, structures: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Return this process's share; structures are dealt out in order of their size."""
        return structures[np.argsort(-edges, kind="stable")[self.rank :: self.size]]

    def add_up(self, parameters: Sequence[nn.Parameter], numbers: Tensor, kind: str) -> Tensor:
        """Sum gradients and numbers in a single message.

        All gradients are there at once, at the end of one backward pass, so there is nothing to send earlier; and one
        message of some megabytes fills the connection, which many small ones do not. A device does it in the order of
        its other work, and nobody waits for it here.
        """
        if kind not in self._used:
            mask = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self._device)
            self._call(lambda: dist.all_reduce(mask, op=dist.ReduceOp.MAX, group=self._group))
            self._used[kind] = [value > 0.0 for value in self.unless_lost(mask.tolist)]
        moved = [p for p, used in zip(parameters, self._used[kind], strict=True) if used]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
        flat = torch.cat([part.reshape(-1) for part in parts] + [numbers.to(parameters[0].dtype)])
        self._call(lambda: dist.all_reduce(flat, group=self._group))
        place = 0
        for parameter in moved:
            parameter.grad = flat[place : place + parameter.numel()].view_as(parameter)
            place += parameter.numel()
        return flat[place:]

    def gather(self, item: _Item) -> list[_Item]:
        """Return the items of all processes, in order of rank."""
        items: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(items, item))
        return items

    def broadcast(self, item: _Item) -> _Item:
        """Return the item of the first process."""
        items = [item if self.is_first else None]
        self._call(lambda: dist.broadcast_object_list(items, src=0, device=torch.device("cpu")))
        return items[0]  # type: ignore[return-value]  # no longer None

    def _call(self, collective: Callable[[], Any]) -> None:
        """Call a collective operation, in which all processes take part.

        Raises:
            LostProcess: If one of them does not take part.
        """
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None

        def work() -> None:
            # device and stream are set per thread; of the latter, the result is to be a part
            with using(self._device), torch.cuda.stream(stream):
                collective()

        try:
            self.unless_lost(work)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            unknown = f"another process has ended or cannot be reached ({_first_line(error)[:120]})"
            raise self._lost(self.unless_lost(self._watchdog.lost) or unknown) from error

    def together(self) -> None:
        """Wait until all processes have reached this point."""
        self._call(dist.barrier)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Tell the watchdog that it should not hurry."""
        self._watchdog.writes = True
        try:
            yield
        finally:
            self._watchdog.writes = False

    def unless_lost(self, work: Callable[[], _Result]) -> _Result:
        """Do work that waits for other processes, as long as there are all of them.

        Nothing else ends it: a connection to a machine that was cut off or switched off looks like one that is idle.

        Raises:
            LostProcess: Once one of them is known to be gone.
        """
        result, found = _in_a_thread(work), self._watchdog.found
        either: list[Future[Any]] = [result, found]
        wait(either, return_when=FIRST_COMPLETED)
        if not result.done():
            raise self._lost(found.result())
        return result.result()

    def _lost(self, reason: str) -> LostProcess:
        return LostProcess(
            f"{reason}; the run ended, and the same command with --restart_latest goes on from the last saved state, "
            "if there is one."
        )

    @contextmanager
    def explaining(self, ending: Callable[[], None]) -> Iterator[None]:
        """Name the lost process: launchers end all others when one is gone, so the signal alone does not say which."""
        try:
            try:
                yield
            except RunInterrupted as error:
                if reason := self.unless_lost(self._watchdog.lost):
                    raise self._lost(reason) from error
                raise
        except LostProcess:
            ending()
            raise

    def leave(self) -> None:
        """Disconnect from the other processes, once all have reached this point."""
        self.together()
        self._watchdog.leave()
        with using(self._device):
            dist.destroy_process_group()
        # the process that serves the store leaves last
        if self.is_first:
            time.sleep(0.2)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Report an error to the other processes; if several have the same error, only one shows it."""
        if error is None or self._watchdog.left:
            return
        status = error.status if isinstance(error, RunInterrupted) else 2
        text = _first_line(error).rstrip(".")
        try:
            first = _in_a_thread(lambda: self._watchdog.end(text, status)).result(_TELLING_TIME)
        except TimeoutError:  # who would tell them is out of reach
            first = True
        if self.is_first:
            time.sleep(3 * INTERVAL)  # this process serves the store, from which the others must still read the error
        self._watchdog.stop()
        if isinstance(error, RunInterrupted):
            first = self.is_first
        if not first and isinstance(error, (UserError, RunInterrupted)) and not isinstance(error, LostProcess):
            raise SystemExit(status) from None


def heeding_signals(work: Callable[[], _Result]) -> _Result:
    """Run work that may wait long in native code in a separate thread, so that this one can react to signals."""
    return _in_a_thread(work).result()


def _in_a_thread(work: Callable[[], _Result]) -> Future[_Result]:
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="mace collective").start()
    return future


def _short(value: str | None) -> str:
    return "missing" if value is None else value if len(value) <= 40 else f"{value[:37]}..."


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def make_team(launch: Launch | None, device: torch.device) -> Team:
    """Connect to the other processes, if there are any."""
    return Team() if launch is None or launch.size == 1 else DistributedTeam(launch, device)


def own_device(name: str, launch: Launch | None) -> str:
    """Return the device of this process; on a machine with several GPUs, each process has its own.

    Schedulers may show each process one GPU alone, which is its first one then.

    Raises:
        UserError: If the named device cannot be divided among processes.
    """
    if launch is None or launch.size == 1 or name == "cpu":
        return name
    if name not in _BACKENDS:
        kind = name.partition(":")[0]
        instead = f"leave out the number: each process takes one of its own with --device={kind}"
        raise UserError(
            f"--device={name} cannot be used by several processes; "
            f"{instead if kind in _BACKENDS else 'use cuda, xpu or cpu'}."
        )
    count = device_count(name)
    if count == 1:
        return f"{name}:0"
    if launch.local_rank >= max(count, 1):
        raise UserError(
            f"process {launch.local_rank} of this machine has no GPU: there are {count}; start no more processes than "
            "that."
        )
    return f"{name}:{launch.local_rank}"


def own_part(items: Iterable[int] | np.ndarray, team: Team) -> np.ndarray:
    """Return every ``size``-th item, beginning with this process's rank."""
    return np.asarray(items)[team.rank :: team.size]
