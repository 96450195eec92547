"""The product of a layer: many-body features from the atomic basis, mixed, plus the residual."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mace.equivariant.symmetric_basis import number_of_paths
from mace.graphs.graph import Graph
from mace.kernels.backend import Backend
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.model.interaction import Features, mapped
from mace.model.plan import ModelPlan
from mace.model.roles import learned


class Product(nn.Module):
    """Symmetric contraction, with weights for each element or shared by all, and a linear map of the channels.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.l_out, correlation, n = plan.l_out(layer), plan.correlation[layer], plan.n_channels
        axis, n_matrices = (None, 1) if plan.product_of_all_elements else (0, plan.n_elements)
        self.weights = nn.ParameterDict()
        for degree in self.l_out:
            for order in range(1, correlation + 1):
                if n_paths := number_of_paths(plan.l_max, degree, order):
                    start = partial(torch.div, other=n_paths)
                    shape = (n_matrices, n_paths, n)
                    weight = learned(*shape, group="products", element_axis=axis, start=start, is_map=False)
                    self.weights[f"l{degree}_order{order}"] = weight
        self.linear = learned(len(self.l_out), n, n, group="products")
        if not self.linear.is_meta:  # models on the meta device have only shapes and need no coefficients
            self.contraction = SymmetricContraction(plan.l_max, self.l_out, correlation)

    def forward(self, atomic_basis: Tensor, residual: Features, graph: Graph, backend: Backend) -> Features:
        """Compute the layer's output.

        Args:
            atomic_basis: ``[atoms, (l_max + 1)^2, channels]``.
            residual: Residual by degree, ``[atoms, 2 l + 1, channels]``; degrees may be missing.
            graph: The graph.
            backend: What evaluates the inner loops.

        Returns:
            Features by degree, ``[atoms, 2 l + 1, channels]``.
        """
        weights = {(int(key[1]), int(key[-1])): weight for key, weight in self.weights.items()}
        mixed = mapped(backend.contract(self.contraction, atomic_basis, weights, graph), self.l_out, self.linear)
        return {l: values + residual[l] if l in residual else values for l, values in mixed.items()}
