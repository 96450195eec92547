"""Do programs of compiled kernels give what torch and autograd give, whatever the model, the batch and the order?"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph, pair_vectors
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.model.compiled.runs import energies_and_gradient
from mace.model.mace import MACE
from mace.model.plan import Condition, HeadPlan, InteractionPlan, ModelPlan
from mace.program import record
from mace.structures.configuration import Configuration

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")

SMALL: dict[str, Any] = {"n_channels": 5, "l_max": 1, "correlation": 2, "radial_mlp": (6, 5)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
HEADS = tuple(
    HeadPlan(name=name, reference_energies=(0.0,) * 3, scale=scale, shift=shift)
    for name, scale, shift in (("one", 1.3, 0.2), ("two", 0.4, -0.1), ("three", 2.0, 0.0))
)
OF_HEADS = {"heads": HEADS, "reference_energies": (), "scale": 1.0, "shift": 0.0}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new memory with numbers that are none, so that it shows where kernels read what nobody wrote."""
    reserve = record.Memory.reserve

    def with_poison(self: record.Memory, n_bytes: int) -> Tensor:
        before = self.n_bytes
        buffer = reserve(self, n_bytes)
        if self.n_bytes > before:
            buffer.fill_(0xFF)
        return buffer

    monkeypatch.setattr(record.Memory, "reserve", with_poison)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def build(dtype: torch.dtype = torch.float64, layers: int = 2, residual: bool = False, **changes: Any) -> MACE:
    """Make a model of layers of which the first has a residual or not, with compiled kernels."""
    normalization = changes.pop("normalization", "count")
    settings: dict[str, Any] = {"atomic_numbers": (1, 6, 8), "hidden_l": (0, 1), "scale": 1.3, "shift": 0.2} | changes
    settings["correlation"] = (settings["correlation"],) * layers
    settings.setdefault("reference_energies", (0.0,) * len(settings["atomic_numbers"]))
    interactions = [InteractionPlan(residual=residual or n > 0, normalization=normalization) for n in range(layers)]
    plan = ModelPlan(
        model="ScaleShiftMACE", r_max=4.0, avg_num_neighbors=8.0, interactions=tuple(interactions), **settings
    )
    model = MACE(plan, dtype).initialize(torch.Generator().manual_seed(0)).use_backend(C)
    assert model.has_program
    return model


def structure(model: MACE, n_atoms: int, rng: np.random.Generator, head: str = "Default") -> Configuration:
    """Draw a structure of atoms that are not too close to each other."""
    grid = np.stack(np.meshgrid(*(np.arange(int(np.ceil(n_atoms ** (1 / 3)))),) * 3), axis=-1).reshape(-1, 3)
    positions = 1.6 * grid[rng.permutation(len(grid))[:n_atoms]] + rng.uniform(-0.3, 0.3, (n_atoms, 3))
    conditions = {
        each.name: rng.integers(0, 3, 1).astype(float) if each.per == "structure" else rng.normal(size=(n_atoms, 2))
        for each in model.plan.conditions
    }
    numbers = rng.choice(model.plan.atomic_numbers, n_atoms)
    return Configuration(numbers, positions, np.eye(3) * 20.0, (False,) * 3, head=head, conditions=conditions)


def batch(model: MACE, sizes: tuple[int, ...] = (15, 9, 1), seed: int = 0, heads: tuple[str, ...] = ()) -> Graph:
    """Draw a batch of structures."""
    rng, plan = np.random.default_rng(seed), model.plan
    names = heads or (plan.head_names[0],)
    structures = [structure(model, size, rng, names[n % len(names)]) for n, size in enumerate(sizes)]
    return graph_of_structures(structures, ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names)


def relative(found: Tensor | None, expected: Tensor | None, name: str) -> float:
    """Return the largest deviation relative to the largest number."""
    assert found is not None and expected is not None, f"{name}: only one of the two depends on it"
    assert found.shape == expected.shape and torch.isfinite(found).all(), name
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-300) if found.numel() else 0.0


@dataclass
class Derivatives:
    """Energies, gradient by the vectors, and derivatives of a random sum of both by the parameters."""

    energies: Tensor
    gradient: Tensor | None
    of_parameters: dict[str, Tensor | None]

    def differ(self, other: Derivatives) -> float:
        """Return the largest deviation of anything."""
        worst = relative(self.energies, other.energies, "energies")
        if other.gradient is not None:
            worst = max(worst, relative(self.gradient, other.gradient, "gradient"))
        for name, expected in other.of_parameters.items():
            found = self.of_parameters[name]
            if expected is None and (found is None or not found.any()):
                continue
            worst = max(worst, relative(found, expected, name))
        return worst

    def to(self, dtype: torch.dtype) -> Derivatives:
        """Round everything."""
        rounded = {name: None if value is None else value.to(dtype) for name, value in self.of_parameters.items()}
        return Derivatives(self.energies.to(dtype), None if self.gradient is None else self.gradient.to(dtype), rounded)

    def equal(self, other: Derivatives) -> bool:
        """Return whether all bits are the same."""
        mine = [self.energies, self.gradient, *self.of_parameters.values()]
        theirs = [other.energies, other.gradient, *other.of_parameters.values()]
        return all(a is None if b is None else torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def derive(model: MACE, energies: Tensor, gradient: Tensor | None, retain: bool = False, only: str = "") -> Derivatives:
    """Differentiate a random sum of energies, of gradients, or of both."""
    generator = torch.Generator().manual_seed(1)
    of_energies, of_vectors = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(model.dtype)
        for shape in (energies.shape, (1 if gradient is None else len(gradient), 3))
    )
    total = energies.new_zeros(())
    if only != "forces":
        total = total + (of_energies * energies).sum()
    if gradient is not None and only != "energies":
        total = total + (of_vectors[:-1] * gradient[:-1]).sum()
    free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(total, list(free.values()), allow_unused=True, retain_graph=retain)
    return Derivatives(
        energies.detach(), None if gradient is None else gradient.detach(), dict(zip(free, found, strict=True))
    )


def by_torch(model: MACE, graph: Graph, gradient: bool = True, only: str = "") -> Derivatives:
    """Let torch differentiate the plain model."""
    backend = model.backend
    vectors = pair_vectors(graph, model.plan.r_max, model.dtype).requires_grad_(True)
    energies = model.use_backend(TORCH)(graph, vectors).energies
    assert energies is not None
    (of_vectors,) = torch.autograd.grad(
        energies.sum(), vectors, create_graph=True, allow_unused=True, materialize_grads=True
    )
    model.use_backend(backend)
    return derive(model, energies, of_vectors if gradient else None, only=only)


def by_program(model: MACE, graph: Graph, gradient: bool = True, only: str = "") -> Derivatives:
    """Run the program."""
    energies, _, of_vectors = energies_and_gradient(model, graph, gradient, training=True)
    return derive(model, energies, of_vectors, only=only)


def check(model: MACE, graph: Graph) -> None:
    """Compare program and torch, with all derivatives and without, in training and in evaluation."""
    expected, tolerance = by_torch(model, graph), TOLERANCE[model.dtype]
    if model.dtype == torch.float32:
        plain, expected = expected, by_torch(deepcopy(model).to_precision(torch.float64), graph).to(model.dtype)
        tolerance = max(tolerance, 2.0 * plain.differ(expected))
    assert by_program(model, graph).differ(expected) < tolerance
    with torch.no_grad():
        for _ in range(2):  # the second time, with what the first has prepared
            energies, vectors, gradient = energies_and_gradient(model, graph, True, training=False)
            assert relative(energies, expected.energies, "energies") < tolerance
            assert relative(gradient, expected.gradient, "gradient") < tolerance
        assert relative(vectors, pair_vectors(graph, model.plan.r_max, model.dtype), "vectors") < tolerance
        energies, _, nothing = energies_and_gradient(model, graph, False, training=False)
        assert nothing is None and relative(energies, expected.energies, "energies") < tolerance


CONDITIONS = (
    Condition(name="spin", kind="categorical", per="structure", width=3, n_classes=3),
    Condition(name="field", kind="continuous", per="atom", width=4, n_values=2),
)
QUICK: dict[str, dict[str, Any]] = {
    "default": {},
    "float32": {"dtype": torch.float32},
    "whole vectors": {"n_channels": 16},
    "one layer": {"layers": 1},
    "residual first": {"residual": True},
    "scalars": {"hidden_l": (0,)},
    "many channels of messages": {"message_channels": (9, 17)},
    "degrees of messages": {"message_l": (1,)},
    "shared products": {"product_of_all_elements": True},
    "density": {"normalization": "density"},
    "repulsion": {"distance_transform": "Agnesi", "pair_repulsion": True},
    "no hidden layer": {"radial_mlp": ()},
    "last readout only": {"last_readout_only": True},
    "one element": {"atomic_numbers": (14,)},
    "one head of several": OF_HEADS,
    "conditions": {"conditions": CONDITIONS, "condition_readout": True},
}
THOROUGH: dict[str, dict[str, Any]] = {
    **{f"{n} channels": {"n_channels": n, "l_max": 2} for n in (1, 20, 64, 300)},
    **{f"degree {l}": {"l_max": l, "hidden_l": (0, 1, 2)[: l + 1]} for l in (0, 2, 3, 4)},
    **{f"correlation {n}": {"correlation": n, "l_max": 2} for n in (1, 3, 4)},
    "three layers": {"layers": 3, "hidden_l": (0, 1, 2), "l_max": 2},
    "three layers with density": {"layers": 3, "normalization": "density", "residual": True},
    "odd degrees": {"hidden_l": (0, 2), "l_max": 2, "message_l": (2,)},
    "one degree of three": {"hidden_l": (0, 1, 2), "l_max": 2, "message_l": (0, 2), "layers": 3},
    "few channels of messages": {"n_channels": 20, "message_channels": (1, 33)},
    "soft": {"distance_transform": "Soft", "pair_repulsion": True, "normalization": "density"},
    "gaussian": {"radial_type": "gaussian", "num_radial_basis": 13},
    "chebyshev": {"radial_type": "chebyshev", "num_radial_basis": 1},
    "wide network": {"radial_mlp": (1, 300, 17)},
    "wide readout": {"readout_channels": 300},
    "narrow readout": {"readout_channels": 1},
    "many elements": {"atomic_numbers": tuple(range(1, 90))},
    "many elements and channels": {"atomic_numbers": tuple(range(1, 90)), "n_channels": 40, "layers": 3},
    "heads and density": OF_HEADS | {"normalization": "density", "layers": 3, "pair_repulsion": True},
    "heads of the last": OF_HEADS | {"last_readout_only": True, "residual": True},
    "conditions, one layer": {"conditions": CONDITIONS, "layers": 1, "residual": True},
}


@pytest.mark.parametrize("name", QUICK)
def test_family(name: str) -> None:
    model = build(**SMALL | QUICK[name])
    check(model, batch(model))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", QUICK | THOROUGH)
def test_whole_family(name: str, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    model = build(**SMALL | (QUICK | THOROUGH)[name] | {"dtype": dtype})
    check(model, batch(model))
    check(model, batch(model, (150,), seed=3))


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2,), (1, 40)], ids=str)
@pytest.mark.parametrize("name", ["default", "density", "repulsion", "shared products"])
def test_batches_without_much(sizes: tuple[int, ...], name: str) -> None:
    model = build(**SMALL | QUICK[name])
    check(model, batch(model, sizes))


@pytest.mark.parametrize("heads", [("one", "two", "three"), ("three", "two"), ("two",)], ids=str)
def test_heads(heads: tuple[str, ...]) -> None:
    model = build(**SMALL | OF_HEADS)
    check(model, batch(model, (5, 4, 1, 3), heads=heads))


@pytest.mark.parametrize("only", ["energies", "forces"])
def test_part_of_a_loss(only: str) -> None:
    model = build(**SMALL)
    graph = batch(model)
    assert by_program(model, graph, only=only).differ(by_torch(model, graph, only=only)) < 1e-12


def test_energies_alone() -> None:
    model = build(**SMALL)
    graph = batch(model)
    assert by_program(model, graph, gradient=False).differ(by_torch(model, graph, gradient=False)) < 1e-12


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
    runs: list[tuple[int, int]] = []
    run = record.Workspace.run

    def counted(self: record.Workspace, first: int, last: int) -> None:
        runs.append((first, last))
        run(self, first, last)

    monkeypatch.setattr(record.Workspace, "run", counted)
    for graph in graphs[2:] + graphs:
        evaluated(model, graph)
    prepared = [first for first, _ in runs].count(0)
    assert 1 <= prepared < 4
    runs.clear()
    for graph in graphs[:1] * 3:
        evaluated(model, graph)
    assert [first for first, _ in runs].count(0) <= 1
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


def memories(model: MACE) -> list[record.Memory]:
    """List the memory that no run uses."""
    return model.programs._memories


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
    run, left = record.Workspace.run, [0]

    def failing(self: record.Workspace, first: int, last: int) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        run(self, first, last)

    for count in range(3):
        left[0] = count
        with monkeypatch.context() as patch:
            patch.setattr(record.Workspace, "run", failing)
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

    def failing(self: record.Workspace, first: int, last: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record.Workspace, "run", failing)
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
    """The same number gives the same bits, and a change between the passes does no harm."""
    model = build(**SMALL | {"n_channels": 40, "normalization": "density"})
    graph = batch(model)
    expected = by_torch(model, graph)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found = by_program(model, graph)
        assert by_program(model, graph).equal(found) and found.differ(expected) < 1e-12
        energies, _, gradient = energies_and_gradient(model, graph, True, training=True)
        torch.set_num_threads(5 - threads if threads < 5 else 1)
        assert derive(model, energies, gradient).equal(found)
