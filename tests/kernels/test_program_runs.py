"""Are programs right whatever happens between their runs, to weights, memory, threads and copies of a model?"""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from program_models import OF_HEADS, SMALL, batch, build, by_program, by_torch, check, derive, relative
from torch import Tensor

from mace.graphs.graph import Graph
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.model.compiled import runs
from mace.model.compiled.runs import PREPARE, energies_and_gradient
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.program import workspace
from mace.program.processor import ProcessorWorkspace
from mace.program.workspace import Memory

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine"),
    pytest.mark.usefixtures("poisoned_memory", "threads_given_back"),
]


def evaluated(model: MACE, graph: Graph) -> Tensor:
    """Return the energies in evaluation."""
    with torch.no_grad():
        return energies_and_gradient(model, graph, True, training=False).energies


def renew(model: MACE, change: Callable[[Tensor], Tensor], assign: bool) -> None:
    """Load changed weights."""
    model.load_state_dict({name: change(value) for name, value in model.state_dict().items()}, assign=assign)


def optimize(model: MACE) -> None:
    """Take a step of an optimizer."""
    energies = energies_and_gradient(model, batch(model), False, training=True).energies
    energies.sum().backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()


@torch.no_grad()
def scale_in_place(model: MACE) -> None:
    """Multiply all weights."""
    for parameter in model.parameters():
        parameter.mul_(1.1)


def scale_data(model: MACE) -> None:
    """Multiply all weights without torch counting it."""
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def exchange_data(model: MACE) -> None:
    """Give all parameters other memory."""
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data


def exchange_module(model: MACE) -> None:
    """Put a part of another model in the place of the model's own."""
    other = build(**SMALL)
    renew(other, lambda value: 0.9 * value, assign=False)
    model.products[0] = other.products[0]


CHANGES: dict[str, Callable[[MACE], None]] = {
    "optimizer": optimize,
    "in place": scale_in_place,
    "data in place": scale_data,
    "other data": exchange_data,
    "loaded": lambda model: renew(model, lambda value: 1.1 * value, assign=False),
    "assigned": lambda model: renew(model, lambda value: 1.1 * value, assign=True),
    "not contiguous": lambda model: renew(model, lambda value: value.mul(1.1).mT.contiguous().mT, assign=True),
    "parts of other memory": lambda model: renew(
        model, lambda value: torch.stack([1.1 * value, value], -1)[..., 0], True
    ),
    "other module": exchange_module,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(change: str, mode: Callable[[], Any]) -> None:
    model = build(**SMALL)
    graph = batch(model)
    before = evaluated(model, graph)
    with mode():
        energies_and_gradient(model, graph, True, training=False)
    CHANGES[change](model)
    expected = by_torch(model, graph)
    assert relative(before, expected.energies, "before") > 1e-3
    with mode():
        found = energies_and_gradient(model, graph, True, training=False)
        assert relative(found.energies, expected.energies, "energies") < 1e-12
        assert found.gradient is not None and expected.gradient is not None
        assert relative(found.gradient, expected.gradient, "gradient") < 1e-12
    assert by_program(model, graph).differ(expected) < 1e-12


def test_frozen_weights_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their change by `load_state_dict` is seen nevertheless."""
    model = build(**SMALL).requires_grad_(False)
    graphs = batch(model), batch(model, (3,), seed=2), batch(model, (60,), seed=1)
    runs: list[int] = []
    run = ProcessorWorkspace.run

    def counted(self: ProcessorWorkspace, section: int) -> None:
        runs.append(section)
        run(self, section)

    monkeypatch.setattr(ProcessorWorkspace, "run", counted)
    for graph in graphs[2:] + graphs:
        evaluated(model, graph)
    prepared = runs.count(PREPARE)
    assert 1 <= prepared < 4
    runs.clear()
    for graph in graphs[:1] * 3:
        evaluated(model, graph)
    assert runs.count(PREPARE) <= 1
    renew(model, lambda value: 1.1 * value, assign=False)
    plain = by_torch(model.requires_grad_(True), graphs[0]).energies
    assert relative(evaluated(model.requires_grad_(False), graphs[0]), plain, "energies") < 1e-12


def test_batches_alternately() -> None:
    """Memory that another batch, another head, or an evaluation has used is no hindrance."""
    model = build(**SMALL | OF_HEADS)
    graphs = [batch(model), batch(model, (1,)), batch(model, (40, 3), seed=2, heads=("one", "two")), batch(model, (7,))]
    expected = [by_torch(model, graph) for graph in graphs]
    for _ in range(2):
        for graph, one in zip(graphs, expected, strict=True):
            assert by_program(model, graph).differ(one) < 1e-12
            assert relative(evaluated(model, graph), one.energies, "energies") < 1e-12


def test_losses_of_several_batches_at_once() -> None:
    model = build(**SMALL)
    graphs = [batch(model), batch(model, (30,), seed=2)]
    expected = [by_torch(model, graph) for graph in graphs]
    found = [energies_and_gradient(model, graph, True, training=True) for graph in graphs]
    evaluated(model, graphs[1])
    for one, wanted in zip(found, expected, strict=True):
        assert derive(model, one.energies, one.gradient).differ(wanted) < 1e-12


def test_differentiating_again() -> None:
    model = build(**SMALL | {"normalization": "density", "pair_repulsion": True})
    graph = batch(model)
    energies, _, gradient = energies_and_gradient(model, graph, True, training=True)
    first = derive(model, energies, gradient, retain=True)
    by_energies = derive(model, energies, gradient, retain=True, only="energies")
    assert derive(model, energies, gradient, retain=True).equal(first)
    assert derive(model, energies, gradient).equal(first)
    assert first.differ(by_torch(model, graph)) < 1e-12
    assert by_energies.differ(by_torch(model, graph, only="energies")) < 1e-12
    with pytest.raises(RuntimeError, match="retain_graph"):
        derive(model, energies, gradient)
    energies, _, gradient = energies_and_gradient(model, graph, True, training=True)
    assert gradient is not None
    (of_embedding,) = torch.autograd.grad((gradient**2).sum(), model.embedding, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_embedding.sum().backward()


def test_weights_that_change_before_a_loss_is_differentiated() -> None:
    model = build(**SMALL)
    energies = energies_and_gradient(model, batch(model), True, training=True).energies
    scale_in_place(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        energies.sum().backward()


def memories(model: MACE) -> list[Memory]:
    """List the memory that no run uses."""
    return [memory for found in model.programs._memories.values() for memory in found]


def test_memory_comes_back() -> None:
    """After losses that are differentiated, dropped, lost in cycles, or fail."""
    model = build(**SMALL)
    graph = batch(model)
    for _ in range(5):
        energies_and_gradient(model, graph, True, training=True)
        by_program(model, graph)
        evaluated(model, graph)
    assert len(memories(model)) == 1
    size = model.programs.n_bytes
    several = [energies_and_gradient(model, graph, True, training=True) for _ in range(3)]
    assert not memories(model)
    del several
    assert len(memories(model)) == 3 and model.programs.n_bytes == 3 * size
    cycle: list[Any] = [energies_and_gradient(model, graph, True, training=True)]
    cycle.append(cycle)
    assert len(memories(model)) == 2
    del cycle
    gc.collect()
    assert len(memories(model)) == 3
    for _ in range(4):
        by_program(model, graph)
    assert len(memories(model)) == 3


def test_memory_is_freed_before_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a device would have to hold both at once; nor does what a run was given outlive it."""
    model = build(**SMALL)
    small, large = batch(model, (3,)), batch(model, (30,))
    by_program(model, small)
    evaluated(model, small)
    (memory,) = memories(model)
    before, alive = weakref.ref(memory._buffer), list[bool]()
    empty = torch.empty

    def watched(size: int, **options: Any) -> Tensor:
        alive.append(size > 0 and before() is not None)
        return empty(size, **options)

    del memory
    with monkeypatch.context() as patch:
        patch.setattr(workspace.torch, "empty", watched)
        by_program(model, large)
    assert before() is None and alive and not any(alive)


def test_work_on_several_streams_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel of one stream still reads may not be written by another."""
    model, streams = build(**SMALL), iter("abba")
    graph, seen = batch(model, (3,)), list[tuple[int, int]]()
    monkeypatch.setattr(runs, "_queue", lambda device: next(streams))
    run = ProcessorWorkspace.run

    def noting(self: ProcessorWorkspace, section: int) -> None:
        if section != PREPARE:
            seen.append((id(self), self.words.ctypes.data))
        run(self, section)

    monkeypatch.setattr(ProcessorWorkspace, "run", noting)
    for _ in "abba":
        evaluated(model, graph)
    assert seen[0] == seen[3] and seen[1] == seen[2] and seen[0] != seen[1]


def test_garbage_is_collected_while_a_program_is_made() -> None:
    """A run ends there, which must not wait for a lock that its own thread holds."""
    model = build(**SMALL)
    graph = batch(model)
    expected = by_torch(model, graph)
    before = gc.get_threshold()
    try:
        for gradient in (True, False):
            gc.disable()
            cycle: list[Any] = [energies_and_gradient(model, graph, True, training=True)]
            cycle.append(cycle)
            del cycle
            gc.enable()
            gc.set_threshold(1)
            assert relative(
                energies_and_gradient(model, graph, gradient, training=False).energies, expected.energies, "energies"
            ) < 1e-12  # fmt: skip
    finally:
        gc.enable()
        gc.set_threshold(*before)


def test_failures_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(**SMALL)
    graph = batch(model)
    expected = by_torch(model, graph)
    evaluated(model, graph)
    run, left = ProcessorWorkspace.run, [0]

    def failing(self: ProcessorWorkspace, section: int) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        run(self, section)

    for count in range(3):
        left[0] = count
        with monkeypatch.context() as patch:
            patch.setattr(ProcessorWorkspace, "run", failing)
            with pytest.raises(KeyboardInterrupt):
                by_program(model, graph)
        gc.collect()
        assert by_program(model, graph).differ(expected) < 1e-12
        assert relative(evaluated(model, graph), expected.energies, "energies") < 1e-12
    assert len(memories(model)) <= 2


def test_failures_before_the_first_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be prepared by a run that failed is not taken for prepared."""
    model = build(**SMALL).requires_grad_(False)
    graph = batch(model)

    def failing(self: ProcessorWorkspace, section: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProcessorWorkspace, "run", failing)
        with pytest.raises(KeyboardInterrupt):
            evaluated(model, graph)
    found = evaluated(model, graph)
    assert relative(found, by_torch(model.requires_grad_(True), graph).energies, "energies") < 1e-12


def test_copies(tmp_path: Path) -> None:
    model = build(**SMALL)
    graph = batch(model)
    first = by_program(model, graph)
    copy = deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    torch.save(model, tmp_path / "model.pt")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    scale_in_place(model)
    expected = by_torch(model, graph)
    for one in (copy, loaded, read):
        assert one.has_program and by_program(one, graph).equal(first)
    assert by_program(model, graph).differ(expected) < 1e-12


def test_precisions_one_after_the_other() -> None:
    model = build(**SMALL)
    graph = batch(model)
    first = by_program(model, graph)
    for dtype in (torch.float32, torch.float64):
        check(model.to_precision(dtype), graph)
    assert not by_program(model, graph).equal(first)
    check(model.to(torch.float32), graph)


def test_with_tables_and_without() -> None:
    model = build(**SMALL)
    graph = batch(model)
    before = evaluated(model, graph)
    tabulated = evaluated(model.use_radial_tables(256), graph)
    assert 0.0 < relative(tabulated, before, "energies") < 1e-6
    scale_in_place(model)
    assert torch.equal(evaluated(model.use_backend(C), graph), evaluated(model.use_radial_tables(None), graph))
    assert relative(evaluated(model, graph), by_torch(model, graph).energies, "energies") < 1e-12


@pytest.mark.parametrize("learned", ["embedding", "readouts", "products", "interactions.0", "interactions.1.radial"])
def test_some_parameters_alone(learned: str) -> None:
    """As in finetuning; what they do not need may be left out, but their own gradients are the same."""
    model = build(**SMALL | {"normalization": "density"})
    graph = batch(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learned))
    found, expected = by_program(model, graph), by_torch(model, graph)
    assert found.of_parameters and found.differ(expected) < 1e-12
    model.requires_grad_(True)
    assert by_program(model, graph).differ(by_torch(model, graph)) < 1e-12
    model.requires_grad_(False)
    energies, _, gradient = energies_and_gradient(model, graph, True, training=True)
    assert gradient is not None and not energies.requires_grad and not gradient.requires_grad
    assert relative(gradient, expected.gradient, "gradient") < 1e-12


def test_threads_at_once() -> None:
    """Several threads of Python train and evaluate the same model."""
    model = build(**SMALL | {"n_channels": 16})
    graphs = [batch(model, sizes, seed) for seed, sizes in enumerate([(15, 9, 1), (3,), (40,), (1, 1)])]
    expected = [by_torch(model, graph) for graph in graphs]

    def work(place: int) -> float:
        worst = 0.0
        for step in range(8):
            one = (place + step) % len(graphs)
            worst = max(worst, by_program(model, graphs[one]).differ(expected[one]))
            worst = max(worst, relative(evaluated(model, graphs[one]), expected[one].energies, "energies"))
        return worst

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(8))) < 1e-12
    assert len(memories(model)) <= 4


def test_number_of_threads() -> None:
    """The same number gives the same bits, another one almost, and a change between the passes does no harm."""
    model = build(**SMALL | {"n_channels": 40, "normalization": "density"})
    graph = batch(model)
    expected, alone = by_torch(model, graph), by_program(model, graph)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found = by_program(model, graph)
        # only the gradient by the vectors is summed in as many parts as there are threads
        assert replace(found, gradient=None).equal(replace(alone, gradient=None))
        assert by_program(model, graph).equal(found) and found.differ(expected) < 1e-12
        energies, _, gradient = energies_and_gradient(model, graph, True, training=True)
        torch.set_num_threads(5 - threads if threads < 5 else 1)
        assert derive(model, energies, gradient).equal(found)


def test_what_programs_leave_to_torch() -> None:
    """Positions that are learned, and losses of radial tables; each is right, or an error, and never in silence."""
    model = build(**SMALL)
    graph = batch(model)
    positions = graph.positions.clone().requires_grad_(True)
    moved = replace(graph, positions=positions)
    prediction = predict(model, moved, training=True)
    (found,) = torch.autograd.grad(prediction.energy.sum(), positions)
    forces = predict(model, graph).forces
    assert forces is not None
    assert relative(-found, forces, "forces") < 1e-12
    model.use_radial_tables(64)
    prediction = predict(model, graph, training=True)
    assert prediction.forces is not None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (prediction.forces**2).sum().backward()
    assert not model.to("meta").has_program and not build(**SMALL).half().has_program


def test_graphs_of_any_memory() -> None:
    """Indices of 32 bits, every second number of an array, torch's default device and precision are no matter."""
    model = build(**SMALL)
    graph = batch(model)
    expected = by_program(model, graph)
    tensors = {name: value for name, value in vars(graph).items() if isinstance(value, Tensor)}
    short = {name: value.int() for name, value in tensors.items() if value.dtype == torch.int64}
    spread = {name: torch.stack([value, value], -1)[..., 0] for name, value in tensors.items()}
    assert len(short) > 8 and not any(value.is_contiguous() for value in spread.values())
    for changed in (short, spread):
        assert by_program(model, replace(graph, **changed)).equal(expected)
    model = build(**SMALL)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            found = energies_and_gradient(model, graph, True, training=True)
    finally:
        torch.set_default_dtype(before)
    assert derive(model, found.energies, found.gradient).equal(expected)
