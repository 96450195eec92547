"""Do the kernels of the convolution in Triton give what those in C give, and what the definition in torch gives?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_arrays import blocked, deviation, padded, random, unblocked, with_rows

from mace.elements import ElementTable
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.c_backend import library
from mace.kernels.c_source.convolution import ConvolutionLayout, convolution_source, tabulated_source
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiler import find_compiler
from mace.kernels.convolution import Convolution, convolution_paths
from mace.structures.configuration import Configuration

pytest.importorskip("triton")

from mace.kernels.triton_source import convolution
from mace.kernels.triton_source.convolution import convolution_kernels, tabulated_kernels
from mace.kernels.triton_source.launching import LANES

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENTS = ("conv_backward_full", "conv_backward_parameters")
N_NODES = 7

Runner = Callable[[str, Sequence[Tensor | None], Sequence[int]], None]


@cache
def small_graph() -> Graph:
    """Build a crystal whose atom sees its own images, an atom without neighbors, and a molecule."""
    cell = Configuration(np.array([6]), np.zeros((1, 3)), np.eye(3) * 2.4, (True,) * 3)
    atom = Configuration(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    places = np.array([[0.0, 0.0, 0.0], [0.3, 1.0, 0.2], [0.1, 2.0, 1.9]])
    molecule = Configuration(np.array([1, 6, 1]), places, np.eye(3), (False,) * 3)
    return InMemoryDataset([cell, atom, molecule], ElementTable((1, 6)), 2.5).batch(range(3)).graph


def with_capacities(graph: Graph, atoms: int, pairs: int) -> Graph:
    """Append rows without neighbors and pairs without slots."""
    more, slots = (graph.n_atoms + atoms), (graph.n_atoms + atoms) * graph.max_neighbors
    empty = torch.arange(len(graph.sender_of_slot), slots)
    return replace(
        graph,
        element=with_rows(graph.element, more),
        neighbor_count=with_rows(graph.neighbor_count, more),
        sender_of_slot=with_rows(graph.sender_of_slot, slots),
        pair_of_slot=with_rows(graph.pair_of_slot, slots, len(graph.pair_sender) - 1),
        reverse_of_slot=torch.cat([graph.reverse_of_slot, empty]),
        slots_of_pair=with_rows(graph.slots_of_pair, len(graph.slots_of_pair) + pairs),
    )


@dataclass(frozen=True)
class Case:
    """A convolution with random operands, in layouts of no kernel; the pairs are without the padding.

    Attributes:
        layout: The paths.
        graph: The graph.
        harmonics: Harmonics of the slots, and their cotangent, ``[2, slots, harmonics]``.
        radial: Radial weights and their cotangent, ``[2, pairs, paths, channels]``.
        features: By degree, features and their cotangents, ``[2, atoms, 2 l + 1, channels]``.
        cotangents: By degree, those of the results, ``[atoms, 2 l + 1, paths, channels]``.
    """

    layout: ConvolutionLayout
    graph: Graph
    harmonics: Tensor
    radial: Tensor
    features: Sequence[Tensor]
    cotangents: Sequence[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.radial.dtype

    @property
    def n_channels(self) -> int:
        return self.radial.shape[-1]

    def to(self, dtype: torch.dtype) -> Case:
        """Round all operands."""
        return replace(
            self,
            harmonics=self.harmonics.to(dtype),
            radial=self.radial.to(dtype),
            features=[x.to(dtype) for x in self.features],
            cotangents=[c.to(dtype) for c in self.cotangents],
        )

    def on(self, graph: Graph) -> Case:
        """Take a graph with larger capacities; what lies beyond is no number where nobody may read it."""
        nothing, n_pairs = float("nan"), len(graph.slots_of_pair) - 1
        return replace(
            self,
            graph=graph,
            harmonics=torch.stack([with_rows(y, len(graph.sender_of_slot), nothing) for y in self.harmonics]),
            radial=torch.stack([with_rows(r, n_pairs, nothing) for r in self.radial]),
            features=[torch.stack([with_rows(x, graph.n_atoms, 1.0) for x in both]) for both in self.features],
            cotangents=[with_rows(c, graph.n_atoms, 1.0) for c in self.cotangents],
        )


def draw(graph: Graph, l_in: tuple[int, ...], l_max: int, n_channels: int, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(5)
    layout = ConvolutionLayout(convolution_paths(l_in, l_max), l_in, l_max)
    n_atoms, n_pairs, n_slots = graph.n_atoms, len(graph.slots_of_pair) - 1, len(graph.sender_of_slot)
    sizes = [(2 * l + 1, layout.n_paths(l)) for l in range(l_max + 1)]
    return Case(
        layout,
        graph,
        random(generator, 2, n_slots, (l_max + 1) ** 2),
        random(generator, 2, n_pairs, len(layout.paths), n_channels),
        [random(generator, 2, n_atoms, 2 * l + 1, n_channels) for l in l_in],
        [random(generator, n_atoms, *size, n_channels) for size in sizes],
    ).to(dtype)


def by_c(case: Case, tabulated: bool = False) -> tuple[int, Runner]:
    """Return the number of lanes of the kernels in C, and how one is run, in one thread."""
    source = tabulated_source if tabulated else convolution_source
    compiled = library(source, case.dtype, case.layout)

    def run(name: str, arrays: Sequence[Tensor | None], dimensions: Sequence[int]) -> None:
        pointers = (ctypes.c_void_p * len(arrays))(*[None if a is None else a.data_ptr() for a in arrays])
        sizes = (ctypes.c_int64 * len(dimensions))(*dimensions)
        blocks = ctypes.c_int64(dimensions[4])
        getattr(compiled, name)(pointers, sizes, blocks, ctypes.c_int64(1), None, None, None)

    return lanes(case.dtype), run


def by_triton(case: Case, tabulated: bool = False) -> tuple[int, Runner]:
    """Return the same of the kernels in Triton."""
    kernels: Any = (tabulated_kernels if tabulated else convolution_kernels)(case.layout, case.dtype)
    return LANES, lambda name, arrays, dimensions: kernels[name].run(arrays, dimensions)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a case for a number of lanes."""

    case: Case
    n_lanes: int

    def channels(self, values: Tensor) -> Tensor:
        return padded(values, self.n_lanes).contiguous()

    def start(self) -> list[Tensor]:
        """Return the arrays that every kernel begins with."""
        graph = self.case.graph
        indices = [graph.neighbor_count, graph.sender_of_slot, graph.pair_of_slot, graph.reverse_of_slot]
        return [*indices, self.matrices(0), self.radial(0), *self.features(0)]

    def matrices(self, which: int) -> Tensor:
        layout = self.case.layout
        return self.case.harmonics[which] @ Convolution(layout.l_in, layout.l_max).coupling.to(self.case.dtype)

    def radial(self, which: int) -> Tensor:
        return blocked(self.case.radial[which], self.n_lanes)

    def features(self, which: int) -> list[Tensor]:
        return [self.channels(x[which]) for x in self.case.features]

    def cotangents(self) -> list[Tensor]:
        return [self.channels(c) for c in self.case.cotangents]

    def dimensions(self, adds: bool = False, n_nodes: int = 0) -> list[int]:
        case = self.case
        width = -(-case.n_channels // self.n_lanes) * self.n_lanes
        sizes = [case.graph.n_atoms, case.graph.max_neighbors, len(case.graph.slots_of_pair) - 1]
        return [*sizes, width, width // self.n_lanes, n_nodes, int(adds)]

    def of_radial(self, adds: bool) -> Tensor:
        """Return a gradient that is there already; if it is not added to, it is no number where it must be written."""
        case = self.case
        there = blocked(torch.full_like(case.radial[0], 0.5), self.n_lanes)
        padding = case.graph.slots_of_pair[:-1, 0] == case.graph.slots_of_pair[:-1, 1]
        there[padding] = 0.0 if adds else 7.0
        return there if adds else torch.where(padding.view(-1, 1, 1, 1), there, float("nan"))

    def of_features(self, wanted: bool) -> list[Tensor | None]:
        return [torch.full_like(x, 0.25) if wanted else None for x in self.features(0)]

    def of_harmonics(self) -> Tensor:
        n_harmonics = self.case.harmonics.shape[-1]
        unit = 4 if self.n_lanes == LANES else self.n_lanes  # rows of harmonics on a device are shorter
        shape = self.dimensions()[4], self.case.harmonics.shape[1], -(-n_harmonics // unit) * unit
        return torch.zeros(shape, dtype=self.case.dtype)

    def of_results(self) -> list[Tensor]:
        return [torch.full_like(c, float("nan")) for c in self.cotangents()]

    def plain(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        """Remove the padding of channels."""
        return [v[..., : self.case.n_channels] for v in values if v is not None]

    def plain_radial(self, values: Tensor) -> Tensor:
        return unblocked(values, self.case.n_channels)


def convolved(case: Case, kernels: tuple[int, Runner]) -> list[Tensor]:
    arrays, run = Arrays(case, kernels[0]), kernels[1]
    results = arrays.of_results()
    run("conv_forward", [*arrays.start(), *results], arrays.dimensions())
    return arrays.plain(results)


def gradients(
    case: Case, kernels: tuple[int, Runner], harmonics: bool = True, adds: bool = False, wanted: bool = True
) -> list[Tensor]:
    """Return gradients by radial weights, features that are wanted, and harmonics."""
    arrays, run = Arrays(case, kernels[0]), kernels[1]
    of_radial, of_features, of_harmonics = arrays.of_radial(adds), arrays.of_features(wanted), arrays.of_harmonics()
    inputs = [*arrays.start(), *arrays.cotangents(), of_radial, *of_features, *([of_harmonics] if harmonics else [])]
    run(GRADIENTS[not harmonics], [*inputs, case.graph.slots_of_pair], arrays.dimensions(adds))
    summed = [of_harmonics.sum(0)[:, : case.harmonics.shape[-1]]] if harmonics else []
    return [arrays.plain_radial(of_radial), *arrays.plain(of_features), *summed]


def second(case: Case, kernels: tuple[int, Runner], adds: bool = False) -> list[Tensor]:
    """Return gradients by the results' cotangents, radial weights and features."""
    arrays, run = Arrays(case, kernels[0]), kernels[1]
    results, of_radial, of_features = arrays.of_results(), arrays.of_radial(adds), arrays.of_features(True)
    given = [*arrays.cotangents(), arrays.matrices(1), arrays.radial(1), *arrays.features(1)]
    pointers = [*arrays.start(), *given, *results, of_radial, *of_features, case.graph.slots_of_pair]
    run("conv_second", pointers, arrays.dimensions(adds))
    return [*arrays.plain(results), arrays.plain_radial(of_radial), *arrays.plain(of_features)]


PASSES: dict[str, Callable[..., list[Tensor]]] = {
    "value": convolved,
    "gradient": gradients,
    "gradient without features": lambda case, kernels: gradients(case, kernels, wanted=False),
    "added gradient": lambda case, kernels: gradients(case, kernels, adds=True),
    "gradient without harmonics": lambda case, kernels: gradients(case, kernels, harmonics=False),
    "added gradient without harmonics": lambda case, kernels: gradients(case, kernels, harmonics=False, adds=True),
    "second": second,
    "added second": lambda case, kernels: second(case, kernels, adds=True),
}


def tabulated(case: Case, kernels: tuple[int, Runner], wanted: bool = True) -> list[Tensor]:
    """Return values, and gradients by features that are wanted and harmonics, with weights from a random table."""
    arrays, run, generator = Arrays(case, kernels[0]), kernels[1], torch.Generator().manual_seed(2)
    n_pairs, n_paths = case.radial.shape[1:3]
    table = random(generator, N_NODES, 3 * n_paths, case.n_channels, dtype=case.dtype)
    tail = [
        blocked(table, kernels[0]).transpose(0, 1).contiguous(),
        torch.randint(N_NODES - 1, (n_pairs,), generator=generator),
    ]
    inputs = arrays.start()
    inputs[5] = random(generator, n_pairs, 12, dtype=case.dtype)
    results, of_features, of_harmonics = arrays.of_results(), arrays.of_features(wanted), arrays.of_harmonics()
    dimensions = arrays.dimensions(n_nodes=N_NODES)
    run("conv_forward_tabulated", [*inputs, *results, *tail], dimensions)
    pointers = [*inputs, *arrays.cotangents(), *of_features, of_harmonics, *tail]
    run("conv_backward_tabulated", pointers, dimensions)
    return [*arrays.plain([*results, *of_features]), of_harmonics.sum(0)[:, : case.harmonics.shape[-1]]]


SHAPES: list[tuple[tuple[int, ...], int, int]] = [((0,), 1, 5), ((0, 1), 1, 40), ((1,), 1, 32)]
MORE_SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    *[((0,), 0, 3), ((0,), 3, 33), ((0, 1), 3, 32), ((0, 2), 3, 5), ((0, 1, 2), 2, 70)],
    *[((0, 1, 2), 3, 3), ((0, 1, 2, 3), 3, 5), ((0, 1, 2, 3), 4, 5)],
]
BOTH = [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]
EVERY = [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in MORE_SHAPES)]


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("which", list(PASSES))
@pytest.mark.parametrize(("l_in", "l_max", "n_channels"), SHAPES)
def test_as_in_c(l_in: tuple[int, ...], l_max: int, n_channels: int, which: str, dtype: torch.dtype) -> None:
    case = draw(small_graph(), l_in, l_max, n_channels, dtype)
    found, expected = PASSES[which](case, by_triton(case)), PASSES[which](case, by_c(case))
    assert deviation(found, expected) < TOLERANCE[dtype]


@pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("l_in", "l_max", "n_channels"), EVERY)
def test_tables_as_in_c(l_in: tuple[int, ...], l_max: int, n_channels: int, dtype: torch.dtype) -> None:
    case = draw(small_graph(), l_in, l_max, n_channels, dtype)
    wanted = n_channels != SHAPES[0][-1]
    found, expected = (tabulated(case, kernels(case, True), wanted) for kernels in (by_triton, by_c))
    assert deviation(found, expected) < TOLERANCE[dtype]


def test_without_exchange_of_numbers_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.2 has none."""
    case = draw(small_graph(), (0, 1), 1, 5, torch.float64)
    expected = gradients(case, by_triton(case))
    monkeypatch.setattr(convolution, "_CAN_GATHER", False)
    kernels = convolution_kernels.__wrapped__(case.layout, case.dtype)
    run: Runner = lambda name, arrays, dimensions: kernels[name].run(arrays, dimensions)  # noqa: E731
    assert deviation(gradients(case, (LANES, run)), expected) < 1e-14


@pytest.mark.parametrize("which", list(PASSES))
def test_capacities_change_no_bit(which: str) -> None:
    case = draw(small_graph(), (0, 1), 1, 5, torch.float32)
    larger = case.on(with_capacities(case.graph, 2, 40))
    expected, found = PASSES[which](case, by_triton(case)), PASSES[which](larger, by_triton(case))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[: len(other)], other)
        beyond = one[len(other) :]
        assert torch.isfinite(beyond).all()
        is_gradient_of_features = which != "value" and one.ndim == 3 and len(one) == larger.graph.n_atoms
        assert bool((beyond == (0.25 if is_gradient_of_features else 0.0)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("l_in", "l_max", "n_channels"), EVERY)
def test_as_defined(l_in: tuple[int, ...], l_max: int, n_channels: int, dtype: torch.dtype) -> None:
    case = draw(small_graph(), l_in, l_max, n_channels, dtype)
    plain = case.to(torch.float64)
    harmonics, radial = plain.harmonics[0].requires_grad_(), plain.radial[0].requires_grad_()
    features = [x[0].requires_grad_() for x in plain.features]
    cotangents = [c.requires_grad_() for c in plain.cotangents]
    with_padding = torch.cat([radial, torch.zeros_like(radial[:1])])
    by_degree = dict(zip(l_in, features, strict=True))
    values = Convolution(l_in, l_max)(by_degree, with_padding, harmonics, case.graph)
    results = [values[l].unflatten(2, (-1, n_channels)) for l in range(l_max + 1)]
    operands = [radial, *features, harmonics]
    total = sum((r * c).sum() for r, c in zip(results, cotangents, strict=True))
    first = torch.autograd.grad(total, operands, create_graph=True)
    changes = [plain.radial[1], *(x[1] for x in plain.features), plain.harmonics[1]]
    of_first = sum((g * t).sum() for g, t in zip(first, changes, strict=True))
    last = torch.autograd.grad(of_first, [*cotangents, radial, *features])

    kernels, tolerance = by_triton(case), TOLERANCE[dtype]
    assert deviation(convolved(case, kernels), results) < tolerance
    found = gradients(case, kernels)
    found[1:-1] = [x - 0.25 for x in found[1:-1]]
    assert deviation(found, first) < tolerance
    found = second(case, kernels)
    found[-len(l_in) :] = [x - 0.25 for x in found[-len(l_in) :]]
    assert deviation(found, last) < tolerance
