"""Virials and features of single atoms against the original's, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mace.model.prediction import Prediction, predict
from mace.potential.descriptors import descriptors

FOLDER = Path(__file__).parent / "references" / "atoms"

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture
def original(case: Any) -> dict[str, np.ndarray]:
    """What the original says."""
    with np.load(FOLDER / f"{case.settings['name']}.npz") as stored:
        return dict(stored)


@pytest.fixture
def prediction(case: Any) -> Prediction:
    """Our results for the three structures in one batch."""
    return predict(case.model(), case.dataset().batch([0, 1, 2]).graph, stress=True, atomic_virials=True, features=True)


def test_virials(case: Any, original: dict[str, np.ndarray], prediction: Prediction) -> None:
    if case.plan.radial_type == "chebyshev":
        pytest.skip("the original has no derivative of this radial basis")
    expected = original["atomic_virials"]
    np.testing.assert_allclose(prediction.atomic_virials.numpy(), expected, atol=1e-9 * np.abs(expected).max())


def test_features(original: dict[str, np.ndarray], prediction: Prediction) -> None:
    expected = original["node_feats"]
    found = descriptors(prediction, invariants_only=False).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
