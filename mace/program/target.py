"""What blocks must know of the place where their kernels run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mace.kernels.c_source.contraction import CHUNKS_OF_ROWS
from mace.kernels.c_source.geometry import harmonics_width
from mace.kernels.c_source.matrices import panel
from mace.kernels.c_source.parts import lanes
from mace.program.device import DeviceRecording
from mace.program.processor import ProcessorRecording
from mace.program.record import Launch

Recording = ProcessorRecording | DeviceRecording


@dataclass(frozen=True)
class Target:
    """A kind of kernels in a precision.

    Attributes:
        dtype: The precision.
        lanes: Channels of a block; widths of arrays are rounded up to whole blocks.
        panel: Columns of packed matrices that are used together.
        harmonics_width: Length of a row of harmonics up to a degree.
        recording: Makes a recording that can be run from the launches of each section.
        most_packed: Largest number of matrices, such as those of all elements, that are packed in advance if that is
            not required: with many, a batch has few rows of each.
        chunks_of_rows: Into how many chunks rows are cut whose products are summed by element; zero if they are not.
        clears_padding: Whether convolutions set gradients by radial weights of padding to zero.
        in_place: Whether arrays take the memory of others that nobody needs any more.
    """

    dtype: torch.dtype
    lanes: int
    panel: int
    harmonics_width: Callable[[int], int]
    recording: Callable[[Sequence[Sequence[Launch]]], Recording]
    most_packed: int = 8
    chunks_of_rows: int = 0
    clears_padding: bool = False
    in_place: bool = True


def target_of(backend: str, dtype: torch.dtype, tf32: bool = False) -> Target:
    """Return the target of a back end's kernels.

    Args:
        backend: Name of the back end, ``c`` or ``triton``.
        dtype: Precision of the model.
        tf32: Whether products of float32 matrices may be computed with TensorFloat-32; not with ``c``.
    """
    if backend == "c":
        return Target(
            dtype, lanes(dtype), panel(dtype), lambda l_max: harmonics_width(l_max, dtype), ProcessorRecording
        )
    from mace.kernels.triton_source import geometry, launching, packing  # it imports Triton, which not everyone has

    recording = partial(DeviceRecording, dtype=dtype, tf32=tf32)
    # matrices are read where they are as fast; launches are reordered, which the reuse of memory would hinder
    return Target(
        dtype,
        launching.LANES,
        packing.PANEL,
        geometry.harmonics_width,
        recording,
        most_packed=0,
        chunks_of_rows=CHUNKS_OF_ROWS,
        clears_padding=True,
        in_place=False,
    )
