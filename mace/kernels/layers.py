"""Layers of a network with SiLU, and scaling of many weights at once, in few operations with their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mace.kernels.passes import Pass, current_pass, heeding_purpose, keep_purpose


def activated_layers(first: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Apply SiLU, then for each matrix multiply by it and apply SiLU again.

    Args:
        first: Values of the first hidden layer before activation, ``[rows, width]``.
        weights: Matrices between hidden layers, each ``[width, next width]``.

    Returns:
        The last hidden layer, activated, ``[rows, width]``.
    """
    activated: Tensor = _Layers.apply(first, *weights)[0]
    return activated


def scaled(weights: Sequence[Tensor], factors: Sequence[float]) -> tuple[Tensor, ...]:
    """Multiply each tensor by its factor, all in one operation, in the derivative too."""
    result: tuple[Tensor, ...] = _Scale.apply(tuple(factors), *weights)
    return result


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factors: tuple[float, ...], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        return tuple(torch._foreach_mul(list(values), list(factors)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [(g, f) for g, f in zip(gradients, ctx.factors, strict=True) if g is not None]
        found = iter(_Scale.apply(tuple(f for _, f in known), *(g for g, _ in known)) if known else ())
        return None, *(None if gradient is None else next(found) for gradient in gradients)


class _Layers(torch.autograd.Function):
    """The last hidden layer, and all but the first before activation, through which second derivatives pass."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        values = [first]
        for weight in weights:
            values.append(functional.silu(values[-1]) @ weight)
        keep_purpose(ctx)
        ctx.save_for_backward(*weights, *values)
        ctx.set_materialize_grads(False)
        return functional.silu(values[-1]), *values[1:]

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, gradient: Tensor | None, *of_values: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            gradient = torch.zeros_like(ctx.saved_tensors[-1])
        result: tuple[Tensor | None, ...] = _LayersBackward.apply(
            len(of_values), gradient, *ctx.saved_tensors, None, *of_values
        )
        return result


class _LayersBackward(torch.autograd.Function):
    """The gradient by the first values and by the weights; its own derivative is known to autograd."""

    @staticmethod
    def forward(ctx: Any, n: int, gradient: Tensor, *arguments: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, others = arguments[:n], arguments[n : 2 * n + 1], arguments[2 * n + 1 :]
        keep_purpose(ctx)
        ctx.n, ctx.adjoints = n, _adjoints(gradient, weights, values, others)
        ctx.save_for_backward(gradient, *arguments)
        ctx.set_materialize_grads(False)
        _, before = ctx.adjoints
        if current_pass() is Pass.GEOMETRY:
            return before[0], *(None for _ in weights)
        return before[0], *(functional.silu(v).t() @ b for v, b in zip(values, before[1:], strict=False))

    @staticmethod
    @heeding_purpose
    def backward(ctx: Any, tangent: Tensor | None, *of_weights: Tensor | None) -> tuple[Tensor | None, ...]:
        n, (gradient, *arguments) = ctx.n, ctx.saved_tensors
        weights, values, others = arguments[:n], arguments[n : 2 * n + 1], arguments[2 * n + 1 :]
        # with derivatives of the third order anew, as functions of what they depend on
        after, before = _adjoints(gradient, weights, values, others) if torch.is_grad_enabled() else ctx.adjoints
        by_before = [torch.zeros_like(values[0]) if tangent is None else tangent]
        by_weights, by_values = list[Tensor](), list[Tensor | None]()
        for k, weight in enumerate(weights):
            by_after = _silu_backward(by_before[k], values[k])
            by_weights.append(by_after.t() @ before[k + 1])
            by_before.append(by_after @ weight)
            t = of_weights[k]
            by_values.append(None if t is None else _silu_backward(before[k + 1] @ t.t(), values[k]))
            if t is not None:
                by_before[-1] = by_before[-1] + functional.silu(values[k]) @ t
        curved = _curvature(*(torch.cat(every, dim=1) for every in (values, by_before, after)))
        second = curved.split([v.shape[1] for v in values], dim=1)
        by_values = [s if v is None else s + v for s, v in zip(second, [*by_values, None], strict=True)]
        by_gradient = _silu_backward(by_before[-1], values[-1])
        by_others = (None if o is None else b for b, o in zip(by_before, others, strict=True))
        return None, by_gradient, *by_weights, *by_values, *by_others


def _adjoints(
    gradient: Tensor, weights: Sequence[Tensor], values: Sequence[Tensor], others: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients by each layer after activation and before it, to which others are added."""
    after, before = [gradient], list[Tensor]()
    for k in range(len(values) - 1, -1, -1):
        before.insert(0, _silu_backward(after[0], values[k]))
        other = others[k]
        if other is not None:
            before[0] = before[0] + other
        if k:
            after.insert(0, before[0] @ weights[k - 1].t())
    return after, before


def _silu_backward(gradient: Tensor, values: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(gradient, values)
    s = values.sigmoid()  # torch has no derivative of the operation above
    return gradient * (s * (1.0 + values * (1.0 - s)))


def _curvature(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Multiply the second derivative of SiLU by two factors."""
    s = values.sigmoid()
    curvature = torch.addcmul(s, s, s, value=-1.0) * (values * torch.rsub(s, 1.0, alpha=2.0) + 2.0)
    return curvature * first * second
