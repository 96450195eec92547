"""Are addresses right where arrays are far larger than this machine's memory?

A program for 600,000 atoms of 64 neighbors is laid out in memory that does not exist, and the first and the last
program of every launch are interpreted. What they load is made up, what they store goes nowhere, and the address of
either has to lie within the memory of some array. No 32-bit integer may overflow on the way, and no number that differs
from graph to graph may be one for which kernels are compiled anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.program_models import batch, build

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from mace.graphs.bucket import ElementGroups  # noqa: E402
from mace.graphs.graph import Graph  # noqa: E402
from mace.kernels.triton_backend import TRITON, TritonBackend  # noqa: E402
from mace.kernels.triton_source import contraction, matrices  # noqa: E402
from mace.model.compiled.runs import energies_and_gradient  # noqa: E402
from mace.program import target  # noqa: E402
from mace.program.capture import DeviceWords  # noqa: E402
from mace.program.device import DeviceWorkspace  # noqa: E402

ATOMS, NEIGHBORS, LISTED, GROUPS = 600_000, 64, 2, 3
PAIRS, SLOTS = ATOMS * NEIGHBORS // 2 + 1, ATOMS * NEIGHBORS
MANY = 1 << 12
REGION = 1 << 44
"""Bytes between the beginnings of two arrays."""

INDICES: dict[str, Any] = {
    "neighbor_count": LISTED,
    "sender_of_slot": ATOMS - 1,
    "pair_of_slot": PAIRS - 2,
    "reverse_of_slot": SLOTS - 1,
    "pair_sender": ATOMS - 1,
    "pair_receiver": ATOMS - 2,
    "row_of_atom": ATOMS - 1,
    "structure_of_atom": 0,
    "element": 2,
}


class Memory:
    """Memory that is only addresses; what integers it holds depends on the array."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.words = np.zeros(0, np.int64)
        self._regions: list[torch.UntypedStorage] = []
        self._place: dict[int, int] = {}

    def address(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._place:
            self._regions.append(storage)  # kept, so that no other has its key
            self._place[key] = len(self._regions)
        return self._place[key] * REGION + tensor.storage_offset() * tensor.element_size()

    def name(self, tensor: Tensor, name: str) -> None:
        self.names[self.address(tensor) // REGION] = name

    def check(self, addresses: np.ndarray) -> None:
        regions = addresses.astype(np.int64) // REGION
        for region in np.unique(regions):
            assert 1 <= region <= len(self._regions), "an address of no array"
            within = addresses[regions == region].astype(np.int64) - region * REGION
            assert within.max() < self._regions[region - 1].nbytes(), "an address behind an array"

    def load(self, addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, kind: Any) -> np.ndarray:
        mask, found = np.broadcast_to(mask, addresses.shape), np.array(np.broadcast_to(other, addresses.shape), kind)
        here = addresses[mask].astype(np.int64)
        if here.size:
            self.check(here)
            found[mask] = self._values(here, kind)
        return found

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        mask = np.broadcast_to(mask, addresses.shape)
        if mask.any():
            self.check(addresses[mask])

    def _values(self, addresses: np.ndarray, kind: Any) -> np.ndarray:
        if not np.issubdtype(kind, np.integer):
            return np.full(addresses.shape, 0.5, kind)
        name, index = self.names.get(int(addresses[0]) // REGION, ""), addresses % REGION // 8
        if name == "words":
            return self.words[index]
        if name == "slots_of_pair":
            return SLOTS - 1 - index % 2
        if name == "starts":
            return index * ATOMS // GROUPS
        if name == "place":
            return index * GROUPS // ATOMS
        return np.full(addresses.shape, INDICES.get(name, index % GROUPS if name == "index" else 1), kind)


def large(graph: Graph, memory: Memory) -> Graph:
    """Return a graph of shapes alone."""
    changes, sizes = {}, {graph.n_atoms: ATOMS, len(graph.pair_sender): PAIRS, len(graph.pair_of_slot): SLOTS}
    for name, value in vars(graph).items():
        if isinstance(value, Tensor) and value.ndim:
            shape = sizes.get(len(value), len(value)), *value.shape[1:]
            changes[name] = torch.empty(shape, dtype=value.dtype, device="meta")
            memory.name(changes[name], name)
    found = replace(graph, **changes)
    starts, index, place = (torch.empty(n, dtype=torch.int64, device="meta") for n in (GROUPS + 1, GROUPS, ATOMS))
    for tensor, name in ((starts, "starts"), (index, "index"), (place, "place")):
        memory.name(tensor, name)
    found.__dict__.update(
        elements_present=tuple(range(GROUPS)), heads_present=(0,), groups=ElementGroups(starts, index, place)
    )
    return found


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    found, builder = Memory(), interpreter.interpreter_builder
    operate, run_section, copy = type(builder).binary_op, DeviceWorkspace.run, DeviceWords.copied

    def exact(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = operate(self, lhs, rhs, op)
        if result.data.dtype == np.int32 and op in (np.add, np.subtract, np.multiply, np.left_shift):
            expected = op(lhs.data.astype(np.int64), rhs.data.astype(np.int64))
            assert np.array_equal(result.data, expected), "an integer of 32 bits overflows"
        return result

    def launch(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        executor = interpreter.GridExecutor(function.rewrite(), function.arg_names, grid)
        options = {name: value for name, value in options.items() if name in function.arg_names}
        named = dict(zip(function.arg_names, arguments, strict=False)) | options
        numbers = {name for name, value in named.items() if isinstance(value, int | float)} - {*executor.constexprs}
        assert numbers <= {*function.kwargs["do_not_specialize"]}, "compiled anew for 1 and for multiples of 16"
        scope = interpreter._patch_lang(executor.fn)
        try:
            named = {n: v if n in executor.constexprs else interpreter._implicit_cvt(v) for n, v in named.items()}
            sizes = (*grid, 1, 1)[:3]
            builder.set_grid_dim(*sizes)
            for place in {(0, 0, 0), tuple(n - 1 for n in sizes)}:
                builder.set_grid_idx(*place)
                executor.fn(**named)
        finally:
            scope.restore()

    def run(workspace: DeviceWorkspace, section: int) -> None:
        found.words = workspace.words
        run_section(workspace, section)

    def copied(words: DeviceWords, values: np.ndarray) -> Tensor:
        there = copy(words, values)
        found.name(there, "words")
        return there

    class Loads:
        def __getattr__(self, name: str) -> Any:
            return getattr(found, name, None) or getattr(real, name)

    real, pointer = interpreter._interpreter, Tensor.data_ptr
    monkeypatch.setattr(interpreter, "_interpreter", Loads())
    monkeypatch.setattr(Tensor, "data_ptr", lambda tensor: found.address(tensor) if tensor.is_meta else pointer(tensor))
    monkeypatch.setattr(type(builder), "binary_op", exact)
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", launch)
    monkeypatch.setattr(DeviceWorkspace, "run", run)
    monkeypatch.setattr(DeviceWords, "copied", copied)
    # short loops
    monkeypatch.setattr(matrices, "PARTS", MANY)
    monkeypatch.setattr(target, "CHUNKS_OF_ROWS", MANY)
    monkeypatch.setattr(contraction, "CHUNKS_OF_ROWS", MANY)
    monkeypatch.setattr(contraction, "_CHUNKS", triton.language.constexpr(MANY))
    monkeypatch.setattr(TritonBackend, "has_programs", lambda backend, device: True)
    yield found


@pytest.mark.slow
def test_addresses_of_programs(memory: Memory) -> None:
    settings: dict[str, Any] = {"n_channels": 256, "l_max": 2, "correlation": 2, "radial_mlp": (64,)}
    model = build(torch.float32, normalization="density", pair_repulsion=True, **settings)
    small = batch(model, (3,))
    model = model.use_backend(TRITON).to("meta")
    found = energies_and_gradient(model, large(small, memory), True, training=True)
    assert found.gradient is not None
    (found.energies.sum() + (found.gradient**2).sum()).backward()


@triton.jit(do_not_specialize=["width"])
def _clear(array, width, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    tl.store(array + row * width, 0.0)


def test_that_faults_are_seen(memory: Memory) -> None:
    large, small = torch.empty(1 << 20, 4096, device="meta"), torch.empty(1 << 20, 2048, device="meta")
    _clear[(1 << 20,)](large, 4096, True)
    with pytest.raises(AssertionError, match="overflows"):
        _clear[(1 << 20,)](large, 4096, False)
    with pytest.raises(AssertionError, match="behind an array"):
        _clear[(1 << 20,)](small, 4096, True)
