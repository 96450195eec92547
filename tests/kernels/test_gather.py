"""Are the gathers what they say, and each the derivative of the other?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mace.graphs.graph import Graph
from mace.kernels.gather import (
    forces_of_pairs,
    gather_pairs,
    gather_senders,
    join_components,
    restore_order,
    sum_to_pairs,
)

TIGHT = {"atol": 1e-8, "rtol": 1e-6}
"""What polynomials of low degree allow; the tolerances of torch would let an error of 0.1 % pass."""


def filled_slots(graph: Graph) -> Tensor:
    """Which slots hold an edge, ``[slots]``."""
    return graph.pair_of_slot != len(graph.pair_sender) - 1


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def masked(values: Tensor, rows: Tensor) -> Tensor:
    """Set rows to zero that are not chosen."""
    return values * rows.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)


def not_padding(graph: Graph) -> Tensor:
    """Which pairs are real, ``[pairs]``."""
    return torch.arange(len(graph.pair_sender)) < len(graph.pair_sender) - 1


@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
def test_gather_senders(graph: Graph, shape: tuple[int, ...]) -> None:
    values = random(graph.n_atoms, *shape)
    gathered = gather_senders(values, graph)
    assert gathered.shape == (graph.n_atoms * graph.max_neighbors, *shape)
    filled = filled_slots(graph)
    assert torch.equal(gathered[filled], values[graph.sender_of_slot[filled]])
    assert int(filled.sum()) == graph.n_edges


@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
def test_the_derivative_of_gather_senders_sums_slots(graph: Graph, shape: tuple[int, ...]) -> None:
    atoms = random(graph.n_atoms, *shape).requires_grad_()
    slots = masked(random(graph.n_atoms * graph.max_neighbors, *shape, seed=1), filled_slots(graph))
    (found,) = torch.autograd.grad(gather_senders(atoms, graph), atoms, slots)
    expected = torch.zeros(graph.n_atoms, *shape, dtype=torch.float64).index_add(0, graph.sender_of_slot, slots)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
def test_gather_pairs(graph: Graph, shape: tuple[int, ...]) -> None:
    pairs = random(len(graph.pair_sender), *shape)
    assert torch.equal(gather_pairs(pairs, graph), pairs[graph.pair_of_slot])


@pytest.mark.parametrize("shape", [(), (3,), (3, 5)])
def test_sum_to_pairs(graph: Graph, shape: tuple[int, ...]) -> None:
    slots = random(graph.n_atoms * graph.max_neighbors, *shape)
    expected = torch.zeros(len(graph.pair_sender), *shape, dtype=torch.float64)
    expected = masked(expected.index_add(0, graph.pair_of_slot, slots), not_padding(graph))
    torch.testing.assert_close(sum_to_pairs(slots, graph), expected)


def test_pairs_and_slots_are_adjoint(graph: Graph) -> None:
    pairs = masked(random(len(graph.pair_sender), 3), not_padding(graph))
    slots = random(graph.n_atoms * graph.max_neighbors, 3, seed=1)
    torch.testing.assert_close((gather_pairs(pairs, graph) * slots).sum(), (pairs * sum_to_pairs(slots, graph)).sum())


def test_derivatives_of_gather_senders(graph: Graph) -> None:
    """The derivative is right where empty slots are multiplied by zero, as the caller promises."""
    filled = filled_slots(graph)
    atoms = random(graph.n_atoms, 3).requires_grad_()

    def through_atoms(values: Tensor) -> Tensor:
        return masked(gather_senders(values, graph), filled) ** 2

    assert gradcheck(through_atoms, (atoms,), **TIGHT)
    assert gradgradcheck(through_atoms, (atoms,), **TIGHT)


def test_derivatives_of_gather_pairs(graph: Graph) -> None:
    """The padding pair is a constant: no derivative reaches it."""
    real = not_padding(graph)
    pairs = random(len(graph.pair_sender), 2).requires_grad_()

    def through_pairs(values: Tensor) -> Tensor:
        return gather_pairs(masked(values, real), graph) ** 2

    assert gradcheck(through_pairs, (pairs,), **TIGHT)
    assert gradgradcheck(through_pairs, (pairs,), **TIGHT)


def test_derivatives_of_sum_to_pairs(graph: Graph) -> None:
    filled = filled_slots(graph)
    slots = random(graph.n_atoms * graph.max_neighbors, 2).requires_grad_()

    def through_slots(values: Tensor) -> Tensor:
        return sum_to_pairs(masked(values, filled), graph) ** 2

    assert gradcheck(through_slots, (slots,), **TIGHT)
    assert gradgradcheck(through_slots, (slots,), **TIGHT)


def test_restore_order(graph: Graph) -> None:
    rows = graph.element.index_select(0, graph.atoms_by_element)
    assert torch.equal(restore_order(rows, graph), graph.element)


def test_derivatives_of_restore_order(graph: Graph) -> None:
    values = torch.randn(graph.n_atoms, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: restore_order(v, graph), (values,))
    assert torch.autograd.gradgradcheck(lambda v: restore_order(v, graph) ** 2, (values,))


def test_forces_are_the_negative_gradient_by_positions(graph: Graph) -> None:
    of_pairs = masked(random(len(graph.pair_sender), 3), not_padding(graph))
    expected = torch.zeros(graph.n_atoms, 3, dtype=torch.float64)
    expected = expected.index_add(0, graph.pair_sender, of_pairs).index_add(0, graph.pair_receiver, -of_pairs)
    torch.testing.assert_close(forces_of_pairs(of_pairs, graph), expected)


def test_derivatives_of_forces(graph: Graph) -> None:
    real = not_padding(graph)
    pairs = random(len(graph.pair_sender), 3).requires_grad_()

    def through_pairs(values: Tensor) -> Tensor:
        return forces_of_pairs(masked(values, real), graph) ** 2

    assert gradcheck(through_pairs, (pairs,), **TIGHT)
    assert gradgradcheck(through_pairs, (pairs,), **TIGHT)


def test_joined_components_and_their_derivatives() -> None:
    pieces = [torch.randn(3, n, 2, dtype=torch.float64, requires_grad=True) for n in (1, 3, 5)]
    assert torch.equal(join_components(pieces), torch.cat(pieces, dim=1))
    assert join_components(pieces[:1]) is pieces[0]
    assert torch.autograd.gradcheck(lambda *p: join_components(p), pieces)
    assert torch.autograd.gradgradcheck(lambda *p: join_components(p) ** 3, pieces)
