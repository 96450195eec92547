"""Sums on devices in a fixed order, by kernels in Triton, where torch's operations add in whatever order threads come.

None of these functions is differentiable; `mace.kernels.gather` makes them so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.c_source.geometry import GRAPH_POINTERS


def has_kernels(values: Tensor) -> bool:
    """Return whether numbers are where these functions work: on a device for which Triton is installed."""
    if values.device.type == "cpu":
        return False
    from mace.kernels.triton_backend import DEVICES, has_triton

    return values.device.type in DEVICES and has_triton()


def segment_sum(values: Tensor, segments: Tensor, n_segments: int, dtype: torch.dtype | None = None) -> Tensor:
    """Add up the rows of each segment in double precision.

    What a segment's rows are added in depends on their number alone, so another batch gives the same bits.

    Args:
        values: ``[rows, ...]``.
        segments: The segment of each row, in rising order, ``[rows]``.
        n_segments: Number of segments, some of which may have no rows.
        dtype: Precision of the result; that of the values if None.

    Returns:
        ``[segments, ...]``.
    """
    from mace.kernels.triton_source.segments import CHUNK, segment_parts, segment_totals

    rows, shape = len(values), values.shape[1:]
    totals = values.new_empty(n_segments, *shape, dtype=dtype or values.dtype)
    width, n_parts = shape.numel(), max(1, -(-rows // CHUNK))
    parts = totals if n_parts == 1 else totals.new_empty(n_segments, n_parts, width, dtype=torch.float64)
    segment_parts(n_segments, width).run([values.contiguous(), segments, parts], [rows, n_parts, width])
    if n_parts > 1:
        segment_totals().run([parts, totals], [n_segments, n_parts, width])
    return totals


def forces(gradient: Tensor, graph: Graph) -> Tensor:
    """See `mace.kernels.gather.forces_of_pairs`."""
    found = gradient.new_empty(graph.n_atoms, 3)
    _run("forces_value", graph, [gradient, found])
    return found


def of_forces(cotangent: Tensor, graph: Graph) -> Tensor:
    """Return the adjoint of `forces`, ``[atoms, 3]`` to ``[pairs, 3]``."""
    found = cotangent.new_empty(len(graph.pair_sender), 3)
    _run("forces_adjoint", graph, [cotangent, found])
    return found


def strain(gradient: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """See `mace.kernels.gather.strain_of_pairs`."""
    of_atoms = gradient.new_empty(graph.n_atoms, 3, 3, dtype=torch.float64)
    _run("strain_of_atoms", graph, [vectors, gradient, of_atoms])
    return segment_sum(of_atoms, graph.structure_of_atom, graph.n_structures, gradient.dtype)


def of_strain(cotangent: Tensor, vectors: Tensor, graph: Graph) -> Tensor:
    """Return the adjoint of `strain`, ``[structures, 3, 3]`` to ``[pairs, 3]``."""
    found = cotangent.new_zeros(len(graph.pair_sender), 3)
    _run("strain_adjoint", graph, [vectors, cotangent, found])
    return found


def _run(name: str, graph: Graph, arrays: Sequence[Tensor]) -> None:
    """Launch one of the kernels of the geometry, those used here do not depend on the cutoff or its exponent."""
    from mace.kernels.triton_source.pairs import pair_kernels

    kernel = pair_kernels(1, arrays[0].dtype)[name]
    of_graph = [getattr(graph, pointer) for pointer in GRAPH_POINTERS[:-2]]
    sizes = [graph.n_atoms, graph.max_neighbors, len(graph.pair_sender), 1.0]
    kernel.run([*of_graph, None, None, *(array.contiguous() for array in arrays)], sizes)
