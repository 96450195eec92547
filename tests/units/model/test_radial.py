"""Functions of the distance: values, smoothness at the cutoff, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.assembly import build_graph
from mace.graphs.graph import pair_vectors
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import predict
from mace.model.radial import (
    BASES,
    COULOMB,
    NuclearRepulsion,
    agnesi_transform,
    bessel_basis,
    chebyshev_basis,
    gaussian_basis,
    polynomial_envelope,
    soft_transform,
)
from mace.structures.configuration import Configuration

FREE = (False, False, False)


def plan(**changes: Any) -> ModelPlan:
    """Make a small plan for carbon and cesium."""
    settings: dict[str, Any] = {
        "model": "ScaleShiftMACE", "r_max": 3.0, "l_max": 1, "n_channels": 2, "hidden_l": (0,),
        "interactions": (InteractionPlan(residual=True),), "correlation": (2,), "radial_mlp": (4,),
        "avg_num_neighbors": 3.0, "atomic_numbers": (6, 55), "reference_energies": (-1.0, -2.0),
    }  # fmt: skip
    return ModelPlan(**(settings | changes))


def molecule(numbers: list[int], positions: list[list[float]]) -> Configuration:
    return Configuration(np.array(numbers), np.array(positions), np.zeros((3, 3)), FREE)


def derivatives_at(function: Any, x: float, orders: int) -> list[float]:
    """Value and derivatives of a function of one number."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = function(point)
    results = [value.item()]
    for _ in range(orders):
        (value,) = torch.autograd.grad(value, point, create_graph=True)
        results.append(value.item())
    return results


@pytest.mark.parametrize("p", [2, 5, 6, 8])
def test_envelope_has_two_continuous_derivatives_at_the_cutoff(p: int) -> None:
    inside = derivatives_at(lambda r: polynomial_envelope(r, 3.0, p), 3.0 - 1e-9, 3)
    assert inside[0] == pytest.approx(0.0, abs=1e-12)
    assert inside[1] == pytest.approx(0.0, abs=1e-12)
    assert inside[2] == pytest.approx(0.0, abs=1e-6)
    assert abs(inside[3]) > 0.1
    for r in (3.0, 3.0 + 1e-9, 4.0, 100.0):
        assert derivatives_at(lambda r: polynomial_envelope(r, 3.0, p), r, 2) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("p", [2, 5, 6])
def test_envelope_is_flat_at_the_origin_and_falls(p: int) -> None:
    assert float(polynomial_envelope(torch.tensor(0.0), 3.0, p)) == 1.0
    values = polynomial_envelope(torch.linspace(0.0, 3.0, 200, dtype=torch.float64), 3.0, p)
    assert (values.diff() <= 0.0).all() and values.min() >= -1e-15
    # the first power beyond the constant is p
    assert float(1.0 - polynomial_envelope(torch.tensor(0.003, dtype=torch.float64), 3.0, p)) == pytest.approx(
        (p + 1) * (p + 2) / 2 * 1e-3**p, rel=1e-2, abs=1e-16
    )


def test_envelope_with_a_cutoff_for_every_length() -> None:
    lengths, cutoffs = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 6.0])
    values = polynomial_envelope(lengths, cutoffs, 5)
    assert values.tolist() == pytest.approx([1 - 7.25 / 32, 0.0, 1 - 7.25 / 32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_length_equal_to_the_cutoff_gives_nothing(dtype: torch.dtype) -> None:
    """The padding pair is exactly as long as the cutoff, and must be so after rounding."""
    graph = build_graph(molecule([6], [[0.0, 0.0, 0.0]]), ElementTable((6,)), 3.0)
    for r_max in np.linspace(1.0, 12.0, 111):
        length = pair_vectors(graph, float(r_max), dtype).norm(dim=-1)
        assert float(polynomial_envelope(length, float(r_max), 5)) == 0.0


def test_bessel_functions_are_orthonormal_and_vanish_at_the_cutoff() -> None:
    r_max, n = 4.0, 6
    r = (torch.arange(4000, dtype=torch.float64) + 0.5) * (r_max / 4000)
    basis = bessel_basis(r, r_max, n)
    overlap = torch.einsum("r,ri,rj->ij", r * r * (r_max / 4000), basis, basis)
    torch.testing.assert_close(overlap, torch.eye(n, dtype=torch.float64), rtol=0.0, atol=1e-10)
    assert bessel_basis(torch.tensor([r_max], dtype=torch.float64), r_max, n).abs().max() < 1e-14


def test_gaussians_sit_evenly_from_zero_to_the_cutoff() -> None:
    centers = torch.linspace(0.0, 4.0, 5, dtype=torch.float64)
    basis = gaussian_basis(centers, 4.0, 5)
    assert basis.diagonal().tolist() == [1.0] * 5
    assert basis[0, 1].item() == pytest.approx(np.exp(-0.5))
    assert torch.isfinite(gaussian_basis(centers, 4.0, 1)).all()


def test_chebyshev_polynomials() -> None:
    angle = torch.linspace(0.1, 3.0, 7, dtype=torch.float64)
    expected = torch.cos(angle.unsqueeze(1) * torch.arange(1, 7))
    torch.testing.assert_close(chebyshev_basis(torch.cos(angle), 5.0, 6), expected)


@pytest.mark.parametrize("name", sorted(BASES))
@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_basis_has_the_number_of_functions_asked_for(name: str, n: int) -> None:
    lengths = torch.rand(4, dtype=torch.float64) + 1.0
    assert BASES[name](lengths, 5.0, n).shape == (4, n)
    assert torch.autograd.gradcheck(lambda r: BASES[name](r, 5.0, n), (lengths.requires_grad_(),))


def test_agnesi_transform_falls_from_one_to_zero() -> None:
    r = torch.linspace(0.05, 60.0, 500, dtype=torch.float64)
    values = agnesi_transform(r, torch.full_like(r, 1.5))
    assert (values.diff() < 0.0).all() and values[0] > 0.99 and 0.0 < values[-1] < 0.05


def test_soft_transform_holds_short_distances() -> None:
    r = torch.linspace(0.0, 6.0, 500, dtype=torch.float64)
    total = torch.full_like(r, 1.6)
    values = soft_transform(r, total)
    near = 0.75 * 1.6
    assert abs(values[0].item() - near) < 0.01
    assert values[-1].item() == pytest.approx(6.0, abs=1e-6)
    assert values[r <= near].min() > near - 0.02 and values[r <= near].max() < near + 0.02


def share(numbers: list[int], distance: float, r_max: float = 6.0) -> Tensor:
    """Half the repulsion of two atoms, and that of the padding."""
    graph = build_graph(molecule(numbers, [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]), ElementTable((6, 55)), r_max)
    lengths = pair_vectors(graph, r_max, torch.float64).norm(dim=-1)
    return NuclearRepulsion(plan(r_max=r_max)).double()(lengths, graph)


def test_repulsion_is_coulombs_at_short_and_nothing_at_long_distance() -> None:
    distance = 1e-4
    assert 2.0 * share([6, 6], distance)[0].item() == pytest.approx(COULOMB * 36 / distance, rel=5e-3)
    # the sum of the covalent radii of carbon is 1.52 Angstrom
    assert share([6, 6], 1.51)[0].item() > 0.0
    assert share([6, 6], 1.53)[0].item() == 0.0


def test_repulsion_does_not_reach_atoms_through_empty_slots() -> None:
    """The radii of two cesium atoms add up to more than the cutoff, so that the padding is within their range."""
    model = MACE(plan(pair_repulsion=True), torch.float64).initialize(torch.Generator().manual_seed(0))
    near = molecule([55, 6, 6], [[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 2.5, 0.0]])
    alone = molecule([55], [[0.0, 0.0, 0.0]])
    dataset = InMemoryDataset([near, alone], ElementTable((6, 55)), 3.0)
    with_slots, without = (predict(model, dataset.batch(chosen).graph).energy for chosen in ([0, 1], [1]))
    assert with_slots[1].item() == pytest.approx(without[0].item(), abs=1e-12)
    no_repulsion = MACE(plan(), torch.float64)
    no_repulsion.load_state_dict(model.state_dict())
    assert without[0].item() == pytest.approx(
        predict(no_repulsion, dataset.batch([1]).graph).energy[0].item(), abs=1e-12
    )
