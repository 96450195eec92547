"""Kernels in Triton, for graphics processors."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

from mace.kernels.backend import Backend
from mace.kernels.c_backend import BlockedTable
from mace.kernels.radial_table import RadialTable

DEVICES = ("cuda", "xpu")
"""Kinds of devices that Triton compiles for; those of AMD are called cuda as well."""


class TritonBackend(Backend):
    """Programs of kernels in Triton; what has no program runs in torch.

    Args:
        tf32: See `Backend`.
    """

    name = "triton"
    reads_tables_fast = True

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32

    def has_programs(self, device: torch.device) -> bool:
        """See `Backend`."""
        return device.type in DEVICES or (device.type == "cpu" and is_interpreted())

    def prepare_table(self, table: RadialTable) -> RadialTable:
        """See `Backend`."""
        from mace.kernels.triton_source.launching import LANES

        return BlockedTable.of(table, LANES)


def is_interpreted() -> bool:
    """Return whether Triton interprets its kernels on the numbers in this machine's memory, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and has_triton()


@cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


TRITON, TRITON_TF32 = TritonBackend(), TritonBackend(tf32=True)
"""The back end, and the one that multiplies float32 matrices with TensorFloat-32."""
