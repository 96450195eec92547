"""Activations and their factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mace.equivariant.activations import activation


@pytest.mark.parametrize("name", ["silu", "tanh", "abs"])
def test_second_moment_of_a_normal_input_is_nearly_one(name: str) -> None:
    """Within the error of the estimate that the original makes from a million samples."""
    function, factor = activation(name)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    values = function(torch.as_tensor(nodes)).numpy() * factor
    assert (weights * values**2).sum() / weights.sum() == pytest.approx(1.0, abs=5e-3)


def test_no_activation() -> None:
    function, factor = activation("None")
    x = torch.randn(5)
    assert factor == 1.0 and torch.equal(function(x), x)


@pytest.mark.parametrize("name", ["silu", "tanh", "abs", "None"])
def test_zero_stays_zero(name: str) -> None:
    """Isolated atoms have their reference energies only because of this."""
    assert float(activation(name)[0](torch.zeros(()))) == 0.0


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        activation("relu")
