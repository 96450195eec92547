"""The inner loops in torch: what defines them, on every device and differentiable as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.backend import Backend, TabulatedRadial, blocks_of_atoms, blocks_of_rows, joined
from mace.kernels.convolution import Convolution
from mace.kernels.gather import DirectedEdges, join_components
from mace.kernels.symmetric_contraction import SymmetricContraction


class TorchBackend(Backend):
    """Kernels in torch; the atomic basis lies in memory as ``[channels, (l_max + 1)^2, atoms]``."""

    name = "torch"

    def radial(self, hidden: Tensor, weight: Tensor, n_paths: int) -> Tensor:
        """See `Backend`; ``[rows, paths, channels]``."""
        return (hidden @ weight).view(len(hidden), n_paths, -1)

    def convolve(
        self,
        convolution: Convolution,
        features: Mapping[int, Tensor],
        radial: Tensor | TabulatedRadial,
        harmonics: Tensor,
        graph: Graph,
        edges: DirectedEdges | None = None,
    ) -> dict[int, Tensor]:
        """See `Backend`."""
        weights = radial.table.evaluate(radial.lengths) if isinstance(radial, TabulatedRadial) else radial
        return convolution(features, weights, harmonics, graph, edges)

    def mix(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        graph: Graph,
        element_weights: Sequence[Tensor] | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """See `Backend`."""
        mixed = []
        for pieces, matrices in blocks_of_rows(rows, weights, element_weights, graph):
            # channels first: the products then leave what the contraction reads
            of_degree = joined(
                [
                    (matrix.t() @ piece.transpose(0, 1).flatten(0, 1).t()).view(-1, piece.shape[1], piece.shape[0])
                    for piece, matrix in zip(pieces, matrices, strict=True)
                ],
                dim=2,
            )
            mixed.append(of_degree if divisor is None else of_degree / divisor)
        return join_components(mixed).permute(2, 1, 0)

    def contract(
        self,
        contraction: SymmetricContraction,
        atomic_basis: Tensor,
        weights: Mapping[tuple[int, int], Tensor],
        graph: Graph,
    ) -> dict[int, Tensor]:
        """See `Backend`."""
        products = contraction(atomic_basis.permute(2, 1, 0), weights, *blocks_of_atoms(weights, graph))
        return {degree: values.permute(2, 1, 0) for degree, values in products.items()}


TORCH = TorchBackend()
