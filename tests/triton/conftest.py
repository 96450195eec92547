"""What all tests of kernels in Triton have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def filled_memory() -> Iterator[None]:
    """Let torch fill new memory with what is no number, so that it shows where kernels read what nobody wrote."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
