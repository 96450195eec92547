"""Functions of the vectors and lengths of pairs whose slopes are computed with their values.

Training differentiates energies by the vectors, and the result by the parameters, never by the vectors again: then the
slopes are constants, and both derivatives are products with them. Any other derivative is left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mace.equivariant.spherical_harmonics import harmonics_and_slopes, spherical_harmonics
from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose

Evaluate = Callable[[Tensor], tuple[Tensor, ...]]


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else what is first evaluated without derivatives never has any
        return torch.tensor(numbers, dtype=dtype, device=device)


def constants(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Return numbers as a tensor like another; they are copied to a device once, as it is waited for then."""
    if like.is_cpu:
        return like.new_tensor(numbers)
    return _on_device(tuple(numbers), like.dtype, like.device)


def along_rows(evaluate: Evaluate, slopes: Evaluate, lengths: Tensor) -> tuple[Tensor, ...]:
    """Evaluate functions of the length, each row of which depends on its own length alone.

    Args:
        evaluate: Maps lengths to values, each ``[pairs, n]``.
        slopes: Maps lengths to the values and then their derivatives, none of which autograd needs to know.
        lengths: ``[pairs]``.

    Returns:
        The values.
    """
    if not lengths.requires_grad or not torch.is_grad_enabled():
        return evaluate(lengths)
    values: tuple[Tensor, ...] = _Along.apply(lengths, evaluate, slopes)
    return values


def lengths_and_harmonics(vectors: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
    """Return the lengths of vectors, ``[pairs]``, and the harmonics of their directions, ``[pairs, (l_max + 1)^2]``."""
    if not vectors.requires_grad or not torch.is_grad_enabled():
        return _plain(vectors, l_max)
    lengths, harmonics = _Directions.apply(vectors, l_max)
    return lengths, harmonics


def _plain(vectors: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
    lengths = vectors.norm(dim=-1)
    return lengths, spherical_harmonics(vectors / lengths.unsqueeze(-1), l_max)


def _by_autograd(
    evaluate: Callable[[Tensor], Sequence[Tensor]], argument: Tensor, gradients: Sequence[Tensor]
) -> Tensor:
    """Differentiate a function, as a function of its argument if derivatives are to be differentiated."""
    again = torch.is_grad_enabled()
    argument = argument if again else argument.detach().requires_grad_()
    with torch.enable_grad():
        pairs = zip(evaluate(argument), gradients, strict=True)
        known = [pair for pair in pairs if pair[0].requires_grad]  # harmonics of degree zero are constant
        (gradient,) = torch.autograd.grad(
            [value for value, _ in known], argument, [each for _, each in known], create_graph=again
        )
    return gradient


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lengths: Tensor, evaluate: Evaluate, slopes: Evaluate) -> tuple[Tensor, ...]:
        found = slopes(lengths)
        keep_purpose(ctx)
        ctx.evaluate, ctx.slopes = evaluate, found[len(found) // 2 :]
        ctx.save_for_backward(lengths)
        return found[: len(found) // 2]

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (lengths,) = ctx.saved_tensors
        if current_pass() is not Pass.GEOMETRY:
            return _by_autograd(ctx.evaluate, lengths, gradients), None, None
        first, *others = ((slope * gradient).sum(1) for slope, gradient in zip(ctx.slopes, gradients, strict=True))
        return sum(others, start=first), None, None


class _Directions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, l_max: int) -> tuple[Tensor, Tensor]:
        lengths = vectors.norm(dim=-1)
        keep_purpose(ctx)
        ctx.l_max, ctx.directions = l_max, vectors / lengths.unsqueeze(-1)
        harmonics, slopes = harmonics_and_slopes(ctx.directions, l_max)
        ctx.slopes = slopes / lengths.view(-1, 1, 1)
        ctx.save_for_backward(vectors)
        return lengths, harmonics

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if current_pass() is not Pass.GEOMETRY:
            (vectors,) = ctx.saved_tensors
            return _by_autograd(lambda v: _plain(v, ctx.l_max), vectors, gradients), None
        of_lengths, of_harmonics = gradients
        radial = of_lengths.view(-1, 1, 1) * ctx.directions.unsqueeze(1)
        return torch.baddbmm(radial, of_harmonics.unsqueeze(1), ctx.slopes).squeeze(1), None
