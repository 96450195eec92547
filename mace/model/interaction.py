"""One interaction: messages from the neighbors, summed, mixed and divided by the number of neighbors."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.convolution import convolution_paths, convolve, coupling_matrix
from mace.kernels.emit import lanes
from mace.kernels.gather import gather_pairs, join_components
from mace.kernels.native import blocked_table, convolve_native, convolve_tabulated, pad_channels, unpad_channels
from mace.kernels.radial_table import RadialTable, tabulate
from mace.model.activations import SILU_SCALE
from mace.model.plan import ModelPlan
from mace.model.radial import RadialEmbedding


class RadialNetwork(nn.Module):
    """A network without biases from the radial basis to the weights of all paths and channels.

    Being free of biases it maps zero to zero, so that beyond the cutoff no message is left.

    Args:
        widths: Number of inputs, of each hidden layer, and of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.empty(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, basis: Tensor) -> Tensor:
        """Evaluate, ``[pairs, inputs]`` to ``[pairs, outputs]``."""
        return self._hidden(basis) @ self._last()

    def blocks(self, basis: Tensor, n_paths: int, n_lanes: int) -> Tensor:
        """Evaluate in the layout of the compiled kernels, ``[pairs, blocks of channels, paths, lanes]``.

        Channels are padded with zeros to whole blocks.
        """
        last = self._last().view(-1, n_paths, self.weights[-1].shape[1] // n_paths)
        missing = -last.shape[2] % n_lanes
        last = torch.nn.functional.pad(last, (0, missing)).view(last.shape[0], n_paths, -1, n_lanes)
        n_blocks = last.shape[2]
        return (self._hidden(basis) @ last.transpose(1, 2).flatten(1)).view(-1, n_blocks, n_paths, n_lanes)

    def _last(self) -> Tensor:
        """Return the last weights with their scale."""
        last = self.weights[-1]
        return last * ((SILU_SCALE if len(self.weights) > 1 else 1.0) / last.shape[0] ** 0.5)

    def _hidden(self, values: Tensor) -> Tensor:
        """Evaluate all but the last layer."""
        scale = 1.0
        for weight in self.weights[:-1]:
            values = torch.nn.functional.silu(values @ (weight * (scale / weight.shape[0] ** 0.5)))
            scale = SILU_SCALE
        return values


class Interaction(nn.Module):
    """Gather, couple, sum and mix the features of the neighbors.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    coupling: Tensor

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.kind = plan.interactions[layer]
        self.compiled = False
        self._table: RadialTable | None = None
        self._blocked_table: Tensor | None = None
        self.l_in, self.l_out, self.l_max = plan.l_in(layer), plan.l_out(layer), plan.l_max
        self.avg_num_neighbors = plan.avg_num_neighbors
        n, elements = plan.n_channels, plan.n_elements
        self.paths = convolution_paths(self.l_in, plan.l_max)
        coupling = torch.as_tensor(coupling_matrix(self.paths, plan.l_max))
        self.register_buffer("coupling", coupling, persistent=False)
        self.linear_up = nn.Parameter(torch.empty(len(self.l_in), n, n))
        self.radial = RadialNetwork((plan.num_radial_basis, *plan.radial_mlp, len(self.paths) * n))
        counts = [sum(path.l3 == l for path in self.paths) for l in range(plan.l_max + 1)]
        self.linear = nn.ParameterList(torch.empty(count, n, n) for count in counts)
        self.l_skip = (
            tuple(l for l in self.l_in if l in self.l_out) if self.kind.residual else tuple(range(plan.l_max + 1))
        )
        self.skip = nn.Parameter(torch.empty(len(self.l_skip), elements, n, n))
        if self.kind.normalization == "density":
            self.density = nn.Parameter(torch.empty(plan.num_radial_basis, 1))

    def tabulate(self, embedding: RadialEmbedding, n_nodes: int) -> RadialTable:
        """Tabulate the radial weights, computed in float64 from the present parameters, in their precision."""
        network = deepcopy(self.radial).double().requires_grad_(False)

        def weights(lengths: Tensor) -> Tensor:
            return network(embedding.of_length(lengths, lengths))

        table = tabulate(weights, len(self.paths), embedding.plan.r_max, n_nodes)
        return replace(table, values=table.values.to(self.linear_up))

    def use_table(self, table: RadialTable | None) -> None:
        """Read the radial weights from a table instead of evaluating the network; None for the network again.

        Args:
            table: In the precision and on the device of the weights.
        """
        self._table = table
        self._blocked_table = blocked_table(table) if table is not None and self.compiled else None

    def take_table(self) -> RadialTable | None:
        """Return the table that was read and evaluate the network from now on."""
        table = self._table
        self.use_table(None)
        return table

    @property
    def needs_basis(self) -> bool:
        """Whether the radial basis is needed; a table goes without, unless a density is learned from it."""
        return self._table is None or self.kind.normalization == "density"

    def forward(
        self, features: dict[int, Tensor], lengths: Tensor, basis: Tensor, harmonics: Tensor, graph: Graph
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute the atomic basis A and the skip connection.

        Args:
            features: Rows by degree, ``[atoms, 2 l + 1, channels]``.
            lengths: Angstrom, ``[pairs]``.
            basis: Radial basis, ``[pairs, num_radial_basis]``; anything where it is not needed.
            harmonics: ``[slots, (l_max + 1)^2]``.
            graph: The graph.

        Returns:
            A, ``[channels, (l_max + 1)^2, atoms]`` or, for the compiled kernels, ``[atoms, (l_max + 1)^2, channels]``;
            and by degree the residual, ``[atoms, 2 l + 1, channels]``; empty for a kind without one.
        """
        n = self.linear_up.shape[-1]
        mixed = {
            degree: features[degree] @ (weight * n**-0.5)
            for degree, weight in zip(self.l_in, self.linear_up.unbind(0), strict=True)
        }
        convolve = self._convolve_compiled if self.compiled else self._convolve
        summed = convolve(mixed, lengths, basis, harmonics, graph)
        divisor = self._divisor(basis, graph)
        skips = self.skip.unbind(0)
        atomic_basis = join_components(
            [self._mix(summed[l], l, None if self.kind.residual else skips[l], divisor, graph) for l in summed]
        )
        return atomic_basis, self._residual(features, skips, graph) if self.kind.residual else {}

    def _convolve(
        self, features: dict[int, Tensor], lengths: Tensor, basis: Tensor, harmonics: Tensor, graph: Graph
    ) -> dict[int, Tensor]:
        """Sum over neighbors, by degree ``[atoms, 2 l + 1, paths * channels]``."""
        if self._table is not None:
            radial = self._table.evaluate(lengths)
        else:
            radial = self.radial(basis).view(-1, len(self.paths), self.linear_up.shape[-1])
        summed = convolve(features, radial, harmonics, self.coupling, self.paths, graph)
        return {degree: torch.cat(paths, dim=2) for degree, paths in summed.items()}

    def _convolve_compiled(
        self, features: dict[int, Tensor], lengths: Tensor, basis: Tensor, harmonics: Tensor, graph: Graph
    ) -> dict[int, Tensor]:
        """Do the same with the compiled kernels."""
        n = self.linear_up.shape[-1]
        padded = {degree: pad_channels(values) for degree, values in features.items()}
        if self._table is not None and self._blocked_table is not None:
            summed = convolve_tabulated(
                padded, lengths, self._table, self._blocked_table, harmonics, self.coupling, self.paths, graph
            )
        else:
            radial = self.radial.blocks(basis, len(self.paths), lanes(basis.dtype))
            summed = convolve_native(padded, radial, harmonics, self.coupling, self.paths, graph)
        return {degree: unpad_channels(values, n).flatten(2) for degree, values in summed.items()}

    def _divisor(self, basis: Tensor, graph: Graph) -> Tensor | None:
        """Return one plus the learned density of every row, ``[atoms]``; None when counting."""
        if self.kind.normalization == "count":
            return None
        density = torch.tanh((basis @ (self.density * self.density.shape[0] ** -0.5)) ** 2)
        of_atom = gather_pairs(density, graph).view(graph.n_atoms, graph.max_neighbors).sum(1)
        return of_atom + 1.0

    def _mix(self, summed: Tensor, degree: int, skip: Tensor | None, divisor: Tensor | None, graph: Graph) -> Tensor:
        """Mix the channels of all paths of a degree, ``[channels, 2 l + 1, atoms]``; reversed for compiled kernels."""
        weight = self.linear[degree]
        count, n, _ = weight.shape
        scale = (count * n) ** -0.5 / (self.avg_num_neighbors if divisor is None else 1.0)
        weight = weight.reshape(count * n, n) * scale
        pieces: tuple[Tensor, ...] = (summed,)
        weights = [weight]
        if skip is not None:  # one matrix of each element, not a view into the parameter, whose derivative fills zeros
            chosen = (skip * (n * self.skip.shape[1]) ** -0.5).unbind(0)
            pieces = summed.split(graph.element_counts)
            weights = [weight @ chosen[element] for element in graph.elements_present]
        if self.compiled:
            mixed = _joined([piece @ w for piece, w in zip(pieces, weights, strict=True)], dim=0)
            return mixed if divisor is None else mixed / divisor.view(-1, 1, 1)
        products = [_transposed_product(w, piece.transpose(0, 1)) for piece, w in zip(pieces, weights, strict=True)]
        mixed = _joined(products, dim=2)
        return mixed if divisor is None else mixed / divisor

    def _residual(self, features: dict[int, Tensor], skips: tuple[Tensor, ...], graph: Graph) -> dict[int, Tensor]:
        """Map the input with the matrix of each atom's element."""
        scale = (self.skip.shape[-1] * self.skip.shape[1]) ** -0.5
        result = {}
        for degree, skip in zip(self.l_skip, skips, strict=True):
            pieces, weights = features[degree].split(graph.element_counts), (skip * scale).unbind(0)
            result[degree] = torch.cat([p @ weights[e] for e, p in zip(graph.elements_present, pieces, strict=True)])
        return result


def _joined(pieces: list[Tensor], dim: int) -> Tensor:
    """Concatenate, without a copy if there is but one piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


def _transposed_product(weight: Tensor, rows: Tensor) -> Tensor:
    """Multiply ``[a, b, inputs]`` by ``[inputs, channels]`` into ``[channels, a, b]``, the kernel's layout."""
    a, b, inputs = rows.shape
    return (weight.t() @ rows.reshape(a * b, inputs).t()).view(-1, a, b)
