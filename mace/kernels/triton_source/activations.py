"""Triton kernels of the activation, SiLU, with its derivatives; and the one that sets numbers to zero.

Names, arrays and dimensions are those of `mace.kernels.c_source.matrices`; the number of shares, the second dimension,
means nothing here.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from mace.kernels.triton_source.launching import LANES, DeviceKernel

_ROWS = 32
_WIDTH = tl.constexpr(LANES)
_BLOCK = tl.constexpr(_ROWS)
_RUNTIME = ["count", "shares"]


@triton.jit
def _places(count):
    """Return the places a program looks after, and which exist: whole rows of lanes, so that it moves four at once."""
    row = tl.program_id(0).to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)[:, None]
    return row * _WIDTH + tl.arange(0, _WIDTH)[None, :], row < tl.cast(count, tl.int64) // _WIDTH


@triton.jit(do_not_specialize=_RUNTIME)
def _silu_value(z, sigmoid, result, count, shares):
    place, exists = _places(count)
    x = tl.load(z + place, mask=exists, other=0.0)
    s = 1.0 / (1.0 + tl.exp(-x))
    tl.store(sigmoid + place, s, mask=exists)
    tl.store(result + place, x * s, mask=exists)


@triton.jit
def slope(x, s):
    """Return the derivative of the activation of numbers, given their sigmoid."""
    return s * (1.0 + x * (1.0 - s))


@triton.jit(do_not_specialize=_RUNTIME)
def _silu_gradient(z, sigmoid, cotangent, result, count, shares):
    place, exists = _places(count)
    x, s = tl.load(z + place, mask=exists, other=0.0), tl.load(sigmoid + place, mask=exists, other=0.0)
    tl.store(result + place, tl.load(cotangent + place, mask=exists, other=0.0) * slope(x, s), mask=exists)


@triton.jit(do_not_specialize=_RUNTIME)
def _silu_adjoint(z, sigmoid, cotangent, result, count, shares):
    place, exists = _places(count)
    x, s = tl.load(z + place, mask=exists, other=0.0), tl.load(sigmoid + place, mask=exists, other=0.0)
    added = tl.load(cotangent + place, mask=exists, other=0.0) * slope(x, s)
    tl.store(result + place, tl.load(result + place, mask=exists, other=0.0) + added, mask=exists)


@triton.jit(do_not_specialize=_RUNTIME)
def _silu_tangent(z, sigmoid, change, gradient, of_value, of_gradient, count, shares):
    place, exists = _places(count)
    x, s = tl.load(z + place, mask=exists, other=0.0), tl.load(sigmoid + place, mask=exists, other=0.0)
    u = tl.load(change + place, mask=exists, other=0.0)
    g = tl.load(gradient + place, mask=exists, other=0.0)
    tl.store(of_value + place, u * slope(x, s), mask=exists)
    tl.store(of_gradient + place, g * u * s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s)), mask=exists)


@cache
def activation_kernels(dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return ``silu_value``, ``silu_gradient``, ``silu_tangent`` and ``silu_adjoint``, for any precision."""
    functions = {
        "silu_value": _silu_value,
        "silu_gradient": _silu_gradient,
        "silu_tangent": _silu_tangent,
        "silu_adjoint": _silu_adjoint,
    }
    return {
        name: DeviceKernel(function, lambda dimensions: (-(-int(dimensions[0]) // (_ROWS * LANES)),), warps=4)
        for name, function in functions.items()
    }
