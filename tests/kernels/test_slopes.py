"""Are the slopes that training uses those of the functions, and is every other derivative left whole?"""

from __future__ import annotations

import original_files as files
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mace.equivariant.spherical_harmonics import spherical_harmonics
from mace.graphs.graph import Graph
from mace.kernels.passes import Pass, differentiating_by
from mace.kernels.slopes import lengths_and_harmonics
from mace.model.radial import RadialEmbedding


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def both_passes(values: tuple[Tensor, ...], by: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate twice as training does: by the geometry, then by what the values are multiplied by."""
    factors = random(sum(value.numel() for value in values), seed=1)
    total = (torch.cat([value.flatten() for value in values]) * factors**2).sum()
    with differentiating_by(Pass.GEOMETRY):
        (first,) = torch.autograd.grad(total, by, create_graph=True)
    with differentiating_by(Pass.PARAMETERS):
        (second,) = torch.autograd.grad((first**3).sum(), factors)
    return first, second


@pytest.mark.parametrize("l_max", [0, 1, 3, 4])
def test_harmonics_and_lengths(l_max: int) -> None:
    vectors = random(6, 3)
    lengths = vectors.norm(dim=1)
    plain = lengths, spherical_harmonics(vectors / lengths.unsqueeze(1), l_max)
    found = lengths_and_harmonics(vectors, l_max)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(both_passes(found, vectors), both_passes(plain, vectors))
    assert gradcheck(lambda v: lengths_and_harmonics(v, l_max), vectors)
    assert gradgradcheck(lambda v: lengths_and_harmonics(v, l_max), vectors)


@pytest.mark.parametrize("kind", ["bessel", "gaussian"])
@pytest.mark.parametrize("after", [False, True])
def test_radial_basis(graph: Graph, kind: str, after: bool) -> None:
    plan = files.model().plan.model_copy(update={"radial_type": kind, "cutoff_after_network": after, "r_max": 2.5})
    embedding = RadialEmbedding(plan)
    lengths = torch.linspace(0.3, 2.6, 9, dtype=torch.float64).requires_grad_()

    def values(evaluate: object) -> tuple[Tensor, ...]:
        return tuple(value for value in evaluate(lengths) if value is not None)  # type: ignore[operator]

    plain, found = values(lambda r: embedding.of_length(r, r)), values(lambda r: embedding(r, graph))
    assert len(found) == 1 + after
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(both_passes(found, lengths), both_passes(plain, lengths))
    assert gradgradcheck(lambda r: embedding(r, graph)[0], lengths)
