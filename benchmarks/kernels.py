"""Time the compiled kernels one by one, and compare them with what the processor can do.

python benchmarks/kernels.py

Multiply-adds are counted from the polynomials that the kernels evaluate, a product or a sum alone counted as one. The
yardstick is the rate of a product of large matrices in the same precision with the same threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import machine_facts
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mace.elements import ElementTable
from mace.equivariant.coupling import coupling_coefficients
from mace.equivariant.irreps import parse_irreps
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset

# the kernels below autograd: its bookkeeping and the products around the kernels are not measured here
from mace.kernels.c_backend import C
from mace.kernels.c_source.contraction import ContractionTerms
from mace.kernels.c_source.convolution import ConvolutionLayout
from mace.kernels.c_source.parts import lanes
from mace.kernels.compiled import _Contraction, _Convolution, layout_of, terms_of
from mace.kernels.compiler import CompilationError, find_compiler
from mace.kernels.convolution import Convolution, ConvolutionPath
from mace.kernels.symmetric_contraction import SymmetricContraction
from mace.structures.configuration import Configuration

R_MAX = 5.0
ELEMENTS = ElementTable((1, 6, 8))


@dataclass(frozen=True)
class Timing:
    """One kernel's time.

    Attributes:
        kernel: Its name.
        hidden: Degrees of the features, in the notation of the command line.
        dtype: Precision.
        per: What it is counted by, ``edge`` or ``atom``.
        seconds: Of every repeat, for one edge or atom.
        multiply_adds: For one edge or atom.
        gemm: Rate of the matrix product, in floating-point operations per second.
    """

    kernel: str
    hidden: str
    dtype: str
    per: str
    seconds: list[float]
    multiply_adds: int
    gemm: float

    @property
    def median(self) -> float:
        """Median of the repeats in seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Floating-point operations per second."""
        return 2 * self.multiply_adds / self.median


def convolution_work(layout: ConvolutionLayout) -> dict[str, int]:
    """Count, by kernel, the multiply-adds for one edge and channel."""
    work = dict.fromkeys(("conv_forward", "conv_backward_parameters", "conv_backward_full", "conv_second"), 0)
    for path in layout.paths:
        n_in, n_out = 2 * path.l1 + 1, 2 * path.l3 + 1
        backward = n_in * (n_out + 2)
        work["conv_forward"] += n_in * (n_out + 1)
        work["conv_backward_parameters"] += backward
        work["conv_backward_full"] += backward + n_in + _nonzeros(path)
        work["conv_second"] += n_in * (4 * n_out + 7)
    return work


def _nonzeros(path: ConvolutionPath) -> int:
    """Count what the gradient of the harmonics adds up: nonzero coefficients, and products that they share."""
    nonzero = coupling_coefficients(path.l1, path.l2, path.l3) != 0.0
    return int(nonzero.sum() + nonzero.any(axis=1).sum())


def contraction_work(terms: ContractionTerms) -> dict[str, int]:
    """Count, by kernel, the multiply-adds for one atom and channel."""
    leaves = inner = weighted = 0
    nodes = list(terms.trees().values())
    while nodes:
        for child in nodes.pop().children.values():
            leaves += not child.children
            inner += bool(child.children)
            weighted += child.weight is not None
            nodes.append(child)
    return {
        "contraction_forward": leaves + inner,
        "contraction_backward_features": 2 * leaves + 3 * inner,
        "contraction_backward_full": 2 * leaves + 3 * inner + weighted,
        "contraction_second": 4 * leaves + 8 * inner + weighted,
    }


def make_graph(n_atoms: int, neighbors: float) -> Graph:
    """Scatter atoms in a periodic box in which each has about so many neighbors."""
    generator = np.random.default_rng(0)
    edge = (n_atoms * 4.0 / 3.0 * np.pi * R_MAX**3 / neighbors) ** (1.0 / 3.0)
    numbers = generator.choice(ELEMENTS.atomic_numbers, n_atoms)
    box = Configuration(numbers, generator.uniform(0.0, edge, (n_atoms, 3)), np.eye(3) * edge, (True,) * 3)
    return InMemoryDataset([box], ELEMENTS, R_MAX).batch([0]).graph


def convolution_calls(
    convolution: Convolution, graph: Graph, channels: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the kernels of a convolution with arrays of their own, in the default precision."""
    coupling = convolution.coupling.to(torch.get_default_dtype())
    work = _Convolution(C, layout_of(convolution), graph, coupling, channels)
    n_slots, n_harmonics, width = len(graph.sender_of_slot), len(coupling), lanes(coupling.dtype)

    def features() -> list[Tensor]:
        return [torch.randn(value.shape) for value in work.zero_features()]

    def results() -> list[Tensor]:
        return [torch.randn(value.shape) for value in work.empty_results()]

    given = (torch.randn(n_slots, coupling.shape[1]), torch.randn(work.radial_shape), *features())
    gradients = (torch.randn(work.radial_shape), *features())
    parts = torch.zeros(torch.get_num_threads(), n_slots, -(-n_harmonics // width) * width)
    tangents = (torch.randn(given[0].shape), torch.randn(work.radial_shape), *features())
    arrays = {
        "conv_forward": (*given, *results()),
        "conv_backward_parameters": (*given, *results(), *gradients, work.slots),
        "conv_backward_full": (*given, *results(), *gradients, parts, work.slots),
        "conv_second": (*given, *results(), *tangents, *results(), *gradients, work.slots),
    }
    for name, chosen in arrays.items():
        yield name, lambda name=name, chosen=chosen: work.run(name, chosen)


def contraction_calls(terms: ContractionTerms, graph: Graph, channels: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the kernels of a contraction with arrays of their own, in the default precision."""
    n_elements, width = len(ELEMENTS.atomic_numbers), lanes(torch.get_default_dtype())
    work = _Contraction(C, terms, graph.element.sort().values)
    weights = torch.randn(n_elements, channels // width, terms.n_terms(), width)

    def features() -> Tensor:
        return torch.randn(graph.n_atoms, terms.n_components, channels)

    def results() -> list[Tensor]:
        return [torch.randn(graph.n_atoms, 2 * l + 1, channels) for l in terms.l_out]

    given, gradient = (features(), weights, *results()), torch.zeros_like(weights)
    arrays = {
        "contraction_forward": given,
        "contraction_backward_features": (*given, features()),
        "contraction_backward_full": (*given, features(), gradient),
        "contraction_second": (*given, features(), *results(), features(), gradient),
    }
    for name, chosen in arrays.items():
        yield name, lambda name=name, chosen=chosen: work.run(name, *chosen)


def seconds_of(call: Callable[[], object], repeats: int) -> list[float]:
    """Time a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def gemm_rate(repeats: int, size: int = 1024) -> float:
    """Measure a product of square matrices; return floating-point operations per second of the fastest."""
    a, b, c = (torch.randn(size, size) for _ in range(3))
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b, out=c), max(repeats, 5)))


def measure(options: argparse.Namespace, graph: Graph, hidden: str, dtype: str, gemm: float) -> list[Timing]:
    """Time all kernels for one kind of features in one precision, which is the default one."""
    degrees = tuple(irrep.l for _, irrep in parse_irreps(hidden))
    precision, timings = torch.get_default_dtype(), []
    width = lanes(precision)
    channels = -(-options.channels // width) * width
    convolution = Convolution(degrees, options.l_max)
    contraction = SymmetricContraction(options.l_max, degrees, options.correlation)
    layout, terms = layout_of(convolution), terms_of(contraction)
    C.prepare([convolution, contraction], precision)
    for per, count, calls, work in (
        ("edge", graph.n_edges, convolution_calls(convolution, graph, channels), convolution_work(layout)),
        ("atom", graph.n_atoms, contraction_calls(terms, graph, channels), contraction_work(terms)),
    ):
        for name, call in calls:
            seconds = [value / count for value in seconds_of(call, options.repeats)]
            timings.append(Timing(name, hidden, dtype, per, seconds, work[name] * channels, gemm))
    return timings


def print_timings(console: Console, timings: list[Timing]) -> None:
    """Print a table."""
    table = Table(title="compiled kernels", title_justify="left")
    for heading in ("kernel", "hidden", "dtype", "us", "multiply-adds", "GFLOP/s", "of GEMM"):
        table.add_column(heading, justify="left" if heading in ("kernel", "hidden", "dtype") else "right")
    for timing in timings:
        table.add_row(
            timing.kernel,
            timing.hidden,
            timing.dtype,
            f"{1e6 * timing.median:.3f}/{timing.per}",
            str(timing.multiply_adds),
            f"{1e-9 * timing.rate:.1f}",
            f"{timing.rate / timing.gemm:.0%}",
        )
    console.print(table)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time of every compiled kernel, one by one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--hidden", nargs="+", default=["0e", "0e+1o", "0e+1o+2e"], help="degrees of the features")
    parser.add_argument("--channels", type=int, default=128, help="of the features, rounded up to whole vectors")
    parser.add_argument("--l-max", type=int, default=3, help="highest degree of the harmonics")
    parser.add_argument("--correlation", type=int, default=3, help="factors of the symmetric contraction")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "float64"], default=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--atoms", type=int, default=150, help="atoms in the box")
    parser.add_argument("--neighbors", type=float, default=12.0, help="neighbors of an atom on average")
    parser.add_argument("--repeats", type=int, default=20, help="calls of every kernel; their median is printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every time here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit status."""
    options, console, timings = _options(arguments), Console(), list[Timing]()
    if not console.is_terminal:
        console = Console(width=120)  # or columns would be cut off in a file
    facts: dict[str, Any] = machine_facts() | {"torch": torch.__version__, "threads": options.threads}
    torch.set_num_threads(options.threads)
    graph = make_graph(options.atoms, options.neighbors)
    try:
        for dtype in options.dtype:
            torch.set_default_dtype(getattr(torch, dtype))
            gemm = gemm_rate(options.repeats)
            for hidden in options.hidden:
                with console.status(f"{dtype}, {hidden}"):
                    timings += measure(options, graph, hidden, dtype, gemm)
    except CompilationError as error:
        print(error, file=sys.stderr)
        return 2
    facts["compiler"] = " ".join(find_compiler() or ())
    load = f", load {facts['load_before']} before the start" if "load_before" in facts else ""
    console.print(f"{facts['date']}  {facts['cpu']}, {facts['cores']} cores{load}", highlight=False)
    console.print(
        f"{facts['compiler']}, {options.threads} threads, {options.channels} channels, l_max {options.l_max}, "
        f"correlation {options.correlation}, {graph.n_atoms} atoms, {graph.n_edges} edges",
        highlight=False,
    )
    for dtype, gemm in {timing.dtype: timing.gemm for timing in timings}.items():
        console.print(f"matrix product in {dtype}: {1e-9 * gemm:.0f} GFLOP/s", highlight=False)
    print_timings(console, timings)
    if options.json:
        results = [asdict(timing) | {"median_s": timing.median, "rate": timing.rate} for timing in timings]
        options.json.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
