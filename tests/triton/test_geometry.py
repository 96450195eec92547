"""Do the kernels of the geometry in Triton pass the tests of those in C, and is padding without effect?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.graphs.graph import Graph
from mace.kernels.c_source.geometry import GeometryShape
from mace.kernels.triton_source.geometry import geometry_kernels, harmonics_width
from tests.kernels.conftest import graph  # noqa: F401
from tests.kernels.test_geometry import (  # noqa: F401
    Kernels,
    Maker,
    draw,
    in_order,
    plan_of,
    skewed_graph,
    test_adjoints_of_forces_and_strain,
    test_forces_and_strain_of_a_model,
    test_gradient_of_lengths_in_the_place_of_the_first_harmonic,
    test_graphs,
    test_harmonics,
    test_optional_arrays,
    test_pair_vectors,
    test_radial_coefficients,
    test_radial_functions,
    test_repulsion,
)


class DeviceKernels(Kernels):
    """The same kernels in Triton."""

    def load(self, shape: GeometryShape) -> None:
        """Load the kernels, and note how long rows of harmonics are."""
        self.kernels, self.width = geometry_kernels(shape, self.dtype), harmonics_width(shape.l_max)

    def run(
        self, name: str, arrays: Sequence[Tensor | None], units: int, sizes: Sequence[int] = (), threads: int = 1
    ) -> None:
        """Launch a kernel."""
        if name == "strain_value":
            *arrays, strain = arrays
            assert strain is not None
            of_atoms = self.empty(self.graph.n_atoms, 3, 3)
            self.run("strain_of_atoms", [*arrays, of_atoms], units)
            strain.zero_().index_add_(0, self.graph.structure_of_atom, of_atoms)
            return
        # lengths of another number of pairs are given to the kernel of tables
        n_pairs = arrays[0].shape[0] if name == "radial_coefficients" else self.n_pairs
        dimensions = [self.graph.n_atoms, self.graph.max_neighbors, n_pairs, self.plan.r_max, *sizes]
        self.kernels[name].run([*self.first, *arrays], dimensions)

    def gradient(
        self,
        vectors: Tensor,
        cotangents: Mapping[str, Tensor],
        parts: Sequence[Tensor],
        by_length: bool = False,
        threads: int = 1,
    ) -> Tensor:
        """Run ``geometry_gradient`` with all shares in one array."""
        found, shares = self.empty(self.n_pairs, 3), torch.cat(list(parts)) if parts else None
        arrays = [vectors, *in_order(cotangents)[:3], found, shares]
        sizes = (by_length, 1, 0 if shares is None else len(shares))
        self.run("geometry_gradient", arrays, self.n_pairs, sizes)
        return found


@pytest.fixture
def make() -> Maker:
    """What makes the kernels."""
    return DeviceKernels


def filled(values: Tensor, rows: int, value: float) -> Tensor:
    """Append rows that hold a value."""
    return torch.cat([values, values.new_full((rows, *values.shape[1:]), value)])


def padded(graph: Graph, atoms: int, neighbors: int, pairs: int) -> Graph:  # noqa: F811
    """Append atoms without neighbors, empty slots of every row, and pairs with equal slots."""
    n, k = graph.n_atoms, graph.max_neighbors

    def spread(of_slot: Tensor, empty: int) -> Tensor:
        wide = torch.cat([of_slot.view(n, k), of_slot.new_full((n, neighbors), empty)], dim=1)
        return filled(wide, atoms, empty).flatten()

    slots = graph.slots_of_pair + graph.slots_of_pair // k * neighbors
    return replace(
        graph,
        **{name: filled(getattr(graph, name), pairs, 0) for name in ("pair_sender", "pair_receiver", "pair_shift")},
        slots_of_pair=filled(slots, pairs, 3),
        neighbor_count=filled(graph.neighbor_count, atoms, 0),
        pair_of_slot=spread(graph.pair_of_slot, len(graph.pair_sender) + pairs - 1),
        sign_of_slot=spread(graph.sign_of_slot, 1),
        row_of_atom=torch.cat([graph.row_of_atom, torch.arange(n, n + atoms)]),
        element=filled(graph.element, atoms, 0),
        structure_of_atom=filled(graph.structure_of_atom, atoms, graph.n_structures - 1),
    )


def of_everything(graph: Graph, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: F811
    """Run all kernels whose results depend on pairs; the cotangents of what is padded are those of the rest."""
    kernels = DeviceKernels(plan_of(l_max=3, distance_transform="Soft", num_radial_basis=11), graph, dtype)
    n, found = kernels.n_pairs, {"vectors": kernels.empty(kernels.n_pairs, 3)}
    kernels.run("pair_vectors", [graph.positions, graph.cell, graph.pair_shift, found["vectors"]], n)
    found |= kernels.value(found["vectors"])
    found["changes"] = draw(1, 400, 3, dtype=dtype)[:n].clone()
    tangents = kernels.tangent(found["vectors"], found["changes"])
    found |= {f"tangent of {name}": values for name, values in tangents.items()}
    found["gradient"] = kernels.gradient(
        found["vectors"], {"basis": found["basis"]}, [torch.stack([found["harmonics"], tangents["harmonics"]])]
    )
    found["forces"], found["adjoint"] = kernels.empty(graph.n_atoms, 3), kernels.empty(n, 3)
    found["strain"] = kernels.empty(graph.n_structures, 3, 3)
    kernels.run("forces_value", [found["gradient"], found["forces"]], graph.n_atoms)
    kernels.run("strain_value", [found["vectors"], found["gradient"], found["strain"]], graph.n_structures)
    kernels.run("forces_adjoint", [found["forces"], found["adjoint"]], n)
    kernels.run("strain_adjoint", [found["vectors"], found["strain"], found["adjoint"]], n)
    found |= {name: kernels.empty(n) for name in ("halves", "slopes", "of lengths")}
    found["energies"] = kernels.empty(graph.n_atoms)
    kernels.run("repulsion_value", [found["lengths"], found["halves"], found["slopes"]], n)
    kernels.run("repulsion_rows", [found["halves"], found["energies"]], graph.n_atoms)
    kernels.run("repulsion_gradient", [found["slopes"], found["energies"], found["of lengths"]], n)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "sizes", [(3, 2, 150), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((0, 0, 1), (40, 7, 0)))]
)
def test_padding_changes_no_bit(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Also with several programs of pairs or of slots; what belongs to padding is zero or as long as the cutoff."""
    graph = skewed_graph()  # noqa: F811
    more = padded(graph, *sizes)
    if dtype == torch.float32:  # indices may be short
        tensors = {item.name: getattr(more, item.name) for item in fields(more) if item.type == "Tensor"}
        more = replace(more, **{name: x.int() for name, x in tensors.items() if x.dtype == torch.int64})
    exact, found = of_everything(graph, dtype), of_everything(more, dtype)
    n, m, width = len(graph.pair_sender) - 1, graph.n_atoms, graph.max_neighbors
    for name, values in found.items():
        right = exact[name]
        if "harmonics" in name:
            values = values.view(more.n_atoms, more.max_neighbors, -1)
            assert not values[m:].any() and not values[:m, width:].any(), name
            values, right = values[:m, :width], right.view(m, width, -1)
        elif len(values) == len(more.pair_sender):
            rest = values[n:]
            if name == "vectors":
                assert torch.equal(rest, rest.new_tensor([0.0, 2.3, 0.0]).expand_as(rest))
            elif name not in ("lengths", "changes", "slopes"):
                assert not rest.any(), name
            values, right = values[:n], right[:n]
        elif len(values) == more.n_atoms:
            assert not values[m:].any(), name
            values = values[:m]
        assert torch.equal(values, right), name
