r"""The convolution: features of neighbors, coupled with the spherical harmonics of the edges and summed.

.. math:: A_{i,p\,m_3,c} = \sum_j R_{p,c}(r_{ij}) \sum_{m_1 m_2} C^{(p)}_{m_3 m_1 m_2}\, x_{j,m_1,c}\, Y_{m_2}(r_{ij})

The coefficients are first contracted with the harmonics, which involves no channels; for each atom and path, one
product remains, of a small matrix ``[m3, neighbors * m1]`` with ``[neighbors * m1, channels]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mace.equivariant.coupling import coupling_coefficients
from mace.graphs.graph import Graph
from mace.kernels.gather import DirectedEdges, gather_edges, gather_pairs, gather_senders


@dataclass(frozen=True)
class ConvolutionPath:
    """A coupling of features of degree ``l1`` with harmonics of degree ``l2`` to degree ``l3``."""

    l1: int
    l2: int
    l3: int


def convolution_paths(l_in: tuple[int, ...], l_max: int) -> tuple[ConvolutionPath, ...]:
    """List the paths of a layer in the order in which radial weights are stored.

    Args:
        l_in: Degrees of the atomic features, all of natural parity.
        l_max: Highest degree of the harmonics and of the result.

    Returns:
        Paths of natural parity, sorted by ``l3``, then ``l1``, then ``l2``.
    """
    paths = [
        ConvolutionPath(l1, l2, l3)
        for l1 in l_in
        for l2 in range(l_max + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_max) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(paths, key=lambda path: path.l3))


def coupling_matrix(paths: tuple[ConvolutionPath, ...], l_max: int) -> np.ndarray:
    """Return the coefficients of all paths, ``[(l_max + 1)^2, sum over paths of (2 l3 + 1) (2 l1 + 1)]``.

    Each path is scaled so that its result has unit variance per component if features and weights do.
    """
    columns = []
    for path in paths:
        # [m1, m2, m3] -> rows m2, columns (m3, m1)
        block = coupling_coefficients(path.l1, path.l2, path.l3) * np.sqrt(2 * path.l3 + 1)
        rows = np.zeros(((l_max + 1) ** 2, (2 * path.l3 + 1) * (2 * path.l1 + 1)))
        rows[path.l2**2 : (path.l2 + 1) ** 2] = block.transpose(1, 2, 0).reshape(2 * path.l2 + 1, -1)
        columns.append(rows)
    return np.concatenate(columns, axis=1)


class Convolution(nn.Module):
    """The constants of a convolution, and its reference implementation in torch.

    Args:
        l_in: Degrees of the features, in increasing order.
        l_max: Highest degree of the harmonics and of the result.

    Attributes:
        paths: All coupling paths, in the order of the radial weights.
    """

    coupling: Tensor

    def __init__(self, l_in: tuple[int, ...], l_max: int) -> None:
        super().__init__()
        self.l_in, self.l_max, self.paths = l_in, l_max, convolution_paths(l_in, l_max)
        self.register_buffer("coupling", torch.as_tensor(coupling_matrix(self.paths, l_max)), persistent=False)

    def forward(
        self,
        features: Mapping[int, Tensor],
        radial: Tensor,
        harmonics: Tensor,
        graph: Graph,
        edges: DirectedEdges | None = None,
    ) -> dict[int, Tensor]:
        """Sum over neighbors; see the module for the equation.

        Args:
            features: By degree, ``[atoms, 2 l + 1, channels]``.
            radial: Radial weights of pairs, or of directed edges, zero for the padding, ``[rows, paths, channels]``.
            harmonics: Harmonics of the directed edge in each slot, ``[slots, (l_max + 1)^2]``.
            graph: The graph.
            edges: The directed edges, if the radial weights belong to these.

        Returns:
            By resulting degree, ``[atoms, 2 l + 1, paths of the degree * channels]``.
        """
        n_atoms, n_neighbors, n_channels = graph.n_atoms, graph.max_neighbors, radial.shape[-1]
        senders = {degree: gather_senders(values, graph) for degree, values in features.items()}
        radial_of_slot = gather_pairs(radial, graph) if edges is None else gather_edges(radial, edges)
        couplings = (harmonics @ self.coupling).split([(2 * p.l3 + 1) * (2 * p.l1 + 1) for p in self.paths], dim=1)
        sums: dict[int, list[Tensor]] = {}
        for path, weights, block in zip(self.paths, radial_of_slot.unbind(1), couplings, strict=True):
            n_out, n_in = 2 * path.l3 + 1, 2 * path.l1 + 1
            messages = (senders[path.l1] * weights.unsqueeze(1)).view(n_atoms, n_neighbors * n_in, n_channels)
            matrix = block.reshape(n_atoms, n_neighbors, n_out, n_in).transpose(1, 2).reshape(n_atoms, n_out, -1)
            sums.setdefault(path.l3, []).append(torch.bmm(matrix, messages))
        return {degree: torch.cat(of_paths, dim=2) for degree, of_paths in sums.items()}
