"""Networks from what is known of an edge, its length above all, to the weights of all paths and channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.gather import DirectedEdges, gather_senders, take_edges, to_both_directions
from mace.model.activations import SILU_SCALE


@dataclass(frozen=True)
class EdgeInputs:
    """What a network sees of every edge.

    Without features of atoms an edge and its reverse are alike, and rows are pairs; with them rows are directed edges.

    Attributes:
        basis: Radial basis, ``[pairs, num_radial_basis]``.
        envelope: What results are multiplied by, zero for the padding, ``[rows]``; None where the basis is zero beyond
            the cutoff and the network maps zero to zero.
        senders: Features of the atoms as senders, ``[atoms, features]``; None for none.
        receivers: The same as receivers.
        edges: The directed edges, where there are features of atoms.
        graph: The graph.
    """

    basis: Tensor
    envelope: Tensor | None = None
    senders: Tensor | None = None
    receivers: Tensor | None = None
    edges: DirectedEdges | None = None
    graph: Graph | None = None

    def times(self, weight: Tensor) -> Tensor:
        """Multiply basis, sender's and receiver's features, side by side, by a matrix, ``[rows, outputs]``.

        Features are multiplied atom by atom, which are fewer than edges.
        """
        if self.senders is None or self.receivers is None or self.edges is None or self.graph is None:
            return self.basis @ weight
        n_basis, n_features = self.basis.shape[1], self.senders.shape[1]
        of_basis, of_sender, of_receiver = weight.split([n_basis, n_features, n_features])
        n_atoms, n_neighbors = self.graph.n_atoms, self.graph.max_neighbors
        of_slot = gather_senders(self.senders @ of_sender, self.graph).view(n_atoms, n_neighbors, -1)
        of_slot = of_slot + (self.receivers @ of_receiver).unsqueeze(1)
        return to_both_directions(self.basis @ of_basis) + take_edges(of_slot.flatten(0, 1), self.edges)


class RadialNetwork(nn.Module):
    """A network without biases.

    It maps zero to zero, so that beyond the cutoff, where the basis is zero, no message is left.

    Args:
        widths: Number of inputs, of each hidden layer, and of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.empty(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate, ``[rows, outputs]``."""
        return self._enveloped(inputs) @ self._last()

    def blocks(self, inputs: EdgeInputs, n_paths: int, n_lanes: int) -> Tensor:
        """Evaluate in the layout of the compiled kernels, ``[rows, blocks of channels, paths, lanes]``.

        Channels are padded with zeros to whole blocks.
        """
        last = self._last()
        last = last.view(len(last), n_paths, last.shape[1] // n_paths)
        missing = -last.shape[2] % n_lanes
        last = torch.nn.functional.pad(last, (0, missing)).view(last.shape[0], n_paths, -1, n_lanes)
        n_blocks = last.shape[2]
        return (self._enveloped(inputs) @ last.transpose(1, 2).flatten(1)).view(-1, n_blocks, n_paths, n_lanes)

    def _enveloped(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate all but the last layer, times the envelope: the last layer is linear and wider."""
        hidden = self._hidden(inputs)
        return hidden if inputs.envelope is None else hidden * inputs.envelope.unsqueeze(1)

    def _last(self) -> Tensor:
        """Return the last weights with their scale."""
        last = self.weights[-1]
        return last * ((SILU_SCALE if len(self.weights) > 1 else 1.0) / last.shape[0] ** 0.5)

    def _hidden(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate all but the last layer."""
        if len(self.weights) == 1:
            return inputs.basis
        first, *others = self.weights[:-1]
        values = torch.nn.functional.silu(inputs.times(first * first.shape[0] ** -0.5))
        for weight in others:
            values = torch.nn.functional.silu(values @ (weight * (SILU_SCALE / weight.shape[0] ** 0.5)))
        return values


class NormalizedRadialNetwork(RadialNetwork):
    """A network with biases, whose hidden layers are normalized to mean zero and variance one before the activation.

    It does not map zero to zero: only the envelope of its inputs takes the result to zero at the cutoff.

    Args:
        widths: Number of inputs, of each hidden layer, and of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(widths)
        self.biases = nn.ParameterList(torch.empty(width) for width in widths[1:])
        self.factors = nn.ParameterList(torch.empty(width) for width in widths[1:-1])
        self.offsets = nn.ParameterList(torch.empty(width) for width in widths[1:-1])

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights and biases uniformly within one over the root of the number of inputs, as torch does."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            for values in (weight, bias):
                drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64)
                values.copy_((2.0 * drawn - 1.0) * weight.shape[0] ** -0.5)
        for factor, offset in zip(self.factors, self.offsets, strict=True):
            factor.fill_(1.0)
            offset.zero_()

    def without_envelope(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate without multiplying by the envelope, ``[rows, outputs]``."""
        return self._hidden(inputs) @ self.weights[-1] + self.biases[-1]

    def _enveloped(self, inputs: EdgeInputs) -> Tensor:
        """Append a column of ones, for the biases of the last layer, and multiply by the envelope."""
        hidden = self._hidden(inputs)
        ones = hidden.new_ones(len(hidden), 1)
        if inputs.envelope is None:
            return torch.cat([hidden, ones], dim=1)
        envelope = inputs.envelope.unsqueeze(1)
        return torch.cat([hidden * envelope, ones * envelope], dim=1)

    def _last(self) -> Tensor:
        return torch.cat([self.weights[-1], self.biases[-1].unsqueeze(0)])

    def _hidden(self, inputs: EdgeInputs) -> Tensor:
        first, *others = self.weights[:-1]
        values = self._activated(inputs.times(first), 0)
        for layer, weight in enumerate(others, start=1):
            values = self._activated(values @ weight, layer)
        return values

    def _activated(self, values: Tensor, layer: int) -> Tensor:
        """Add the biases, normalize and activate the values of a hidden layer."""
        shifted = values + self.biases[layer]
        normalized = torch.nn.functional.layer_norm(
            shifted, shifted.shape[1:], self.factors[layer], self.offsets[layer]
        )
        return torch.nn.functional.silu(normalized)
