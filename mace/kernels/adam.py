"""Adam and AdamW of torch with clipping and moving average in one step, in C or in Triton: two passes over memory."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from mace.kernels.c_source.adam import COLUMNS, NUMBERS, RULES, adam_source
from mace.kernels.compiler import compile_and_load, thread_pool

_VALUE, _GRADIENT, _MEAN, _SQUARE, _LARGEST, _AVERAGE, _STEP, _GROUP = range(len(COLUMNS))

UNIT = 4096
"""Largest number of entries that one thread takes at a time."""

ENTRIES_OF_A_THREAD = 1 << 16
"""Number of entries below which another thread takes longer to start than it saves."""


class Follower(NamedTuple):
    """A moving average.

    Attributes:
        averages: Pairs of a parameter and its average; the other parameters have none.
        weight: Weight of the parameters in the averages at the next step.
    """

    averages: Sequence[tuple[Tensor, Tensor]]
    weight: float


class CompiledStep(torch.optim.Optimizer):
    """What torch's Adam and AdamW become with `update`: the same state, the same numbers to rounding.

    All parameters are on the CPU, contiguous, and of one precision, float32 or float64.

    Raises:
        mace.kernels.compiler.CompilationError: If the step cannot be compiled here.
    """

    _table: _Table | None = None
    _opt_called: bool

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._compile(self.param_groups[0]["params"][0].dtype)  # now and not in the first step

    def _compile(self, dtype: torch.dtype) -> None:
        _library(dtype)

    def _make_table(self, averages: Sequence[tuple[Tensor, Tensor]]) -> _Table:
        return _TableInC(self, averages)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See torch; the tensors of a state that is loaded take the place of those before."""
        super().__setstate__(state)
        self._table = None

    def update(self, limit: float, follower: Follower | None = None) -> Tensor:
        """Clip the gradients, move the parameters, and let their averages follow.

        The gradients themselves are left as they are.

        Args:
            limit: Largest norm of the gradient; infinite for no limit.
            follower: The moving average to update, if any.

        Returns:
            Norm of the gradient before clipping.
        """
        self.prepare(limit, follower)
        return self.move()

    def prepare(self, limit: float, follower: Follower | None = None) -> None:
        """Write down what a step will read: where gradients and state are, learning rates, what `update` is given.

        Before a step in a graph of a device is replayed, this is what has to be called, outside of the graph.
        """
        averages = () if follower is None else follower.averages
        if self._table is None or self._table.averages is not averages:
            self._table = self._make_table(averages)
        self._table.prepare(self, limit, 0.0 if follower is None else follower.weight)
        self._opt_called = True  # schedules of learning rates look at it

    def move(self) -> Tensor:
        """Take the step that was prepared, and return the norm of the gradient; a graph of a device may capture it."""
        assert self._table is not None
        return self._table.run()


class CompiledAdam(CompiledStep, torch.optim.Adam):
    """See `CompiledStep`."""


class CompiledAdamW(CompiledStep, torch.optim.AdamW):
    """See `CompiledStep`."""


class DeviceStep(CompiledStep):
    """The same with kernels in Triton, for parameters on a device; nothing waits for it."""

    def _compile(self, dtype: torch.dtype) -> None:
        """Leave it to the first step."""

    def _make_table(self, averages: Sequence[tuple[Tensor, Tensor]]) -> _Table:
        return _TableOnDevice(self, averages)


class DeviceAdam(DeviceStep, torch.optim.Adam):
    """See `DeviceStep`."""


class DeviceAdamW(DeviceStep, torch.optim.AdamW):
    """See `DeviceStep`."""


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return compile_and_load(adam_source(dtype))


class _Table(ABC):
    """Where the tensors of an optimizer are, as the compiled step reads it.

    Args:
        optimizer: The optimizer.
        averages: Pairs of a parameter and its average.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, averages: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.averages = averages
        group_of = [(p, number) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
        self._parameters: list[Tensor] = [parameter for parameter, _ in group_of]
        assert all(p.is_contiguous() and p.dtype == self._parameters[0].dtype for p in self._parameters)
        self._moments: list[tuple[Tensor, ...]] = [()] * len(group_of)  # held, as only their addresses are in the table
        self._table = np.zeros((len(group_of), len(COLUMNS)), np.int64)
        self._table[:, _GROUP] = [number for _, number in group_of]
        average_of = {id(parameter): average.data_ptr() for parameter, average in averages}
        self._table[:, _AVERAGE] = [average_of.get(id(parameter), 0) for parameter in self._parameters]
        units = [
            (place, begin, min(begin + UNIT, parameter.numel()))
            for place, parameter in enumerate(self._parameters)
            for begin in range(0, parameter.numel(), UNIT)
        ]
        self._units = np.array(units, np.int64).reshape(-1, 3)
        self._rules = np.zeros((len(optimizer.param_groups), len(RULES)))
        self._numbers = np.zeros(len(NUMBERS))
        self._moved: list[Tensor] = []
        self._gradients: list[Tensor] = []  # held until the step, as only their addresses are in the table

    def prepare(self, optimizer: torch.optim.Optimizer, limit: float, weight: float) -> None:
        """Enter what the next step reads; see `CompiledStep.prepare`."""
        moved = [place for place, parameter in enumerate(self._parameters) if parameter.grad is not None]
        self._gradients = [gradient.contiguous() for p in self._parameters if (gradient := p.grad) is not None]
        for place in moved:
            if not self._moments[place]:
                self._enter(optimizer, place)
        self._table[:, _VALUE] = [parameter.data_ptr() for parameter in self._parameters]
        self._table[:, _GRADIENT] = 0
        # a tensor without entries has no address
        self._table[moved, _GRADIENT] = [gradient.data_ptr() or 1 for gradient in self._gradients]
        self._rules[:] = [_rules(optimizer, group) for group in optimizer.param_groups]
        self._numbers[:2] = limit, weight
        self._moved = [self._parameters[place] for place in moved]

    def run(self) -> Tensor:
        """Take a step, and return the norm of the gradient."""
        norm = self._launch()
        self._gradients.clear()
        _count_version(self._moved)
        return norm

    @abstractmethod
    def _launch(self) -> Tensor:
        """Run the kernels, and return the norm."""

    def _enter(self, optimizer: torch.optim.Optimizer, place: int) -> None:
        """Enter the state of a parameter that has a gradient into the table; make it as torch does if there is none."""
        parameter, group = self._parameters[place], optimizer.param_groups[self._table[place, _GROUP]]
        names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state.update({name: torch.zeros_like(parameter, requires_grad=False) for name in names})
        state["step"] = state["step"].to(parameter.device, torch.float32)
        state.update({name: state[name].to(parameter.dtype).contiguous() for name in names})
        self._moments[place] = (*(state[name] for name in names), state["step"])
        self._table[place, [_MEAN, _SQUARE]] = [tensor.data_ptr() for tensor in self._moments[place][:2]]
        self._table[place, _LARGEST] = state["max_exp_avg_sq"].data_ptr() if group["amsgrad"] else 0
        self._table[place, _STEP] = state["step"].data_ptr()


class _TableInC(_Table):
    """A table for the step in C."""

    def __init__(self, optimizer: torch.optim.Optimizer, averages: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(optimizer, averages)
        space = np.zeros(len(self._units)), np.zeros((len(self._parameters), 4))
        self._arrays = (self._table, self._units, self._rules, self._numbers, *space)
        self._pointers = (ctypes.c_void_p * len(self._arrays))(*[array.ctypes.data for array in self._arrays])
        self._library = _library(self._parameters[0].dtype)
        self._most_threads = max(1, sum(p.numel() for p in self._parameters) // ENTRIES_OF_A_THREAD)

    def _launch(self) -> Tensor:
        pool, threads = thread_pool(), min(torch.get_num_threads(), self._most_threads)
        self._library.adam_step(
            self._pointers,
            (ctypes.c_int64 * 1)(len(self._parameters)),
            ctypes.c_int64(len(self._units)),
            ctypes.c_int64(threads),
            ctypes.c_void_p(pool.parallel),
            ctypes.c_void_p(pool.thread_number),
            ctypes.c_void_p(pool.team_size),
        )
        return torch.tensor(self._numbers[2], dtype=self._parameters[0].dtype)


class _TableOnDevice(_Table):
    """A table with a copy on the device, renewed where something has changed."""

    def __init__(self, optimizer: torch.optim.Optimizer, averages: Sequence[tuple[Tensor, Tensor]]) -> None:
        from mace.kernels.triton_source.adam import TAKEN, adam_step

        super().__init__(optimizer, averages)
        device, dtype = self._parameters[0].device, self._parameters[0].dtype
        self._kernel, self._words = adam_step(dtype), np.zeros(0, np.int64)
        sizes = [array.size for array in (self._table, self._rules, self._numbers)]
        self._there = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        table, rules, numbers = self._there.split(sizes)
        space = [
            torch.zeros(count, dtype=torch.float64, device=device)
            for count in (len(self._units), len(self._parameters) * len(TAKEN), 1)
        ]
        self._norm, units = space[-1], torch.from_numpy(self._units).to(device)
        self._pointers = (table, units, rules.view(torch.float64), numbers.view(torch.float64), *space)

    def prepare(self, optimizer: torch.optim.Optimizer, limit: float, weight: float) -> None:
        """See `_Table`."""
        super().prepare(optimizer, limit, weight)
        words = np.concatenate([array.view(np.int64).ravel() for array in (self._table, self._rules, self._numbers)])
        if not np.array_equal(words, self._words):
            self._words, values = words, torch.from_numpy(words)
            # page-locked memory is not used again before it was copied, and nobody waits for that
            self._there.copy_(values.pin_memory() if self._there.is_cuda else values, non_blocking=True)

    def _launch(self) -> Tensor:
        self._kernel.run(self._pointers, [len(self._parameters), len(self._units)])
        return self._norm[0].to(self._parameters[0].dtype, copy=True)


def _count_version(tensors: Sequence[Tensor]) -> None:
    """Tell torch that tensors were written to."""
    try:
        increment_version(tensors)
    except (RuntimeError, TypeError):  # older releases take one at a time
        for tensor in tensors:
            increment_version(tensor)


def _rules(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[float, ...]:
    """Return a group's row of `RULES`."""
    rate, decay = float(group["lr"]), group["weight_decay"]
    # before version 2.7 of torch, only the class tells how weights decay
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    return (rate, *group["betas"], group["eps"], *((0.0, 1.0 - rate * decay) if decoupled else (decay, 1.0)))
