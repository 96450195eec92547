"""Division of an atom's sums by a learned density in Triton; the kernels of `mace.kernels.c_source.density`.

What belongs to rows and pairs is computed in float64, as in C. Of pairs that are padding the input, its tangent and so
their gradients are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from mace.kernels.triton_source.launching import LANES, DeviceKernel, Number

ROWS = tl.constexpr(32)
PAIRS = tl.constexpr(128)
FEATURES = tl.constexpr(4)
"""Rows of slots, pairs, and rows of features of a program."""
_LANES = tl.constexpr(LANES)


@triton.jit  # type: ignore[untyped-decorator]
def _tanh_of_square(q):  # type: ignore[no-untyped-def]
    """Return the hyperbolic tangent of q^2, accurate also where it is small."""
    x = q * q
    # the series is exact to rounding below 0.03, where the quotient loses digits
    y = x * x
    series = x * (1 - y * (1.0 / 3 - y * (2.0 / 15 - y * (17.0 / 315 - y * (62.0 / 2835)))))
    decay = tl.exp(-2 * x)
    return tl.where(x < 0.03, series, (1 - decay) / (1 + decay))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_over_slots(neighbor_count, pair_of_slot, inputs, tangents, row, inside, slots):  # type: ignore[no-untyped-def]
    """Return the sum of tanh(q^2), or of its change, over the slots of each row, in their order."""
    count = tl.load(neighbor_count + row, mask=inside, other=0).to(tl.int64)
    total = tl.zeros([ROWS], tl.float64)
    slot = 0
    most = tl.max(count, 0)
    while slot < most:
        present = slot < count
        pair = tl.load(pair_of_slot + row * slots + slot, mask=present, other=0).to(tl.int64)
        q = tl.load(inputs + pair, mask=present, other=0.0).to(tl.float64)
        s = _tanh_of_square(q)
        if tangents is not None:
            change = tl.load(tangents + pair, mask=present, other=0.0).to(tl.float64)
            total += 2 * q * (1 - s * s) * change
        else:
            total += s
        slot += 1
    return total


@triton.jit(do_not_specialize=["slots", "n_rows"])  # type: ignore[untyped-decorator]
def density_value(neighbor_count, pair_of_slot, inputs, factors, slots, n_rows):  # type: ignore[no-untyped-def]
    """Compute the factors of rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    total = _sum_over_slots(neighbor_count, pair_of_slot, inputs, None, row, inside, slots)
    tl.store(factors + row, (1 / (1 + total)).to(factors.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["slots", "n_rows"])  # type: ignore[untyped-decorator]
def density_tangent(  # type: ignore[no-untyped-def]
    neighbor_count, pair_of_slot, inputs, changes, factors, result, slots, n_rows
):
    """Compute the tangents of the factors."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    total = _sum_over_slots(neighbor_count, pair_of_slot, inputs, changes, row, inside, slots)
    f = tl.load(factors + row, mask=inside, other=0.0).to(tl.float64)
    tl.store(result + row, (-total * f * f).to(result.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _of_rows(  # type: ignore[no-untyped-def]
    sender, receiver, row_of_atom, factors, gradients, changes, pair, inside
):
    """Return sums over the two rows of each pair: of the gradients by the density, and of those by its change."""
    first, second = tl.zeros([PAIRS], tl.float64), tl.zeros([PAIRS], tl.float64)
    for end in tl.static_range(2):
        atom = tl.load((sender if end == 0 else receiver) + pair, mask=inside, other=0).to(tl.int64)
        row = tl.load(row_of_atom + atom, mask=inside, other=0).to(tl.int64)
        f = tl.load(factors + row, mask=inside, other=0.0).to(tl.float64)
        c = tl.load(gradients + row, mask=inside, other=0.0).to(tl.float64)
        first -= c * f * f
        if changes is not None:
            second -= 2 * c * f * tl.load(changes + row, mask=inside, other=0.0).to(tl.float64)
    return first, second


@triton.jit(do_not_specialize=["n_pairs"])  # type: ignore[untyped-decorator]
def density_gradient(  # type: ignore[no-untyped-def]
    sender, receiver, row_of_atom, inputs, factors, gradients, result, n_pairs, ADDS: tl.constexpr
):
    """Compute, or add to, the gradients by the inputs."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < n_pairs
    first, _ = _of_rows(sender, receiver, row_of_atom, factors, gradients, None, pair, inside)
    q = tl.load(inputs + pair, mask=inside, other=0.0).to(tl.float64)
    s = _tanh_of_square(q)
    value = first * 2 * q * (1 - s * s)
    if ADDS:
        value += tl.load(result + pair, mask=inside, other=0.0).to(tl.float64)
    tl.store(result + pair, value.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_pairs"])  # type: ignore[untyped-decorator]
def density_second(  # type: ignore[no-untyped-def]
    sender, receiver, row_of_atom, inputs, factors, gradients, changes, of_factors, result, n_pairs
):
    """Compute the gradients by the inputs of the factors' tangents times their gradients."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < n_pairs
    first, second = _of_rows(sender, receiver, row_of_atom, factors, gradients, of_factors, pair, inside)
    q = tl.load(inputs + pair, mask=inside, other=0.0).to(tl.float64)
    s = _tanh_of_square(q)
    slope = 2 * q * (1 - s * s)
    change = tl.load(changes + pair, mask=inside, other=0.0).to(tl.float64)
    value = first * (2 * (1 - s * s) - 4 * q * s * slope) * change + second * slope
    tl.store(result + pair, value.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]
def scaled_value(factors, source, result, WIDTH: tl.constexpr, n_rows):  # type: ignore[no-untyped-def]
    """Multiply the features of rows by their factors."""
    row = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)[:, None]
    inside, lane = row < n_rows, tl.arange(0, _LANES)[None, :]
    f = tl.load(factors + row, mask=inside, other=0.0)
    for block in range(0, WIDTH, _LANES):
        at = row * WIDTH + block + lane
        tl.store(result + at, f * tl.load(source + at, mask=inside, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]
def scaled_gradient(  # type: ignore[no-untyped-def]
    factors, source, gradient, of_source, of_factors, WIDTH: tl.constexpr, n_rows, ADDS: tl.constexpr
):
    """Compute, or add to, the gradients by features and factors."""
    row = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)[:, None]
    inside, lane = row < n_rows, tl.arange(0, _LANES)[None, :]
    f = tl.load(factors + row, mask=inside, other=0.0)
    sums = tl.zeros([FEATURES, _LANES], factors.dtype.element_ty)
    for block in range(0, WIDTH, _LANES):
        at = row * WIDTH + block + lane
        g = tl.load(gradient + at, mask=inside, other=0.0)
        sums += g * tl.load(source + at, mask=inside, other=0.0)
        value = f * g
        if ADDS:
            value += tl.load(of_source + at, mask=inside, other=0.0)
        tl.store(of_source + at, value, mask=inside)
    total = tl.sum(sums, 1)[:, None]
    if ADDS:
        total += tl.load(of_factors + row, mask=inside, other=0.0)
    tl.store(of_factors + row, total, mask=inside)


@triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]
def scaled_second(  # type: ignore[no-untyped-def]
    factors, source, gradient, change, change_of_factors, result, of_source, of_factors, WIDTH: tl.constexpr, n_rows
):
    """Compute the tangents of the products, and the gradients of these tangents times the products' gradients."""
    row = tl.program_id(0).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)[:, None]
    inside, lane = row < n_rows, tl.arange(0, _LANES)[None, :]
    f = tl.load(factors + row, mask=inside, other=0.0)
    df = tl.load(change_of_factors + row, mask=inside, other=0.0)
    sums = tl.zeros([FEATURES, _LANES], factors.dtype.element_ty)
    for block in range(0, WIDTH, _LANES):
        at = row * WIDTH + block + lane
        u, v = tl.load(source + at, mask=inside, other=0.0), tl.load(change + at, mask=inside, other=0.0)
        g = tl.load(gradient + at, mask=inside, other=0.0)
        tl.store(result + at, f * v + df * u, mask=inside)
        tl.store(of_source + at, df * g, mask=inside)
        sums += g * v
    tl.store(of_factors + row, tl.sum(sums, 1)[:, None], mask=inside)


def _grid(number: int, per_program: int) -> Callable[[Sequence[Number]], tuple[int, ...]]:
    """Return the grid over rows or pairs, whose number is a dimension."""
    return lambda dimensions: (-(-int(dimensions[number]) // per_program),)


@cache
def density_kernels(dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return the kernels of the density and of features scaled by it.

    Args:
        dtype: Precision; the functions serve all.
    """

    def of_rows(function: Any) -> DeviceKernel:
        return DeviceKernel(function, _grid(1, ROWS.value))

    def of_pairs(function: Any, **options: Any) -> DeviceKernel:
        return DeviceKernel(function, _grid(0, PAIRS.value), warps=4, options=options)

    def of_features(function: Any, **options: Any) -> DeviceKernel:
        return DeviceKernel(function, _grid(1, FEATURES.value), warps=FEATURES.value, options=options)

    return {
        "density_value": of_rows(density_value),
        "density_tangent": of_rows(density_tangent),
        "density_gradient": of_pairs(density_gradient, ADDS=False),
        "density_adjoint": of_pairs(density_gradient, ADDS=True),
        "density_second": of_pairs(density_second),
        "scaled_value": of_features(scaled_value),
        "scaled_gradient": of_features(scaled_gradient, ADDS=False),
        "scaled_adjoint": of_features(scaled_gradient, ADDS=True),
        "scaled_second": of_features(scaled_second),
    }
