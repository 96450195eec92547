"""One interaction: messages from the neighbors, summed, mixed and divided by the number of neighbors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.graphs.graph import Graph
from mace.kernels.convolution import convolution_paths, convolve, coupling_matrix
from mace.kernels.gather import gather_pairs
from mace.model.activations import SILU_SCALE
from mace.model.plan import ModelPlan


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
        *hidden, last = self.weights
        scale = 1.0
        for weight in hidden:
            basis = torch.nn.functional.silu(basis @ (weight * (scale / weight.shape[0] ** 0.5)))
            scale = SILU_SCALE
        return basis @ (last * (scale / last.shape[0] ** 0.5))


def split_by_element(rows: Tensor, graph: Graph) -> tuple[Tensor, ...]:
    """Sort the rows of atoms by element and cut them, one piece for each element present."""
    return rows.index_select(0, graph.atoms_by_element).split(graph.element_counts, dim=0)


class Interaction(nn.Module):
    """Gather, couple, sum and mix the features of the neighbors.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.kind = plan.interactions[layer]
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

    def forward(
        self, features: dict[int, Tensor], basis: Tensor, harmonics: Tensor, graph: Graph
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Compute the atomic basis A and the skip connection.

        Args:
            features: By degree, ``[atoms, 2 l + 1, channels]``.
            basis: Radial basis, ``[pairs, num_radial_basis]``.
            harmonics: ``[slots, (l_max + 1)^2]``.
            graph: The graph.

        Returns:
            A with atoms in order of element, ``[channels, (l_max + 1)^2, atoms]``, and by degree the residual, in the
            same order of atoms, ``[atoms, 2 l + 1, channels]``; empty for a kind without one.
        """
        n = self.linear_up.shape[-1]
        mixed = {
            degree: features[degree] @ (weight * n**-0.5)
            for degree, weight in zip(self.l_in, self.linear_up.unbind(0), strict=True)
        }
        radial = self.radial(basis).view(-1, len(self.paths), n)
        summed = convolve(mixed, radial, harmonics, self.coupling, self.paths, graph)
        divisor = self._divisor(basis, graph)
        atomic_basis = torch.cat([self._mix(summed[l], l, divisor, graph) for l in range(self.l_max + 1)], dim=1)
        return atomic_basis, self._residual(features, graph) if self.kind.residual else {}

    def _divisor(self, basis: Tensor, graph: Graph) -> Tensor | None:
        """Return one plus the learned density, atoms in order of element, ``[atoms]``; None when counting."""
        if self.kind.normalization == "count":
            return None
        density = torch.tanh((basis @ (self.density * self.density.shape[0] ** -0.5)) ** 2)
        of_atom = gather_pairs(density, graph).view(graph.n_atoms, graph.max_neighbors).sum(1)
        return of_atom.index_select(0, graph.atoms_by_element) + 1.0

    def _mix(self, paths: list[Tensor], degree: int, divisor: Tensor | None, graph: Graph) -> Tensor:
        """Mix the channels of all paths of one degree, ``[channels, 2 l + 1, atoms]``."""
        weight = self.linear[degree]
        count, n, _ = weight.shape
        scale = (count * n) ** -0.5 / (self.avg_num_neighbors if divisor is None else 1.0)
        weight = weight.reshape(count * n, n) * scale
        rows = torch.cat(paths, dim=2).index_select(0, graph.atoms_by_element).transpose(0, 1)
        if self.kind.residual:
            mixed = _transposed_product(weight, rows)
        else:
            chosen = self.skip[self.l_skip.index(degree)] * (n * self.skip.shape[1]) ** -0.5
            pieces = rows.split(graph.element_counts, dim=1)
            mixed = torch.cat(
                [
                    _transposed_product(weight @ chosen[element], piece)
                    for element, piece in zip(graph.elements_present, pieces, strict=True)
                ],
                dim=2,
            )
        return mixed if divisor is None else mixed / divisor

    def _residual(self, features: dict[int, Tensor], graph: Graph) -> dict[int, Tensor]:
        """Map the input with the matrix of each atom's element, atoms in order of element."""
        scale = (self.skip.shape[-1] * self.skip.shape[1]) ** -0.5
        result = {}
        for degree, weights in zip(self.l_skip, self.skip.unbind(0), strict=True):
            pieces = split_by_element(features[degree], graph)
            result[degree] = torch.cat(
                [p @ (weights[e] * scale) for e, p in zip(graph.elements_present, pieces, strict=True)]
            )
        return result


def _transposed_product(weight: Tensor, rows: Tensor) -> Tensor:
    """Multiply ``[a, b, inputs]`` by ``[inputs, channels]`` into ``[channels, a, b]``, the kernel's layout."""
    a, b, inputs = rows.shape
    return (weight.t() @ rows.reshape(a * b, inputs).t()).view(-1, a, b)
