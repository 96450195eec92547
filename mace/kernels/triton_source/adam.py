"""The step of Adam in Triton: norm of the gradient, clipping, moments, parameters and their moving average.

What is read - addresses, rates, the number of steps - lies in the device's memory, with the meaning it has in
`mace.kernels.c_source.adam`. So a step is three launches without waiting, which can be captured in a graph.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from mace.kernels.c_source.adam import COLUMNS, RULES
from mace.kernels.triton_source.launching import DeviceKernel, KernelSequence

TAKEN = ("clip", "slower", "root")
"""What one launch finds out for the next: factors on gradients, on steps and on roots of squares, for each tensor."""

_N_COLUMNS, _N_RULES, _N_TAKEN = tl.constexpr(len(COLUMNS)), tl.constexpr(len(RULES)), tl.constexpr(len(TAKEN))
_VALUE, _GRADIENT, _MEAN, _SQUARE, _LARGEST, _AVERAGE, _STEP, _GROUP = (tl.constexpr(n) for n in range(len(COLUMNS)))
_RATE, _BETA_1, _BETA_2, _EPSILON, _DECAY, _SHRINK = (tl.constexpr(n) for n in range(len(RULES)))
_CLIP, _SLOWER, _ROOT = (tl.constexpr(n) for n in range(len(TAKEN)))
_RUNTIME = ["tensors", "n_units"]
_BLOCK = tl.constexpr(4096)
_TENSORS = tl.constexpr(32)


@triton.jit
def _tensor(at, column: tl.constexpr, T: tl.constexpr):
    """Return the address of one of a parameter's tensors."""
    return tl.load(at + column).to(tl.pointer_type(T))


@triton.jit(do_not_specialize=_RUNTIME)
def _squares(table, units, rules, numbers, sums, taken, norm, tensors, n_units, T: tl.constexpr):
    """Add up the squares of a unit of the gradient."""
    unit = units + tl.program_id(0) * 3
    at, end = table + tl.load(unit) * _N_COLUMNS, tl.load(unit + 2)
    total = tl.zeros([_BLOCK], tl.float64)
    if tl.load(at + _GRADIENT) != 0:
        for begin in range(tl.load(unit + 1), end, _BLOCK):
            i = begin + tl.arange(0, _BLOCK)
            x = tl.load(_tensor(at, _GRADIENT, T) + i, mask=i < end, other=0.0).to(tl.float64)
            total += x * x
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _power(base, n):
    """Return a power, by squaring."""
    result = base * 0.0 + 1.0
    for _ in range(25):  # the number of steps is counted in float32
        result = tl.where((n & 1) != 0, result * base, result)
        base, n = base * base, n >> 1
    return result


@triton.jit(do_not_specialize=_RUNTIME)
def _settle(table, units, rules, numbers, sums, taken, norm, tensors, n_units, T: tl.constexpr):
    """Find the norm, count the step, and note what follows for each parameter."""
    squares = tl.zeros([_BLOCK], tl.float64)
    for begin in range(0, n_units, _BLOCK):
        i = begin + tl.arange(0, _BLOCK)
        squares += tl.load(sums + i, mask=i < n_units, other=0.0)
    length = tl.sqrt(tl.sum(squares, 0))
    tl.store(norm, length)
    most = tl.load(numbers) / (length + 1e-6)
    clip = tl.where(most > 1.0, 1.0, most)  # not a number if that is what the norm is
    for begin in range(0, tensors, _TENSORS):
        t = begin + tl.arange(0, _TENSORS)
        at = table + t * _N_COLUMNS
        moves = tl.load(at + _GRADIENT, mask=t < tensors, other=0) != 0
        step = tl.load(at + _STEP, mask=moves, other=0).to(tl.pointer_type(tl.float32))
        steps = tl.load(step, mask=moves, other=0.0) + 1.0
        tl.debug_barrier()  # several threads read the same number, and one of them writes it
        tl.store(step, steps, mask=moves)
        rule = rules + tl.load(at + _GROUP, mask=moves, other=0) * _N_RULES
        one, two = tl.load(rule + _BETA_1, mask=moves, other=0.0), tl.load(rule + _BETA_2, mask=moves, other=0.0)
        rate = tl.load(rule + _RATE, mask=moves, other=0.0)
        of = taken + t * _N_TAKEN
        tl.store(of + _CLIP, rate * 0.0 + clip, mask=moves)
        tl.store(of + _SLOWER, rate / (1.0 - _power(one, steps.to(tl.int32))), mask=moves)
        tl.store(of + _ROOT, 1.0 / tl.sqrt(1.0 - _power(two, steps.to(tl.int32))), mask=moves)


@triton.jit
def _number(at, T: tl.constexpr):
    """Return a number in the precision of the parameters."""
    return tl.load(at).to(T)


@triton.jit(do_not_specialize=_RUNTIME)
def _move(table, units, rules, numbers, sums, taken, norm, tensors, n_units, T: tl.constexpr):
    """Move the entries of a unit, and let their averages follow."""
    unit = units + tl.program_id(0) * 3
    tensor, end = tl.load(unit), tl.load(unit + 2)
    at, of = table + tensor * _N_COLUMNS, taken + tensor * _N_TAKEN
    rule = rules + tl.load(at + _GROUP) * _N_RULES
    has_gradient, has_largest = tl.load(at + _GRADIENT) != 0, tl.load(at + _LARGEST) != 0
    for begin in range(tl.load(unit + 1), end, _BLOCK):
        i = begin + tl.arange(0, _BLOCK)
        here = i < end
        value = tl.load(_tensor(at, _VALUE, T) + i, mask=here)
        if has_gradient:
            g = tl.load(_tensor(at, _GRADIENT, T) + i, mask=here) * _number(of + _CLIP, T)
            g += value * _number(rule + _DECAY, T)
            mean = tl.load(_tensor(at, _MEAN, T) + i, mask=here)
            mean += (1.0 - tl.load(rule + _BETA_1).to(T)) * (g - mean)
            square = tl.load(_tensor(at, _SQUARE, T) + i, mask=here) * _number(rule + _BETA_2, T)
            square += (1.0 - tl.load(rule + _BETA_2)).to(T) * g * g
            tl.store(_tensor(at, _MEAN, T) + i, mean, mask=here)
            tl.store(_tensor(at, _SQUARE, T) + i, square, mask=here)
            if has_largest:
                largest = tl.load(_tensor(at, _LARGEST, T) + i, mask=here)
                square = tl.where(largest >= square, largest, square)
                tl.store(_tensor(at, _LARGEST, T) + i, square, mask=here)
            size = tl.sqrt(square) * _number(of + _ROOT, T) + _number(rule + _EPSILON, T)
            value = value * _number(rule + _SHRINK, T) - _number(of + _SLOWER, T) * mean / size
            tl.store(_tensor(at, _VALUE, T) + i, value, mask=here)
        if tl.load(at + _AVERAGE) != 0:
            average = tl.load(_tensor(at, _AVERAGE, T) + i, mask=here)
            average += _number(numbers + 1, T) * (value - average)
            tl.store(_tensor(at, _AVERAGE, T) + i, average, mask=here)


@cache
def adam_step(dtype: torch.dtype) -> KernelSequence:
    """Return a step.

    Its arrays are the table of tensors, the units, the table of groups, limit and weight, one sum for each unit, space
    for `TAKEN` of each tensor, and the norm; its dimensions the number of tensors and units.

    Args:
        dtype: Precision of the parameters.
    """
    options = {"T": {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]}
    return KernelSequence(
        (
            DeviceKernel(_squares, lambda d: (int(d[1]),), 8, options),
            DeviceKernel(_settle, lambda d: (1,), 8, options),
            DeviceKernel(_move, lambda d: (int(d[1]),), 8, options),
        )
    )
