"""Networks from what is known of an edge, its length above all, to the weights of all paths and channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mace.graphs.graph import Graph
from mace.kernels.gather import DirectedEdges, gather_senders, take_edges, to_both_directions
from mace.model.activations import SILU_SCALE
from mace.model.roles import Group, learned


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
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.weights = nn.ParameterList(learned(a, b, group="interactions_no_decay") for a, b in pairs)

    def forward(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate, ``[rows, outputs]``."""
        hidden, last = self.last_product(inputs)
        return hidden @ last

    def last_product(self, inputs: EdgeInputs) -> tuple[Tensor, Tensor]:
        """Return the hidden layer, times the envelope, and the matrix that is multiplied; it is linear and wider.

        Returns:
            ``[rows, inputs of the last layer]`` and ``[inputs of the last layer, outputs]``.
        """
        hidden, last = self.hidden(inputs), self.weights[-1]
        if inputs.envelope is not None:
            hidden = hidden * inputs.envelope.unsqueeze(1)
        return hidden, last * ((SILU_SCALE if len(self.weights) > 1 else 1.0) / last.shape[0] ** 0.5)

    def hidden(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate all but the last layer."""
        if len(self.weights) == 1:
            return inputs.basis
        first, *others = self.weights[:-1]
        values = functional.silu(inputs.times(first * first.shape[0] ** -0.5))
        for weight in others:
            values = functional.silu(values @ (weight * (SILU_SCALE / weight.shape[0] ** 0.5)))
        return values


class NormalizedRadialNetwork(RadialNetwork):
    """A network with biases, whose hidden layers are normalized to mean zero and variance one before the activation.

    It does not map zero to zero: only the envelope of its inputs takes the result to zero at the cutoff.

    Args:
        widths: Number of inputs, of each hidden layer, and of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(widths)
        group: Group = "interactions_no_decay"
        self.biases = nn.ParameterList(learned(width, group=group) for width in widths[1:])
        self.factors = nn.ParameterList(learned(width, group=group) for width in widths[1:-1])
        self.offsets = nn.ParameterList(learned(width, group=group) for width in widths[1:-1])

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
        return self.hidden(inputs) @ self.weights[-1] + self.biases[-1]

    def last_product(self, inputs: EdgeInputs) -> tuple[Tensor, Tensor]:
        """See `RadialNetwork`; a column of ones, times the envelope, is there for the biases of the last layer."""
        hidden = self.hidden(inputs)
        ones = hidden.new_ones(len(hidden), 1)
        if inputs.envelope is not None:
            envelope = inputs.envelope.unsqueeze(1)
            hidden, ones = hidden * envelope, ones * envelope
        return torch.cat([hidden, ones], dim=1), torch.cat([self.weights[-1], self.biases[-1].unsqueeze(0)])

    def hidden(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate all but the last layer: biases are added, then values are normalized and activated."""
        values = inputs.times(self.weights[0])
        for layer, (factor, offset) in enumerate(zip(self.factors, self.offsets, strict=True)):
            shifted = (values @ self.weights[layer] if layer else values) + self.biases[layer]
            values = functional.silu(functional.layer_norm(shifted, shifted.shape[1:], factor, offset))
        return values
