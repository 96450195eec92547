"""Radial networks: from inputs of an edge, mainly its length, to the weights of all paths and channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mace.equivariant.activations import SILU_SCALE
from mace.graphs.graph import Graph
from mace.kernels.gather import DirectedEdges, gather_senders, take_edges, to_both_directions
from mace.kernels.layers import activated_layers, scaled
from mace.model.roles import Group, learned


@dataclass(frozen=True)
class EdgeInputs:
    """Inputs of a radial network for every edge.

    Without atom features, an edge equals its reverse, and rows are pairs; with them, rows are directed edges.

    Attributes:
        basis: Radial basis, ``[pairs, num_radial_basis]``.
        envelope: Factor on the output, zero for padding, ``[rows]``; None if the basis is zero beyond the cutoff and
            the network maps zero to zero.
        senders: Features of atoms as senders, ``[atoms, features]``; None without atom features.
        receivers: Features of atoms as receivers, ``[atoms, features]``; None without atom features.
        edges: The directed edges, if there are atom features.
        graph: The graph.
    """

    basis: Tensor
    envelope: Tensor | None = None
    senders: Tensor | None = None
    receivers: Tensor | None = None
    edges: DirectedEdges | None = None
    graph: Graph | None = None

    def times(self, weight: Tensor) -> Tensor:
        """Multiply the concatenation of basis, sender and receiver features by a matrix, ``[rows, outputs]``.

        Features are multiplied per atom, as there are fewer atoms than edges.
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
    """A radial network without biases.

    It maps zero to zero, so that messages vanish beyond the cutoff, where the basis is zero.

    Args:
        widths: Number of inputs, widths of the hidden layers, and number of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.weights = nn.ParameterList(learned(a, b, group="interactions_no_decay") for a, b in pairs)

    def forward(self, inputs: EdgeInputs) -> Tensor:
        """Evaluate the network, ``[rows, outputs]``."""
        hidden, last = self.last_product(inputs)
        return hidden @ last

    def last_product(self, inputs: EdgeInputs) -> tuple[Tensor, Tensor]:
        """Return the last hidden layer times the envelope, and the matrix of the output layer, linear and wider.

        Returns:
            ``[rows, inputs of the last layer]`` and ``[inputs of the last layer, outputs]``.
        """
        factors = [
            weight.shape[0] ** -0.5 * (SILU_SCALE if layer else 1.0) for layer, weight in enumerate(self.weights)
        ]
        *weights, last = scaled(list(self.weights), factors)
        hidden = activated_layers(inputs.times(weights[0]), weights[1:]) if weights else inputs.basis
        return hidden if inputs.envelope is None else hidden * inputs.envelope.unsqueeze(1), last


class NormalizedRadialNetwork(RadialNetwork):
    """A radial network with biases, its hidden layers normalized to zero mean and unit variance before activation.

    It does not map zero to zero: only the envelope makes the output vanish at the cutoff.

    Args:
        widths: Number of inputs, widths of the hidden layers, and number of outputs.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__(widths)
        group: Group = "interactions_no_decay"
        self.biases = nn.ParameterList(learned(width, group=group) for width in widths[1:])
        self.factors = nn.ParameterList(learned(width, group=group) for width in widths[1:-1])
        self.offsets = nn.ParameterList(learned(width, group=group) for width in widths[1:-1])

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights and biases uniformly within one over the square root of the number of inputs, as torch does."""
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
        """See `RadialNetwork`; a column of ones, times the envelope, is appended for the biases of the last layer."""
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
