"""Predict how long a training step and an evaluation take on a graphics processor, without one.

python benchmarks/predicted.py
python benchmarks/predicted.py --bandwidth 4.8e12 --per-launch

Every launch is taken for the largest of three: its fixed time, the bytes of its arrays (each once) at a part of the
memory's bandwidth, and its operations at a part of the processor's rate. Their sum is the prediction. It knows nothing
of caches that hold too little, of programs that wait, or of processors that are not full.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from crystals import N_ELEMENTS, R_MAX, frequencies, make_crystal, make_molecules
from kernels import contraction_work, convolution_work
from ours import configuration, make_plan
from torch import Tensor
from watching import KernelCall, Watch, products_of

from mace.elements import ElementTable
from mace.graphs.dataset import Batch
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.c_source.contraction import contraction_source
from mace.kernels.c_source.convolution import convolution_source, tabulated_source
from mace.kernels.triton_backend import TRITON
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.settings import TrainingSettings
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage, make_optimizer
from mace.training.step import loss_gradient, update_parameters


@dataclass(frozen=True)
class Machine:
    """What a graphics processor can do, and how much of it is taken for reachable.

    Attributes:
        bandwidth: Of the memory, bytes/s.
        float32: Operations/s without tensor cores.
        float64: The same in double precision.
        of_bandwidth: Part of the bandwidth that is reached.
        of_rate: Part of the rate that is reached.
        latency: Least time of a launch within a captured graph, s.
    """

    bandwidth: float = 3.35e12
    float32: float = 67.0e12
    float64: float = 34.0e12
    of_bandwidth: float = 0.6
    of_rate: float = 0.4
    latency: float = 2.0e-6

    def seconds(self, n_bytes: float, flops: float, dtype: torch.dtype) -> float:
        """Return the time of a launch."""
        rate = self.float64 if dtype == torch.float64 else self.float32
        return max(self.latency, n_bytes / (self.of_bandwidth * self.bandwidth), flops / (self.of_rate * rate))


@dataclass(frozen=True)
class Work:
    """A launch.

    Attributes:
        name: Of the kernel or operation.
        n_bytes: Bytes of its arrays.
        flops: Its operations.
        ours: Whether it is a kernel in Triton.
    """

    name: str
    n_bytes: float
    flops: float
    ours: bool


def make_model(options: argparse.Namespace, elements: tuple[int, ...], neighbors: float) -> MACE:
    """Build a model with random weights."""
    wanted = {
        "hidden": options.hidden_irreps,
        "l_max": options.l_max,
        "correlation": options.correlation,
        "layers": options.layers,
        "r_max": options.r_max,
        "elements": elements,
        "reference_energies": (0.0,) * len(elements),
        "avg_num_neighbors": neighbors,
        "scale": 1.0,
    }
    model = MACE(make_plan(wanted), getattr(torch, options.dtype))
    return model.initialize(torch.Generator().manual_seed(0)).use_backend(TRITON)


def make_batch(structures: list[Atoms], elements: tuple[int, ...], r_max: float) -> Batch:
    """Make a batch of labeled structures."""
    return InMemoryDataset(
        [configuration(atoms, labeled=True) for atoms in structures], ElementTable(elements), r_max
    ).batch(range(len(structures)))


def watch_step(model: MACE, batch: Batch) -> Watch:
    """Note what a training step launches, with clipping, optimizer and moving average."""
    model, batch, watch = model.to("meta"), batch.to("meta"), Watch()
    settings = TrainingSettings(name="predicted", train_file=["unused"], amsgrad=True)
    loss, average = make_loss("weighted", {"energy": 1.0, "forces": 100.0}), MovingAverage(model.parameters(), 0.99)
    with watch.kernels():
        optimizer = make_optimizer(model, settings)

        def step() -> None:
            loss_gradient(model, batch, loss)
            update_parameters(model, optimizer, 10.0, average)

        step()  # the first one makes the state of the optimizer
        watch.calls.clear()
        with watch:
            step()
    watch.n_parameters, watch.itemsize = sum(p.numel() for p in model.parameters()), model.dtype.itemsize
    return watch


def watch_evaluation(model: MACE, graph: Graph) -> Watch:
    """Note what energies and forces launch."""
    model, watch = model.to("meta").requires_grad_(False), Watch()
    with watch.kernels(), watch:
        predict(model, graph.to("meta"))
    return watch


def works(watch: Watch, edges: int, atoms: int) -> Iterator[Work]:
    """Yield the work of each launch, for a graph with so many edges and atoms, the padding not counted."""
    of_kernel: dict[Any, set[Any]] = {}
    for call in watch.calls:
        if isinstance(call, KernelCall):
            of_kernel.setdefault(call.kernel, set()).add(call.function)
    for call in watch.calls:
        if not isinstance(call, KernelCall):
            yield Work(call.name, call.n_bytes, call.flops, False)
        elif all(call.grid):
            if call.name in _ARRAYS_OF_PARAMETERS:
                numbers = _ARRAYS_OF_PARAMETERS[call.name] * watch.n_parameters
                yield Work(call.name, numbers * watch.itemsize, numbers, True)
                continue
            n_bytes, flops = _work_of(call, edges, atoms)
            # a kernel in C may be several functions here, which share its operations
            yield Work(call.name, n_bytes, flops / len(of_kernel[call.kernel]), True)


def _first_dimension(call: KernelCall) -> int:
    """Return the place of the first dimension, which come after all arrays."""
    return next(place for place, value in enumerate(call.arguments) if isinstance(value, int))


_ARRAYS_OF_PARAMETERS = {"_squares": 1, "_move": 11}
"""How many arrays of the size of the parameters the kernels of the optimizer read and write."""


def _work_of(call: KernelCall, edges: int, atoms: int) -> tuple[float, float]:
    """Return the bytes of a function, and the operations of the kernel in C in whose place it is."""
    named, kernel = call.named, call.kernel
    itemsize = 8 if kernel is not None and kernel.dtype == torch.float64 else 4
    if call.name == "_zeros":
        return itemsize * float(call.records[:, 1].sum()), 0.0
    if call.name == "_packing":
        return 2 * itemsize * float((call.records[:, 2] * call.records[:, 3]).sum()), 0.0
    if call.records is not None:
        numbers, flops = products_of(call.records, sums=call.name == "_sums")
        return itemsize * float(numbers), 2.0 * flops if call.name == "_products" else flops
    # functions that share arrays do not all touch all of them
    code = inspect.getsource(call.function.fn).split("):", 1)[-1]
    used = [value for name, value in named.items() if isinstance(value, Tensor) and re.search(rf"\b{name}\b", code)]
    n_bytes = float(sum(value.nbytes for value in used))
    if kernel is not None and kernel.source in (convolution_source, tabulated_source):
        name = kernel.name.replace("_tabulated", "")
        name = "conv_backward_full" if name == "conv_backward" else name
        return n_bytes, 2.0 * edges * named["C"] * convolution_work(kernel.shape[0])[name]
    if kernel is not None and kernel.source is contraction_source:
        width = call.arguments[_first_dimension(call) + 1]
        return n_bytes, 2.0 * atoms * width * contraction_work(kernel.shape[0])[kernel.name]
    return n_bytes, float(sum(value.numel() for value in used))


@dataclass(frozen=True)
class Prediction:
    """What is expected of a step or an evaluation.

    Attributes:
        title: What it is.
        atoms: Number of atoms.
        edges: Number of directed edges.
        launches: Launches of our kernels.
        others: Launches of torch's kernels.
        gigabytes: Bytes read and written, each array once a launch, in 1e9.
        gigaflops: Operations in 1e9.
        milliseconds: The expected time, everything captured in one graph.
        without_latency: The same if launches cost nothing.
    """

    title: str
    atoms: int
    edges: int
    launches: int
    others: int
    gigabytes: float
    gigaflops: float
    milliseconds: float
    without_latency: float


def predict_time(title: str, watch: Watch, graph: Graph, machine: Machine, dtype: torch.dtype) -> Prediction:
    """Add up the times of all launches."""
    found = list(works(watch, graph.n_edges, graph.n_atoms))
    free = replace(machine, latency=0.0)
    return Prediction(
        title,
        graph.n_atoms,
        graph.n_edges,
        sum(work.ours for work in found),
        sum(not work.ours for work in found),
        sum(work.n_bytes for work in found) / 1e9,
        sum(work.flops for work in found) / 1e9,
        1e3 * sum(machine.seconds(work.n_bytes, work.flops, dtype) for work in found),
        1e3 * sum(free.seconds(work.n_bytes, work.flops, dtype) for work in found),
    )


def cases(options: argparse.Namespace) -> Iterator[tuple[str, Watch, Graph]]:
    """Yield what is predicted, with what it launches and its graph."""
    molecules, three, many = make_molecules(max(options.molecules)), (1, 6, 8), tuple(range(1, N_ELEMENTS + 1))
    generator = np.random.default_rng(0)
    of_elements = frequencies(N_ELEMENTS, generator)
    for size in options.molecules:
        batch = make_batch(molecules[:size], three, 5.0)
        yield f"step, {size} molecules", watch_step(make_model(_with(options, 5.0), three, 12.0), batch), batch.graph
    crystals = [make_crystal(31, generator, of_elements) for _ in range(options.crystals)]
    batch = make_batch(crystals, many, R_MAX)
    watch = watch_step(make_model(_with(options, R_MAX), many, 60.0), batch)
    yield f"step, {options.crystals} crystals of 31 atoms", watch, batch.graph
    for size in options.sizes:
        graph = make_batch([make_crystal(size, generator, of_elements)], many, R_MAX).graph
        model = make_model(_with(options, R_MAX), many, 60.0)
        if options.tables:
            model.use_radial_tables(256)
        yield f"energy and forces, {size} atoms", watch_evaluation(model, graph), graph


def _with(options: argparse.Namespace, r_max: float) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"r_max": r_max})


def make_parser() -> argparse.ArgumentParser:
    """Return the options of this command."""
    machine = Machine()
    parser = argparse.ArgumentParser(
        description="Predicted times on a graphics processor, from counted bytes, operations and launches.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--bandwidth", type=float, default=machine.bandwidth, help="of the memory, bytes/s")
    parser.add_argument("--float32", type=float, default=machine.float32, help="operations/s without tensor cores")
    parser.add_argument("--float64", type=float, default=machine.float64, help="operations/s in double precision")
    parser.add_argument("--of-bandwidth", type=float, default=machine.of_bandwidth, help="part that is reached")
    parser.add_argument("--of-rate", type=float, default=machine.of_rate, help="part that is reached")
    parser.add_argument("--latency", type=float, default=machine.latency, help="least time of a launch, s")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="precision")
    parser.add_argument("--hidden-irreps", default="128x0e+128x1o", help="features passed between layers")
    parser.add_argument("--l-max", type=int, default=3, help="highest degree of the harmonics")
    parser.add_argument("--correlation", type=int, default=3, help="factors of the symmetric contraction")
    parser.add_argument("--layers", type=int, default=2, help="number of interactions")
    parser.add_argument("--molecules", type=int, nargs="+", default=[10, 64], help="molecules in batches")
    parser.add_argument("--crystals", type=int, default=16, help="crystals in a batch")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 20000], help="atoms of crystals evaluated")
    parser.add_argument("--no-tables", dest="tables", action="store_false", help="evaluate without radial tables")
    parser.add_argument("--per-launch", action="store_true", help="also print the ten longest launches of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Count, print, write."""
    options = make_parser().parse_args(arguments)
    machine = Machine(*(getattr(options, each.name) for each in fields(Machine)))
    dtype, found = getattr(torch, options.dtype), list[Prediction]()
    print("| | atoms | edges | kernels, torch's | GB | GFLOP | ms | ms without latency |")
    print("| --- " * 8 + "|")
    for title, watch, graph in cases(options):
        one = predict_time(title, watch, graph, machine, dtype)
        found.append(one)
        print(
            f"| {one.title} | {one.atoms} | {one.edges} | {one.launches}, {one.others} | {one.gigabytes:.2f} | "
            f"{one.gigaflops:.1f} | {one.milliseconds:.2f} | {one.without_latency:.2f} |",
            flush=True,
        )
        if options.per_launch:
            _print_longest(list(works(watch, graph.n_edges, graph.n_atoms)), machine, dtype)
    if options.json:
        content = {"machine": asdict(machine), "predictions": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _print_longest(found: list[Work], machine: Machine, dtype: torch.dtype) -> None:
    """Print the kernels that take longest in all, with how often they are launched."""
    of_name: dict[str, list[Work]] = {}
    for work in found:
        of_name.setdefault(work.name, []).append(work)
    times = {name: sum(machine.seconds(w.n_bytes, w.flops, dtype) for w in all_) for name, all_ in of_name.items()}
    for name in sorted(times, key=times.__getitem__, reverse=True)[:10]:
        n_bytes, flops = (sum(getattr(work, what) for work in of_name[name]) for what in ("n_bytes", "flops"))
        print(
            f"    {name}: {len(of_name[name])} times, {n_bytes / 1e6:.1f} MB, {flops / 1e6:.0f} MFLOP, "
            f"{1e6 * times[name]:.0f} us"
        )


if __name__ == "__main__":
    sys.exit(main())
