"""The potentials that the laws are asserted of."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mace.testing.laws import BatchPotential, Potential, Structure


@pytest.fixture
def potential(case: Any) -> Potential:
    """Every stored model, one structure at a time."""
    return sys.modules["parity_cases"].potential(case.strong_model())


@pytest.fixture
def batch_potential(case: Any) -> BatchPotential:
    """Every stored model, several structures at a time."""
    return sys.modules["parity_cases"].batch_potential(case.strong_model())


@pytest.fixture
def structures(load_case: Any) -> list[Structure]:
    """Methanol, skewed silicon, slab."""
    return load_case("density_l2_c2_t2").structures()
