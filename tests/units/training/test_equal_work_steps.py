"""Does every structure count the same in batches filled by size, whatever it shares its batch with?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.batch_plan import BatchPlan, EqualNumbers, EqualWork, HeadSampling, one_head
from mace.graphs.batch_size import BatchSize
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.processes.team import Team
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import BatchStep
from mace.training.loop import expected_counts
from mace.training.loss import Loss, make_loss
from mace.training.memory import EdgeLimit
from mace.training.state import TrainingState
from mace.training.step import loss_gradient

HEADS = ("low", "high")
WEIGHTS = {"energy": 2.0, "forces": 50.0, "stress": 10.0, "virials": 10.0}
COUNT = 40

Gradient = dict[str, torch.Tensor]


def structures() -> list[Configuration]:
    """Molecules of two heads with labels missing here and there, and among them crystals of 24 atoms with a stress."""
    rng, made = np.random.default_rng(5), list[Configuration]()
    for place in range(COUNT):
        large = place % 8 == 3
        n_atoms = 24 if large else 2 + place % 3
        stress = rng.normal(size=(3, 3)) * 0.1
        cell = np.eye(3) * (6.0 if large else 9.0)
        labeled = Configuration(
            np.resize([8, 1, 1, 6], n_atoms), rng.uniform(0.0, 6.0 if large else 1.8, (n_atoms, 3)), cell, (large,) * 3,
            head=HEADS[place < COUNT // 2], weight=1.0 + place % 2, energy=rng.normal(),
            forces=rng.normal(size=(n_atoms, 3)), stress=stress + stress.T if large else None,
        )  # fmt: skip
        made.append(replace(labeled, forces=None) if place % 5 == 1 else labeled)
    return sorted(made, key=lambda structure: HEADS.index(structure.head))


class OneOfTwo(Team):
    """A process that is not told what the other one has found."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture
def model() -> MACE:
    return files.model(files.with_heads(*HEADS))


@pytest.fixture
def dataset(model: MACE) -> InMemoryDataset:
    elements = ElementTable(model.plan.atomic_numbers)
    return InMemoryDataset(structures(), elements, model.plan.r_max, heads=model.plan.head_names)


def gradients_of_epoch(
    model: MACE, dataset: InMemoryDataset, loss: Loss, plan: BatchPlan, team: Team, most: int | None = None
) -> tuple[list[float], Gradient]:
    """Take the steps of an epoch as in training, with a learning rate of zero; add up what moves the weights."""
    flags = ["--name=a", "--train_file=a.xyz", "--weight_decay=0", "--clip_grad=None"]
    settings = parse_training_settings(flags)
    state = TrainingState(model, settings, (loss, None))
    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    step = BatchStep(state, dataset, EdgeLimit(most, "training"), settings, team)
    counts = expected_counts(plan, 1, loss, dataset, model.embedding)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, total = list[float](), {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for taken in plan.steps(1):
        losses.append(float(step.take(taken, loss, (False, False), counts=counts).loss))
        for name, parameter in model.named_parameters():
            total[name] += 0.0 if parameter.grad is None else parameter.grad
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    return losses, total


def gradient_of_all(model: MACE, dataset: InMemoryDataset, loss: Loss, chosen: np.ndarray) -> tuple[float, Gradient]:
    """Loss and gradient of some structures at once."""
    value = float(loss_gradient(model, dataset.batch(chosen), loss))
    return value, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same(found: Gradient, expected: Gradient, factor: float) -> None:
    for name, gradient in expected.items():
        scale = float(gradient.abs().max()) * factor
        torch.testing.assert_close(found[name], gradient * factor, rtol=1e-12, atol=1e-12 * scale)


def equal_work(dataset: InMemoryDataset, capacity: int, sampling: HeadSampling, processes: int = 1) -> EqualWork:
    sizes = BatchSize(capacity, "edges").sizes(dataset, np.arange(len(dataset)))
    return EqualWork(sampling, 3, sizes, capacity, processes)


def all_of(dataset: InMemoryDataset, draws: tuple[int, int] = (COUNT // 2, COUNT // 2)) -> HeadSampling:
    return HeadSampling(dict.fromkeys(HEADS, COUNT // 2), dict(zip(HEADS, draws, strict=True)))


@pytest.mark.parametrize("word", ["weighted", "stress", "universal", "l1l2energyforces"])
@pytest.mark.parametrize("draws", [(20, 20), (5, 35)])
def test_the_steps_of_an_epoch_add_up_to_the_loss_of_all_structures(
    model: MACE, dataset: InMemoryDataset, word: str, draws: tuple[int, int]
) -> None:
    loss = make_loss(word, WEIGHTS, 0.3)
    plan = equal_work(dataset, 1500, all_of(dataset, draws))
    batches = [step.structures for step in plan.steps(1)]
    labels = loss.counts_of_each(dataset, np.arange(COUNT))
    assert len(batches) > 2 and all(labels[name][batch].any() for name in labels for batch in batches)
    assert len({len(batch) for batch in batches}) > 1, "batches are to differ in what is averaged"
    value, expected = gradient_of_all(model, dataset, loss, np.concatenate(batches))
    losses, found = gradients_of_epoch(model, dataset, loss, plan, Team())
    assert np.mean(losses) == pytest.approx(value, rel=1e-12)
    assert_same(found, expected, len(batches))
    # divided into parts that fit into memory, the same
    assert_same(gradients_of_epoch(model, dataset, loss, plan, Team(), most=900)[1], expected, len(batches))


def test_each_batch_divided_by_its_own_counts_would_not(model: MACE, dataset: InMemoryDataset) -> None:
    """Of the tests here: they notice."""
    loss, plan = make_loss("weighted", WEIGHTS), equal_work(dataset, 1500, all_of(dataset))
    batches = [step.structures for step in plan.steps(1)]
    value, _ = gradient_of_all(model, dataset, loss, np.arange(COUNT))
    own = [gradient_of_all(model, dataset, loss, batch)[0] for batch in batches]
    assert abs(np.mean(own) / value - 1.0) > 1e-4


def test_two_processes_add_up_to_one(model: MACE, dataset: InMemoryDataset) -> None:
    loss, plan = make_loss("stress", WEIGHTS), equal_work(dataset, 1800, all_of(dataset), processes=2)
    steps = list(plan.steps(1))
    assert all(step.batches is not None and all(map(len, step.batches)) for step in steps)
    value, expected = gradient_of_all(model, dataset, loss, np.arange(COUNT))
    parts = [gradients_of_epoch(model, dataset, loss, plan, OneOfTwo(rank)) for rank in range(2)]
    summed = {name: parts[0][1][name] + parts[1][1][name] for name in expected}
    assert sum(sum(losses) for losses, _ in parts) / len(steps) == pytest.approx(value, rel=1e-12)
    assert_same(summed, expected, len(steps))


def test_no_process_looks_at_the_labels_of_another(
    model: MACE, dataset: InMemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, asked = equal_work(dataset, 1800, all_of(dataset), processes=2), set[int]()
    for of, name in ((type(dataset.structures), "flat"), (InMemoryDataset, "neighbors")):
        gather = getattr(of, name)

        def noted(self: object, structures: np.ndarray, gather: Any = gather) -> Any:
            asked.update(structures.tolist())
            return gather(self, structures)

        monkeypatch.setattr(of, name, noted)
    gradients_of_epoch(model, dataset, make_loss("weighted", WEIGHTS), plan, OneOfTwo(1))
    assert asked == {int(i) for step in plan.steps(1) for i in (step.batches or ())[1]} and len(asked) < COUNT


def test_a_rare_label_counts_in_the_steps_that_have_it(model: MACE, dataset: InMemoryDataset) -> None:
    """As in batches of equal numbers: there it is divided by the labels of the step, of which few steps have any."""
    loss, plan = make_loss("stress", WEIGHTS), equal_work(dataset, 700, all_of(dataset))
    steps = [step.structures for step in plan.steps(1)]
    labels = loss.counts_of_each(dataset, np.arange(COUNT))
    having = {name: sum(bool(counts[step].any()) for step in steps) for name, counts in labels.items()}
    assert having["stress"] < len(steps)
    _, found = gradients_of_epoch(model, dataset, loss, plan, Team())
    expected = {name: torch.zeros_like(each) for name, each in found.items()}
    for term in loss.terms:
        of_term = gradient_of_all(model, dataset, Loss(loss.name, (term,)), np.arange(COUNT))[1]
        for name, gradient in of_term.items():
            expected[name] += having[term.name] * gradient
    assert_same(found, expected, 1.0)


def test_batches_of_equal_structures_are_those_of_equal_numbers(model: MACE, dataset: InMemoryDataset) -> None:
    """Where nothing differs, dividing by expected counts is dividing by those of the batch."""
    alike = InMemoryDataset([dataset[3]] * 12, ElementTable(model.plan.atomic_numbers), model.plan.r_max, heads=HEADS)
    n_edges, loss = int(alike.edges_of([0])[0]), make_loss("weighted", WEIGHTS)
    by_number = gradients_of_epoch(model, alike, loss, EqualNumbers(one_head(12), 3, 4), Team())
    by_size = gradients_of_epoch(model, alike, loss, equal_work(alike, 4 * n_edges, one_head(12)), Team())
    assert by_size[0] == pytest.approx(by_number[0], rel=1e-12)
    assert_same(by_size[1], by_number[1], 1.0)
