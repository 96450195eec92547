"""Tests on a graphics processor; with ``MACE_TEST_DEVICE=cpu`` on a CPU, to see whether they are right themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mace.kernels.backend import TORCH, Backend
from mace.kernels.c_backend import C
from mace.kernels.triton_backend import TRITON, has_triton

VARIABLE = "MACE_TEST_DEVICE"
STANDS_IN = "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder, and skip them where there is no device for them."""
    missing = not torch.cuda.is_available() and os.environ.get(VARIABLE) != STANDS_IN
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.device)
            if missing:
                item.add_marker(pytest.mark.skip(reason="there is no graphics processor"))


@pytest.fixture
def device() -> torch.device:
    """The device, or the CPU in its place."""
    return torch.device("cuda" if torch.cuda.is_available() else STANDS_IN)


@pytest.fixture
def only_on_device(device: torch.device) -> None:
    """Skip what means nothing on a CPU."""
    if device.type == STANDS_IN:
        pytest.skip("it needs a graphics processor")


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest, device: torch.device) -> Backend:
    """The kernels in torch, then those in Triton, for which those in C stand in on a CPU."""
    if request.param == "torch":
        return TORCH
    return fast_kernels(device)


@pytest.fixture
def fast(device: torch.device) -> Backend:
    """The kernels in Triton, for which those in C stand in on a CPU."""
    return fast_kernels(device)


def fast_kernels(device: torch.device) -> Backend:
    """Return them, or skip the test where they are not installed."""
    if device.type == STANDS_IN:
        return C
    if not has_triton():
        pytest.skip("Triton is not installed")
    return TRITON
