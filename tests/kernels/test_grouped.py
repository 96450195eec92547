"""Are products with the matrix of each element what a loop over the atoms gives, in every derivative?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mace.graphs.graph import Graph
from mace.kernels import grouped
from mace.kernels.grouped import element_products

COMPONENTS = (1, 3)
N_ELEMENTS = 4


def arguments(graph: Graph) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (sum(COMPONENTS), graph.n_atoms, 3), (len(COMPONENTS), N_ELEMENTS, 3, 2)
    values, matrices = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return values.requires_grad_(), matrices.requires_grad_()


@pytest.mark.parametrize("sizes", [grouped.SIZES, (1,), (2,)])
def test_each_row_meets_its_matrix(graph: Graph, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "SIZES", sizes)
    grouped._tiling.cache_clear()
    values, matrices = arguments(graph)
    element = graph.element.index_select(0, graph.atoms_by_element)
    expected = torch.stack(
        [
            values[c, i] @ matrices[degree, element[i]]
            for c, degree in enumerate((0, 1, 1, 1))
            for i in range(len(element))
        ]
    )
    found = element_products(values, matrices, COMPONENTS, graph)
    torch.testing.assert_close(found, expected.view(found.shape))
    (of_matrices,) = torch.autograd.grad(found.sum(), matrices)
    absent = [e for e in range(N_ELEMENTS) if e not in graph.elements_present]
    assert not of_matrices[:, absent].any() and of_matrices[:, list(graph.elements_present)].any()
    grouped._tiling.cache_clear()


def test_derivatives(graph: Graph) -> None:
    def products(values: Tensor, matrices: Tensor) -> Tensor:
        return element_products(values, matrices, COMPONENTS, graph)

    assert gradcheck(products, arguments(graph))
    assert gradgradcheck(products, arguments(graph))
