"""Small models with random weights, and structures they know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms

from mace.model.mace import MACE
from mace.model.model_file import ModelMetadata, save_model
from mace.model.plan import InteractionPlan, ModelPlan


def _plan(r_max: float = 4.0) -> ModelPlan:
    return ModelPlan(
        model="ScaleShiftMACE",
        r_max=r_max,
        l_max=2,
        n_channels=4,
        hidden_l=(0, 1),
        interactions=(InteractionPlan(residual=False), InteractionPlan(residual=True)),
        correlation=(2, 2),
        radial_mlp=(8,),
        avg_num_neighbors=8.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-13.6, -1030.0, -2040.0),
        scale=0.7,
        shift=0.1,
    )


@pytest.fixture
def make_model() -> Callable[..., MACE]:
    """Make a model; equal seeds give equal models."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, r_max: float = 4.0) -> MACE:
        return MACE(_plan(r_max), dtype).initialize(torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def model(make_model: Callable[..., MACE]) -> MACE:
    """A model in float64."""
    return make_model()


@pytest.fixture
def metadata() -> ModelMetadata:
    """A description with fixed time stamps."""
    return ModelMetadata(name="tiny", created="2030-01-01T00:00:00+00:00", metrics={"valid": {"rmse_f": 0.01}})


@pytest.fixture
def model_path(tmp_path: Path, model: MACE, metadata: ModelMetadata) -> Path:
    """The file of `model`."""
    return save_model(tmp_path / "tiny.model", model, metadata)


@pytest.fixture
def water() -> Atoms:
    """A molecule without cell."""
    return ase.build.molecule("H2O")


@pytest.fixture
def crystal() -> Atoms:
    """A skewed, rattled cell of several elements that repeats in all directions."""
    rng = np.random.default_rng(1)
    cell = np.array([[4.2, 0.1, 0.0], [0.7, 4.5, -0.2], [-0.4, 0.3, 4.9]])
    scaled = np.array([[0.1, 0.1, 0.1], [0.6, 0.5, 0.1], [0.1, 0.6, 0.5], [0.5, 0.1, 0.6]])
    scaled += rng.normal(scale=0.02, size=scaled.shape)
    return Atoms("COHH", scaled_positions=scaled, cell=cell, pbc=True)
