"""Do the kernels of the geometry give the numbers and derivatives of its definition in torch?"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import covalent_radii
from mace.graphs.graph import Graph, pair_vectors
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.c_source.geometry import GRAPH_POINTERS, GeometryShape, geometry_source, harmonics_width
from mace.kernels.compiler import compile_and_load, find_compiler, thread_pool
from mace.kernels.gather import gather_pairs, sum_slots
from mace.kernels.radial_table import SHORTEST, RadialTable
from mace.model.mace import MACE
from mace.model.plan import InteractionPlan, ModelPlan
from mace.model.prediction import predict
from mace.model.radial import NuclearRepulsion
from mace.structures.configuration import Configuration
from tests.kernels.conftest import ELEMENTS, configuration, graph_of

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

R_MAX = 2.3  # no number of float32, so that rounding could put the padding inside the cutoff
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
RADIAL: list[dict[str, Any]] = [
    {"radial_type": "gaussian", "num_radial_basis": 5, "num_cutoff_basis": 2},
    {"radial_type": "gaussian", "num_radial_basis": 1, "distance_transform": "Agnesi"},
    {"radial_type": "chebyshev", "num_radial_basis": 6, "cutoff_after_network": True},
    {"radial_type": "chebyshev", "num_radial_basis": 1, "distance_transform": "Soft", "num_cutoff_basis": 7},
    {"radial_type": "bessel", "distance_transform": "Agnesi", "cutoff_after_network": True, "num_cutoff_basis": 6},
    {"radial_type": "bessel", "distance_transform": "Soft", "num_radial_basis": 10},
    {"radial_type": "bessel", "num_radial_basis": 1000},
]


def plan_of(**changes: Any) -> ModelPlan:
    """Make the plan of a small model."""
    settings: dict[str, Any] = {
        "model": "ScaleShiftMACE", "r_max": R_MAX, "l_max": 0, "n_channels": 2, "hidden_l": (0,),
        "interactions": (InteractionPlan(residual=True),), "correlation": (1,), "radial_mlp": (4,),
        "avg_num_neighbors": 3.0, "atomic_numbers": tuple(ELEMENTS.atomic_numbers), "reference_energies": (0.0,) * 4,
    }  # fmt: skip
    return ModelPlan(**settings | changes)


class Kernels:
    """The kernels for a plan on a graph; results are filled with NaN before, so that nothing is left out unseen."""

    def __init__(self, plan: ModelPlan, graph: Graph, dtype: torch.dtype = torch.float64) -> None:
        shape = GeometryShape(**{item.name: getattr(plan, item.name) for item in fields(GeometryShape)})
        self.plan, self.graph, self.dtype = plan, graph, dtype
        self.load(shape)
        self.n_slots, self.n_pairs = len(graph.pair_of_slot), len(graph.pair_sender)
        radii, charges = (
            torch.from_numpy(covalent_radii(plan.atomic_numbers)),
            torch.tensor(plan.atomic_numbers).double(),
        )
        self.first = [*(getattr(graph, name) for name in GRAPH_POINTERS[:-2]), radii, charges]

    def load(self, shape: GeometryShape) -> None:
        """Load the kernels, and note how long rows of harmonics are."""
        self.library = compile_and_load(geometry_source(shape, self.dtype))
        self.width = harmonics_width(shape.l_max, self.dtype)

    def run(
        self, name: str, arrays: Sequence[Tensor | None], units: int, sizes: Sequence[int] = (), threads: int = 1
    ) -> None:
        """Call a kernel."""
        graph, everything = self.graph, [*self.first, *arrays]
        assert all(array is None or array.is_contiguous() for array in everything)
        pointers = [None if array is None else array.data_ptr() for array in everything]
        (cutoff,) = struct.unpack("q", struct.pack("d", self.plan.r_max))
        dimensions = (graph.n_atoms, graph.max_neighbors, self.n_pairs, cutoff, *sizes)
        pool = thread_pool()
        getattr(self.library, name)(
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_int64 * len(dimensions))(*dimensions),
            ctypes.c_int64(units),
            ctypes.c_int64(threads),
            *(ctypes.c_void_p(address) for address in (pool.parallel, pool.thread_number, pool.team_size)),
        )

    def empty(self, *shape: int) -> Tensor:
        """Allocate a result."""
        return torch.full(shape, float("nan"), dtype=self.dtype)

    def empty_geometry(self) -> dict[str, Tensor]:
        """Allocate what depends on the vectors."""
        found = {"lengths": self.empty(self.n_pairs), "basis": self.empty(self.n_pairs, self.plan.num_radial_basis)}
        if self.plan.cutoff_after_network:
            found["envelope"] = self.empty(self.n_pairs)
        return found | {"harmonics": self.empty(self.n_slots, self.width)}

    def value(self, vectors: Tensor, threads: int = 1) -> dict[str, Tensor]:
        """Run ``geometry_value``."""
        found = self.empty_geometry()
        self.run("geometry_value", [vectors, *in_order(found)], self.n_pairs, threads=threads)
        return found

    def tangent(self, vectors: Tensor, tangent: Tensor, threads: int = 1) -> dict[str, Tensor]:
        """Run ``geometry_tangent``."""
        found = self.empty_geometry()
        self.run("geometry_tangent", [vectors, tangent, *in_order(found)], self.n_pairs, threads=threads)
        return found

    def gradient(
        self,
        vectors: Tensor,
        cotangents: Mapping[str, Tensor],
        parts: Sequence[Tensor],
        by_length: bool = False,
        threads: int = 1,
    ) -> Tensor:
        """Run ``geometry_gradient``; the cotangent of the harmonics comes in parts."""
        found = self.empty(self.n_pairs, 3)
        arrays = [vectors, *in_order(cotangents)[:3], found, *parts]
        sizes = (by_length, len(parts), *(len(part) for part in parts))
        self.run("geometry_gradient", arrays, self.n_pairs, sizes, threads)
        return found


Maker = Callable[..., Kernels]


@pytest.fixture
def make() -> Maker:
    """What makes the kernels."""
    return Kernels


def in_order(geometry: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Arrange arrays as kernels take them."""
    return [geometry.get(name) for name in ("lengths", "basis", "envelope", "harmonics")]


def expected(plan: ModelPlan, graph: Graph, vectors: Tensor) -> dict[str, Tensor]:
    """Evaluate what the kernels give as models without kernels do."""
    geometry = MACE(plan, torch.float64)._geometry(graph, vectors)
    found = {name: getattr(geometry, name) for name in ("lengths", "basis", "envelope", "harmonics")}
    # the harmonic of degree 0 depends on nothing
    return {name: values + 0.0 * vectors.sum() for name, values in found.items() if values is not None}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_equal(found: Tensor, exact: Tensor) -> None:
    """Compare relative to the largest number."""
    assert found.shape == exact.shape
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=TOLERANCE[found.dtype] * max(scale, 1e-2))


def skewed_graph() -> Graph:
    """Build a batch with a skewed crystal, far from the origin, a molecule, and an atom."""
    cell = np.array([[2.1, 0.0, 0.0], [0.7, 2.4, 0.0], [-0.4, 0.9, 2.8]])
    numbers, places = np.array([14, 8, 1]), np.array([[0.0, 0.1, 0.2], [1.2, 1.1, 0.3], [40.4, 0.2, 1.6]])
    crystal = Configuration(numbers, places, cell, (True, True, False))
    chain = configuration([6, 1, 8, 1, 6], np.cumsum(draw(3, 5, 3).numpy() * 0.3 + [0.9, 0.2, 0.0], axis=0))
    members = [configuration([6], np.zeros((1, 3))), crystal, chain, configuration([8], np.ones((1, 3)))]
    return InMemoryDataset(members, ELEMENTS, R_MAX).batch(range(len(members))).graph


def check_geometry(make: Maker, plan: ModelPlan, graph: Graph, dtype: torch.dtype) -> None:
    """Compare value, gradient and tangent with those of torch."""
    kernels = make(plan, graph, dtype)
    vectors = pair_vectors(graph, R_MAX, dtype)
    leaf = vectors.double().requires_grad_(True)
    exact = expected(plan, graph, leaf)
    n_harmonics, empty = (plan.l_max + 1) ** 2, graph.pair_of_slot == kernels.n_pairs - 1
    parts = [draw(n, shares, kernels.n_slots, kernels.width, dtype=dtype) for n, shares in enumerate((1, 3))]
    total = sum(part.double().sum(0) for part in parts)[:, :n_harmonics]
    cotangents = {name: draw(7, *values.shape, dtype=dtype) for name, values in exact.items()}
    leaves = {name: values.double() for name, values in cotangents.items()} | {"harmonics": total}
    leaves = {name: values.requires_grad_(True) for name, values in leaves.items()}
    (gradient,) = torch.autograd.grad(
        list(exact.values()), leaf, list(leaves.values()), create_graph=True, materialize_grads=True
    )
    direction = draw(9, kernels.n_pairs, 3, dtype=dtype)
    by_direction = (gradient * direction.double())[:-1].sum()
    tangents = torch.autograd.grad(by_direction, list(leaves.values()), materialize_grads=True)

    found = kernels.value(vectors)
    changes = kernels.tangent(vectors, direction)
    for (name, values), tangent in zip(exact.items(), tangents, strict=True):
        value, change = found[name], changes[name]
        if name == "harmonics":
            assert not value[empty].any() and not change[empty].any()
            assert not value[:, n_harmonics:].any() and not change[:, n_harmonics:].any()
            value, change = value[:, :n_harmonics], change[:, :n_harmonics]
            values = values.detach() * ~empty.unsqueeze(1)
        else:
            assert not change[-1].any()
        assert_equal(value, values.detach())
        assert_equal(change, tangent)
    if not plan.cutoff_after_network:
        assert not found["basis"][-1].any()
    else:
        assert found["envelope"][-1] == 0.0
    by_vectors = kernels.gradient(vectors, cotangents, parts)
    assert not by_vectors[-1].any()
    assert_equal(by_vectors[:-1], gradient.detach()[:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("l_max", range(5))
def test_harmonics(make: Maker, l_max: int, dtype: torch.dtype) -> None:
    check_geometry(make, plan_of(l_max=l_max), skewed_graph(), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("changes", RADIAL, ids=lambda changes: "-".join(map(str, changes.values())))
def test_radial_functions(make: Maker, changes: dict[str, Any], dtype: torch.dtype) -> None:
    check_geometry(make, plan_of(**changes), skewed_graph(), dtype)


@pytest.mark.parametrize("r_max", [R_MAX])
def test_graphs(make: Maker, graph: Graph, r_max: float) -> None:
    check_geometry(make, plan_of(l_max=2, r_max=r_max), graph, torch.float64)


def test_optional_arrays(make: Maker) -> None:
    """What is left out neither changes the rest nor is looked at."""
    plan, graph = plan_of(l_max=2, cutoff_after_network=True), skewed_graph()
    kernels, vectors = make(plan, graph), pair_vectors(graph, R_MAX, torch.float64)
    whole, direction = kernels.value(vectors), draw(1, kernels.n_pairs, 3)
    changes = kernels.tangent(vectors, direction)
    for name in ("basis", "envelope", "both"):
        part, change = kernels.empty_geometry(), kernels.empty_geometry()
        left_out = ("basis", "envelope") if name == "both" else (name,)
        for key in left_out:
            del part[key], change[key]
        del change["lengths"]
        kernels.run("geometry_value", [vectors, *in_order(part)], kernels.n_pairs)
        kernels.run("geometry_tangent", [vectors, direction, *in_order(change)], kernels.n_pairs)
        assert all(torch.equal(values, whole[key]) for key, values in part.items())
        assert all(torch.equal(values, changes[key]) for key, values in change.items())
    cotangents = {key: draw(2, *values.shape) for key, values in whole.items()}
    parts = [cotangents.pop("harmonics").unsqueeze(0)]
    together = kernels.gradient(vectors, cotangents, parts)
    single = [kernels.gradient(vectors, {key: values}, []) for key, values in cotangents.items()]
    assert_equal(sum(single) + kernels.gradient(vectors, {}, parts), together)


def test_gradient_of_lengths_in_the_place_of_the_first_harmonic(make: Maker) -> None:
    plan, graph = plan_of(l_max=1), skewed_graph()
    kernels, vectors = make(plan, graph), pair_vectors(graph, R_MAX, torch.float64)
    parts = [draw(4, 2, kernels.n_slots, kernels.width)]
    lengths = parts[0].sum(0)[:, 0][graph.slots_of_pair].sum(1)
    assert_equal(
        kernels.gradient(vectors, {}, parts, by_length=True), kernels.gradient(vectors, {"lengths": lengths}, parts)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("build", [skewed_graph, lambda: graph_of("own image"), lambda: graph_of("no edges")])
def test_pair_vectors(make: Maker, build: Any, dtype: torch.dtype) -> None:
    graph = build()
    kernels = make(plan_of(), graph, dtype)
    vectors = kernels.empty(kernels.n_pairs, 3)
    kernels.run("pair_vectors", [graph.positions, graph.cell, graph.pair_shift, vectors], kernels.n_pairs)
    assert_equal(vectors[:-1], pair_vectors(graph, R_MAX, torch.float64)[:-1])
    assert torch.equal(vectors[-1], torch.tensor([0.0, R_MAX, 0.0], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forces_and_strain_of_a_model(make: Maker, graph: Graph, dtype: torch.dtype) -> None:
    """Forces and virials are those that a prediction has; the padding's gradient is never used."""
    model = MACE(plan_of(l_max=1, correlation=(2,)), torch.float64).initialize(torch.Generator().manual_seed(1))
    vectors = pair_vectors(graph, R_MAX, torch.float64).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(graph, vectors).energies.sum(), vectors, materialize_grads=True)
    gradient, vectors, exact = gradient.to(dtype), vectors.detach().to(dtype), predict(model, graph, stress=True)
    kernels = make(model.plan, graph, dtype)
    gradient[-1] = float("nan")
    forces, strain = kernels.empty(graph.n_atoms, 3), kernels.empty(graph.n_structures, 3, 3)
    kernels.run("forces_value", [gradient, forces], graph.n_atoms)
    kernels.run("strain_value", [vectors, gradient, strain], graph.n_structures)
    assert exact.forces is not None and exact.virials is not None
    assert_equal(forces, exact.forces)
    assert_equal(-strain, exact.virials)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adjoints_of_forces_and_strain(make: Maker, graph: Graph, dtype: torch.dtype) -> None:
    kernels, vectors = make(plan_of(), graph, dtype), pair_vectors(graph, R_MAX, dtype)
    gradient, of_forces = draw(1, kernels.n_pairs, 3, dtype=dtype), draw(2, graph.n_atoms, 3, dtype=dtype)
    of_strain = draw(3, graph.n_structures, 3, 3, dtype=dtype)
    # the same by single pairs
    leaf = gradient.double().requires_grad_(True)
    pulls = leaf[:-1].new_zeros(graph.n_atoms, 3)
    pulls = pulls.index_add(0, graph.pair_receiver[:-1], -leaf[:-1]).index_add(0, graph.pair_sender[:-1], leaf[:-1])
    outer = torch.einsum("pa,pb->pab", vectors.double(), leaf)[:-1]
    stretch = outer.new_zeros(graph.n_structures, 3, 3)
    stretch = stretch.index_add(0, graph.structure_of_atom[graph.pair_sender[:-1]], (outer + outer.mT) / 2)
    (by_forces,) = torch.autograd.grad((pulls * of_forces).sum(), leaf, retain_graph=True)
    (by_strain,) = torch.autograd.grad((stretch * of_strain).sum(), leaf)

    forces, strain = kernels.empty(graph.n_atoms, 3), kernels.empty(graph.n_structures, 3, 3)
    kernels.run("forces_value", [gradient, forces], graph.n_atoms)
    kernels.run("strain_value", [vectors, gradient, strain], graph.n_structures)
    assert_equal(forces, pulls.detach())
    assert_equal(strain, stretch.detach())
    found = kernels.empty(kernels.n_pairs, 3)
    kernels.run("forces_adjoint", [of_forces, found], kernels.n_pairs)
    assert_equal(found, by_forces)
    kernels.run("strain_adjoint", [vectors, of_strain, found], kernels.n_pairs)
    assert_equal(found, by_forces + by_strain)
    assert not found[-1].any()
    kernels.run("forces_adjoint", [None, found], kernels.n_pairs)
    assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radial_coefficients(make: Maker, dtype: torch.dtype) -> None:
    """Also for lengths before the first node, at nodes, at the cutoff and beyond."""
    n_nodes = 33
    nodes = torch.linspace(SHORTEST, R_MAX, n_nodes, dtype=torch.float64)
    some = torch.tensor([0.003, R_MAX, R_MAX + 1.0, 1.2345], dtype=torch.float64)
    lengths = torch.cat([nodes[:-1] + 1e-5, nodes[1:] - 1e-5, some]).to(dtype)
    kernels = make(plan_of(), skewed_graph(), dtype)
    interval, factors = torch.full((len(lengths),), -7), kernels.empty(len(lengths), 12)
    kernels.run("radial_coefficients", [lengths, interval, factors], len(lengths), [n_nodes])
    table = RadialTable(torch.zeros(n_nodes, 3, 1, 1), R_MAX)
    exact_interval, exact = table.coefficients(lengths.double())
    exact[lengths >= R_MAX] = 0.0
    assert torch.equal(interval, exact_interval)
    for found, right in ((factors[:, :6], exact[:, :6]), (factors[:, 6:], exact[:, 6:])):
        assert_equal(found, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("r_max", [R_MAX, 1.3])
def test_repulsion(make: Maker, r_max: float, dtype: torch.dtype) -> None:
    """With the smaller cutoff, atoms touch beyond it."""
    plan, graph = plan_of(r_max=r_max, pair_repulsion=True), skewed_graph()
    kernels, repulsion = make(plan, graph, dtype), NuclearRepulsion(plan)
    repulsion.covalent_radii = repulsion.covalent_radii.double()
    lengths = pair_vectors(graph, R_MAX, torch.float64).norm(dim=1)
    lengths[0], lengths[-1] = 0.31, r_max
    rounded = lengths.to(dtype)
    leaf = rounded.double().requires_grad_(True)
    halves = repulsion(leaf, graph)
    halves = torch.where(rounded < r_max, halves, 0.0)  # as lengths are compared in the model's precision
    rows, cotangents = sum_slots(gather_pairs(halves, graph), graph), draw(1, graph.n_atoms, dtype=dtype)
    (slopes,) = torch.autograd.grad(halves.sum(), leaf, retain_graph=True)
    (by_lengths,) = torch.autograd.grad(rows, leaf, cotangents.double())
    assert slopes.count_nonzero() > 2

    n, found = kernels.n_pairs, [kernels.empty(kernels.n_pairs) for _ in range(3)]
    kernels.run("repulsion_value", [rounded, *found[:2]], n)
    energies = kernels.empty(graph.n_atoms)
    kernels.run("repulsion_rows", [found[0], energies], graph.n_atoms)
    kernels.run("repulsion_gradient", [found[1], cotangents, found[2]], n)
    for values, exact in ((found[0], halves), (found[1], slopes), (energies, rows), (found[2], by_lengths)):
        assert_equal(values, exact.detach())
    assert found[0][-1] == 0.0 and found[2][-1] == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    plan, graph = plan_of(l_max=3, distance_transform="Agnesi", pair_repulsion=True), skewed_graph()
    kernels, n = Kernels(plan, graph, dtype), len(graph.pair_sender)

    def everything(threads: int) -> list[Tensor]:
        vectors = kernels.empty(n, 3)
        kernels.run("pair_vectors", [graph.positions, graph.cell, graph.pair_shift, vectors], n, threads=threads)
        found = kernels.value(vectors, threads)
        parts = [draw(1, 3, kernels.n_slots, kernels.width, dtype=dtype)]
        gradient = kernels.gradient(vectors, {key: found[key] for key in ("lengths", "basis")}, parts, threads=threads)
        change = kernels.tangent(vectors, gradient, threads)
        atoms, structures = kernels.empty(graph.n_atoms, 3), kernels.empty(graph.n_structures, 3, 3)
        kernels.run("forces_value", [gradient, atoms], graph.n_atoms, threads=threads)
        kernels.run("strain_value", [vectors, gradient, structures], graph.n_structures, threads=threads)
        adjoint, halves = kernels.empty(n, 3), [kernels.empty(n), kernels.empty(n)]
        kernels.run("forces_adjoint", [atoms, adjoint], n, threads=threads)
        kernels.run("strain_adjoint", [vectors, structures, adjoint], n, threads=threads)
        kernels.run("repulsion_value", [found["lengths"], *halves], n, threads=threads)
        return [vectors, *found.values(), gradient, *change.values(), atoms, structures, adjoint, *halves]

    alone = everything(1)
    assert not any(values.isnan().any() for values in alone)
    for threads in (2, 8):
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(threads), strict=True))
