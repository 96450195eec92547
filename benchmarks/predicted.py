"""Predict how long a training step and an evaluation take on a graphics processor, without one.

python benchmarks/predicted.py
python benchmarks/predicted.py --bandwidth 4.8e12 --per-launch

Every launch is taken for the largest of three: its fixed time, the bytes of its arrays (each once) at a part of the
memory's bandwidth, and its operations at a part of the processor's rate. Their sum is the prediction. It knows nothing
of caches that hold too little, of programs that wait, or of processors that are not full.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from kernels import contraction_work, convolution_work
from ours import configuration, make_plan
from torch import Tensor
from watching import Call, KernelCall, Watch, products_of

from mace.elements import ElementTable
from mace.graphs.dataset import Batch
from mace.graphs.graph import Graph
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.c_source.contraction import contraction_source
from mace.kernels.c_source.convolution import convolution_source, tabulated_source
from mace.kernels.triton_backend import TRITON
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.training.loss import make_loss
from mace.training.optimization import MovingAverage
from mace.training.step import loss_gradient


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
    """Note what a training step launches, all but the optimizer's step."""
    model, batch = model.to("meta"), batch.to("meta")
    loss = make_loss("weighted", {"energy": 1.0, "forces": 100.0})
    average, watch = MovingAverage(model.parameters(), 0.99), Watch()
    with watch.kernels(), watch:
        loss_gradient(model, batch, loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        average.update()
    return watch


def watch_evaluation(model: MACE, graph: Graph) -> Watch:
    """Note what energies and forces launch."""
    model, watch = model.to("meta").requires_grad_(False), Watch()
    with watch.kernels(), watch:
        predict(model, graph.to("meta"))
    return watch


def works(calls: list[Call], edges: int, atoms: int) -> Iterator[Work]:
    """Yield the work of each launch, for a graph with so many edges and atoms, the padding not counted."""
    functions = Counter(call.function for call in calls if isinstance(call, KernelCall))
    of_kernel: dict[Any, set[Any]] = {}
    for call in calls:
        if isinstance(call, KernelCall):
            of_kernel.setdefault(call.kernel, set()).add(call.function)
    assert functions or not of_kernel
    for call in calls:
        if not isinstance(call, KernelCall):
            yield Work(call.name, call.n_bytes, call.flops, False)
        elif all(call.grid):
            n_bytes, flops = _work_of(call, edges, atoms)
            yield Work(call.name, n_bytes, flops / len(of_kernel[call.kernel]), True)


def _work_of(call: KernelCall, edges: int, atoms: int) -> tuple[float, float]:
    """Return the bytes and operations of a kernel; those of a sequence of kernels are those of all of them."""
    named, kernel = call.named, call.kernel
    itemsize = 8 if kernel is not None and kernel.dtype == torch.float64 else 4
    if call.name == "_zeros":
        return itemsize * float(call.records[:, 1].sum()), 0.0
    if call.name == "_packing":
        return 2 * itemsize * float((call.records[:, 2] * call.records[:, 3]).sum()), 0.0
    if call.records is not None:
        numbers, flops = products_of(call.records, sums=call.name == "_sums")
        return numbers * itemsize, flops
    n_bytes = sum(value.nbytes for value in call.arguments if isinstance(value, Tensor))
    if kernel is not None and kernel.source in (convolution_source, tabulated_source):
        name = kernel.name.replace("_tabulated", "").replace("conv_backward", "conv_backward_full")
        name = name.replace("_full_full", "_full").replace("_full_parameters", "_parameters")
        return n_bytes, 2.0 * edges * named["C"] * convolution_work(kernel.shape[0])[name]
    if kernel is not None and kernel.source is contraction_source:
        width = next(value for value in call.arguments[-6:] if isinstance(value, int) and value % 32 == 0 and value)
        return n_bytes, 2.0 * atoms * width * contraction_work(kernel.shape[0])[kernel.name]
    return n_bytes, sum(value.numel() for value in call.arguments if isinstance(value, Tensor))
