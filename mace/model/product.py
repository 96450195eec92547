"""The product of one layer: many-body features from the atomic basis, mixed, plus the residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.equivariant.symmetric_basis import symmetric_basis
from mace.graphs.graph import Graph
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.model.plan import ModelPlan


class Product(nn.Module):
    """Symmetric contraction with element-dependent weights and a linear map of the channels.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.l_out = plan.l_out(layer)
        correlation = plan.correlation[layer]
        self.contraction = SymmetricContraction(plan.l_max, self.l_out, correlation)
        self.weights = nn.ParameterDict()
        for degree in self.l_out:
            for order in range(1, correlation + 1):
                n_paths = symmetric_basis(plan.l_max, degree, order).n_paths
                if n_paths:
                    shape = (plan.n_elements, n_paths, plan.n_channels)
                    self.weights[f"l{degree}_order{order}"] = nn.Parameter(torch.empty(shape))
        self.linear = nn.Parameter(torch.empty(len(self.l_out), plan.n_channels, plan.n_channels))

    def forward(self, atomic_basis: Tensor, residual: dict[int, Tensor], graph: Graph) -> dict[int, Tensor]:
        """Compute the layer's output.

        Args:
            atomic_basis: Atoms in order of element, ``[channels, (l_max + 1)^2, atoms]``.
            residual: By degree, atoms in order of element, ``[atoms, 2 l + 1, channels]``; may lack degrees.
            graph: The graph.

        Returns:
            By degree, atoms in their own order, ``[atoms, 2 l + 1, channels]``.
        """
        weights = {(int(k[1]), int(k[-1])): w for k, w in self.weights.items()}
        products = self.contraction(atomic_basis, weights, graph.elements_present, graph.element_counts)
        scale = self.linear.shape[-1] ** -0.5
        result = {}
        for degree, weight in zip(self.l_out, self.linear.unbind(0), strict=True):
            n_channels, n_components, n_atoms = products[degree].shape
            mixed = products[degree].reshape(n_channels, -1).t() @ (weight * scale)
            mixed = mixed.view(n_components, n_atoms, n_channels).transpose(0, 1)
            if degree in residual:
                mixed = mixed + residual[degree]
            result[degree] = mixed.index_select(0, graph.rank_of_atom)
        return result
