"""Is the symmetric contraction the polynomial, and is that polynomial the coupled product of copies?"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mace.equivariant.coupling import coupling_coefficients
from mace.equivariant.irreps import Irrep, natural
from mace.equivariant.symmetric_basis import UNRESTRICTED_ORDER, symmetric_basis
from mace.kernels.symmetric_contraction import SymmetricContraction

CHANNELS = 3
TIGHT = {"atol": 1e-8, "rtol": 1e-6}
"""What polynomials of low degree allow; the tolerances of torch would let an error of 0.1 % pass."""
N_ELEMENTS = 4
# (l_max, correlation) with tables small enough for seconds; order 4 beyond l_max 2 and order 3 beyond 3 are large
SIZES = [(l_max, nu) for l_max, nu in product(range(5), range(1, 5)) if (l_max, nu) not in {(3, 4), (4, 3), (4, 4)}]
PRESENT, COUNTS = (0, 2, 3), (2, 1, 4)
"""The second element is absent."""


def degrees(l_max: int) -> tuple[int, ...]:
    return tuple(range(min(l_max, 2) + 1))


def random_weights(l_max: int, correlation: int, dtype: torch.dtype) -> dict[tuple[int, int], Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for degree in degrees(l_max):
        for order in range(1, correlation + 1):
            n_paths = symmetric_basis(l_max, degree, order).n_paths
            if n_paths:
                values = torch.randn(N_ELEMENTS, n_paths, CHANNELS, generator=generator, dtype=torch.float64)
                weights[degree, order] = values.to(dtype)
    return weights


def random_features(l_max: int, n_atoms: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(CHANNELS, (l_max + 1) ** 2, n_atoms, generator=generator, dtype=torch.float64).to(dtype)


def polynomials(
    features: Tensor, weights: dict[tuple[int, int], Tensor], l_max: int, element: Tensor
) -> dict[int, Tensor]:
    """Evaluate every monomial of every path and add up: the definition."""
    result: dict[int, Tensor] = {}
    for (degree, order), weight in weights.items():
        basis = symmetric_basis(l_max, degree, order)
        monomials = torch.ones(features.shape[0], len(basis.monomials), features.shape[2], dtype=features.dtype)
        for factor in torch.as_tensor(basis.monomials).unbind(1):
            monomials = monomials * features[:, factor]
        coefficients = torch.as_tensor(basis.coefficients).to(features.dtype)
        value = torch.einsum("pms,csa,apc->cma", coefficients, monomials, weight[element])
        result[degree] = result[degree] + value if degree in result else value
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("l_max", "correlation"), SIZES)
def test_values(l_max: int, correlation: int, dtype: torch.dtype) -> None:
    weights = random_weights(l_max, correlation, dtype)
    contraction = SymmetricContraction(l_max, degrees(l_max), correlation).to(dtype)
    features = random_features(l_max, sum(COUNTS), dtype)
    element = torch.tensor(PRESENT).repeat_interleave(torch.tensor(COUNTS))
    found = contraction(features, weights, torch.tensor(PRESENT), COUNTS)
    expected = polynomials(features, weights, l_max, element)
    assert sorted(found) == list(degrees(l_max))
    for degree, values in expected.items():
        assert found[degree].dtype == dtype
        scale = float(values.abs().max())
        torch.testing.assert_close(
            found[degree], values, rtol=0.0, atol=scale * (1e-13 if dtype == torch.float64 else 1e-5)
        )


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_one_atom(correlation: int) -> None:
    weights = random_weights(2, correlation, torch.float64)
    contraction = SymmetricContraction(2, degrees(2), correlation).double()
    features = random_features(2, 1, torch.float64)
    found = contraction(features, weights, torch.tensor([1]), (1,))
    for degree, values in polynomials(features, weights, 2, torch.tensor([1])).items():
        torch.testing.assert_close(found[degree], values)


@pytest.mark.parametrize(("l_max", "correlation"), [(0, 3), (1, 4), (2, 1), (2, 2), (3, 2)])
def test_derivatives(l_max: int, correlation: int) -> None:
    weights = random_weights(l_max, correlation, torch.float64)
    contraction = SymmetricContraction(l_max, degrees(l_max), correlation).double()
    features = random_features(l_max, 3, torch.float64).requires_grad_()
    keys = sorted(weights)

    def through(features: Tensor, *values: Tensor) -> Tensor:
        result = contraction(features, dict(zip(keys, values, strict=True)), torch.tensor([0, 3]), (2, 1))
        return torch.cat([result[degree].flatten() for degree in sorted(result)])

    arguments = (features, *[weights[key].requires_grad_() for key in keys])
    assert gradcheck(through, arguments, fast_mode=True, **TIGHT)
    assert gradgradcheck(through, arguments, fast_mode=True, **TIGHT)


def test_an_absent_element_gets_no_gradient() -> None:
    weights = {key: value.requires_grad_() for key, value in random_weights(1, 2, torch.float64).items()}
    contraction = SymmetricContraction(1, degrees(1), 2).double()
    result = contraction(random_features(1, sum(COUNTS), torch.float64), weights, torch.tensor(PRESENT), COUNTS)
    sum((values**2).sum() for values in result.values()).backward()  # type: ignore[union-attr]
    for weight in weights.values():
        assert weight.grad is not None
        assert not weight.grad[1].any() and weight.grad[0].any()


def coupled_copies(l_max: int, order: int, vector: np.ndarray, natural_only: bool) -> list[tuple[Irrep, np.ndarray]]:
    """Couple copies of one vector step by step, every intermediate irrep kept; sorted by irrep after each step."""
    pieces = {l: vector[l * l : (l + 1) ** 2] for l in range(l_max + 1)}
    values = [(natural(l), pieces[l]) for l in range(l_max + 1)]
    for _ in range(order - 1):
        grown = []
        for irrep, value in values:
            for l in range(l_max + 1):
                for result in irrep.products(natural(l)):
                    if natural_only and not result.is_natural:
                        continue
                    coefficients = coupling_coefficients(result.l, irrep.l, l) * np.sqrt(result.dimension)
                    grown.append((result, np.einsum("oab,a,b->o", coefficients, value, pieces[l])))
        values = sorted(grown, key=lambda pair: pair[0])
    return values


@pytest.mark.parametrize(
    ("l_max", "order"), [(0, 3), (1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2), (3, 3), (4, 2)]
)
def test_the_polynomials_are_coupled_products(l_max: int, order: int) -> None:
    """In value, number and order of the paths."""
    vector = np.random.default_rng(order).normal(size=(l_max + 1) ** 2)
    steps = coupled_copies(l_max, order, vector, natural_only=order > UNRESTRICTED_ORDER)
    for l_out in range(l_max + 1):
        expected = [value for irrep, value in steps if irrep == natural(l_out)]
        basis = symmetric_basis(l_max, l_out, order)
        assert basis.n_paths == len(expected)
        monomials = np.prod(vector[basis.monomials], axis=1)
        np.testing.assert_allclose(
            basis.coefficients @ monomials, np.array(expected).reshape(len(expected), -1), atol=1e-11
        )
