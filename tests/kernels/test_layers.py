"""Are layers and scaled weights what plain torch gives, in every derivative?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from mace.kernels.layers import activated_layers, scaled
from mace.kernels.passes import Pass, differentiating_by


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def plain(first: Tensor, *weights: Tensor) -> Tensor:
    values = functional.silu(first)
    for weight in weights:
        values = functional.silu(values @ weight)
    return values


@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 4)])
def test_layers(widths: tuple[int, ...]) -> None:
    arguments = random(5, widths[0]), *(random(a, b, seed=b) for a, b in zip(widths[:-1], widths[1:], strict=True))
    torch.testing.assert_close(activated_layers(arguments[0], arguments[1:]), plain(*arguments))
    assert gradcheck(lambda first, *w: activated_layers(first, w), arguments)
    assert gradgradcheck(lambda first, *w: activated_layers(first, w), arguments)


def third_derivatives(first: Tensor, weights: tuple[Tensor, ...], evaluate: object) -> tuple[Tensor, ...]:
    values = evaluate(first, *weights)  # type: ignore[operator]
    for _ in range(2):
        (gradient,) = torch.autograd.grad((values**2).sum(), first, create_graph=True)
        values = gradient
    return torch.autograd.grad((values**2).sum(), (first, *weights))


def test_third_derivatives_of_layers() -> None:
    first, weights = random(4, 3), (random(3, 2, seed=1), random(2, 3, seed=2))
    found = third_derivatives(first, weights, lambda first, *w: activated_layers(first, w))
    for ours, expected in zip(found, third_derivatives(first, weights, plain), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_two_passes_of_training() -> None:
    first, weights = random(4, 3), (random(3, 2, seed=1), random(2, 3, seed=2))
    found = []
    for evaluate in (lambda first, *w: activated_layers(first, w), plain):
        values = evaluate(first, *weights)
        with differentiating_by(Pass.GEOMETRY):
            (gradient,) = torch.autograd.grad(values.sum(), first, create_graph=True)
        with differentiating_by(Pass.PARAMETERS):
            found.append(torch.autograd.grad((gradient**2).sum() + (values**3).sum(), weights))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_scaled_weights() -> None:
    weights = random(2, 3), random(4, seed=1)
    for values, weight, factor in zip(scaled(weights, (0.5, -2.0)), weights, (0.5, -2.0), strict=True):
        torch.testing.assert_close(values, factor * weight)
    assert gradcheck(lambda *w: scaled(w, (0.5, -2.0)), weights)
    assert gradgradcheck(lambda *w: scaled(w, (0.5, -2.0)), weights)
    # what does not enter a result has no gradient
    assert torch.autograd.grad(scaled(weights, (0.5, -2.0))[1].sum(), weights, allow_unused=True)[0] is None
