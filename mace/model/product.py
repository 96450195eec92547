"""The product of one layer: many-body features from the atomic basis, mixed, plus the residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.equivariant.symmetric_basis import number_of_paths
from mace.graphs.graph import Graph
from mace.kernels.emit_contraction import ContractionTerms
from mace.kernels.native import contract_native, pad_channels, unpad_channels
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.model.plan import ModelPlan


class Product(nn.Module):
    """Symmetric contraction, with weights of each element or of all, and a linear map of the channels.

    Args:
        plan: The model's plan.
        layer: Which layer, from zero.
    """

    def __init__(self, plan: ModelPlan, layer: int) -> None:
        super().__init__()
        self.l_out = plan.l_out(layer)
        self.of_all_elements = plan.product_of_all_elements
        correlation = plan.correlation[layer]
        self.weights = nn.ParameterDict()
        for degree in self.l_out:
            for order in range(1, correlation + 1):
                n_paths = number_of_paths(plan.l_max, degree, order)
                if n_paths:
                    shape = (1 if self.of_all_elements else plan.n_elements, n_paths, plan.n_channels)
                    self.weights[f"l{degree}_order{order}"] = nn.Parameter(torch.empty(shape))
        self.linear = nn.Parameter(torch.empty(len(self.l_out), plan.n_channels, plan.n_channels))
        self.compiled = False
        if self.linear.is_meta:
            return  # a model of shapes alone, for which no coefficients are computed
        self.contraction = SymmetricContraction(plan.l_max, self.l_out, correlation)
        self.terms = ContractionTerms(plan.l_max, self.l_out, correlation)
        tables = self.terms.tables()
        self._with_terms = frozenset(tables)
        for (degree, order), table in tables.items():
            self.register_buffer(f"table_l{degree}_order{order}", torch.as_tensor(table), persistent=False)

    def forward(self, atomic_basis: Tensor, residual: dict[int, Tensor], graph: Graph) -> dict[int, Tensor]:
        """Compute the layer's output.

        Args:
            atomic_basis: ``[channels, (l_max + 1)^2, atoms]``; reversed where compiled.
            residual: By degree, ``[atoms, 2 l + 1, channels]``; may lack degrees.
            graph: The graph.

        Returns:
            By degree, ``[atoms, 2 l + 1, channels]``.
        """
        weights = {(int(k[1]), int(k[-1])): w for k, w in self.weights.items()}
        products = (self._contract_compiled if self.compiled else self._contract)(atomic_basis, weights, graph)
        scale = self.linear.shape[-1] ** -0.5
        result = {}
        for degree, weight in zip(self.l_out, self.linear.unbind(0), strict=True):
            mixed = products[degree] @ (weight * scale)
            if degree in residual:
                mixed = mixed + residual[degree]
            result[degree] = mixed
        return result

    def _elements(self, graph: Graph) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the elements that have weights and how many atoms of each there are; all atoms may be as of one."""
        return ((0,), (graph.n_atoms,)) if self.of_all_elements else (graph.elements_present, graph.element_counts)

    def _contract(
        self, atomic_basis: Tensor, weights: dict[tuple[int, int], Tensor], graph: Graph
    ) -> dict[int, Tensor]:
        """Evaluate the polynomials, by degree ``[atoms, 2 l + 1, channels]``, a view of the kernel's own layout."""
        products = self.contraction(atomic_basis, weights, *self._elements(graph))
        return {degree: values.permute(2, 1, 0) for degree, values in products.items()}

    def _contract_compiled(
        self, atomic_basis: Tensor, weights: dict[tuple[int, int], Tensor], graph: Graph
    ) -> dict[int, Tensor]:
        """Do the same with the compiled kernels."""
        device = atomic_basis.device
        elements, atoms_of_element = self._elements(graph)
        present = torch.tensor(elements, device=device)
        counts = torch.tensor(atoms_of_element, device=device)
        place = torch.arange(len(present), device=device).repeat_interleave(counts, output_size=graph.n_atoms)
        carried = [
            getattr(self, f"table_l{degree}_order{order}") @ weight.index_select(0, present)
            for (degree, order), weight in weights.items()
            if (degree, order) in self._with_terms
        ]
        padded = pad_channels(torch.cat(carried, dim=1))
        products = contract_native(self.terms, place, pad_channels(atomic_basis), padded)
        return {degree: unpad_channels(values, atomic_basis.shape[2]) for degree, values in products.items()}
