"""Does a process of several read only what it computes, and do their shares add up?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import original_files as files
import pytest
import torch
from torch import Tensor, nn

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.batch_plan import Step
from mace.graphs.dataset import Batch, Targets
from mace.graphs.feeding import Feeding
from mace.graphs.in_memory import InMemoryDataset
from mace.processes.team import Team
from mace.settings import parse_training_settings
from mace.structures.configuration import Configuration
from mace.training.batch_step import BatchStep
from mace.training.loss import make_loss
from mace.training.memory import EdgeLimit
from mace.training.state import TrainingState
from mace.training.step import loss_gradient

LOSS = make_loss("stress", {"energy": 1.0, "forces": 10.0, "stress": 3.0})


class Member(Team):
    """One of several processes, which are asked one after the other."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.gradients: list[Tensor] = []
        self.numbers = torch.zeros(0)

    def share(self, structures: np.ndarray, edges: np.ndarray) -> np.ndarray:
        return structures[np.argsort(-edges, kind="stable")[self.rank :: self.size]]

    def add_up(self, parameters: Sequence[nn.Parameter], numbers: Tensor, kind: str) -> Tensor:
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        self.numbers = numbers.clone()
        return numbers


class Read(InMemoryDataset):
    """Remembers which structures it was asked for."""

    read: list[int]

    def batch(self, structures: Sequence[int] | np.ndarray) -> Batch:
        self.read += np.asarray(structures).tolist()
        return super().batch(structures)

    def targets(self, structures: Sequence[int] | np.ndarray) -> Targets:
        self.read += np.asarray(structures).tolist()
        return super().targets(structures)


def structure(place: int) -> Configuration:
    rng = np.random.default_rng(place)
    n_atoms = 2 + place % 4
    return Configuration(
        atomic_numbers=np.resize([1, 6, 8], n_atoms),
        positions=rng.uniform(0.0, 4.0, (n_atoms, 3)),
        cell=6.0 * np.eye(3),
        pbc=(True, True, True),
        energy=-10.0 * n_atoms if place % 3 else None,
        forces=rng.normal(size=(n_atoms, 3)) if place % 4 else None,
        stress=0.01 * np.eye(3) if place % 2 else None,
    )


def taken(dataset: InMemoryDataset, structures: np.ndarray, team: Member, workers: int, edges: int | None) -> Member:
    """Take one step in a process."""
    model = files.model()
    settings = parse_training_settings(["--name=x", "--train_file=x.xyz"])
    step = BatchStep(
        TrainingState(model, settings, (LOSS, None)), dataset, EdgeLimit(edges, "training"), settings, team
    )
    with Feeding(workers).open(dataset, [Step(structures)], step.divide) as feed:
        for each in feed:
            step.take(each, LOSS, (False, False), feed.batch)
    return team


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("edges", [None, 20])
def test_a_process_reads_what_it_computes_and_shares_add_up(workers: int, edges: int | None) -> None:
    plan = files.model().plan
    dataset = Read([structure(place) for place in range(12)], ElementTable(plan.atomic_numbers), plan.r_max)
    dataset.read = []
    structures = np.array([11, 0, 3, 8, 6, 1, 5])
    model = files.model()
    loss = float(loss_gradient(model, dataset.batch(structures), LOSS))
    whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    members = list[Member]()
    for rank in range(2):
        dataset.read.clear()
        members.append(taken(dataset, structures, Member(rank, 2), workers, edges))
        own = members[-1].share(structures, dataset.edges_of(structures)).tolist()
        assert sorted(dataset.read) == sorted(own)
    assert sum(float(member.numbers[0]) for member in members) == pytest.approx(loss, rel=1e-12)
    for *parts, both in zip(*(member.gradients for member in members), whole, strict=True):
        torch.testing.assert_close(sum(parts), both, rtol=1e-9, atol=1e-10)


class Full(torch.optim.SGD):
    """Needs more memory than there is."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("where", ["optimizer", "sum"])
def test_memory_that_runs_out_beside_the_batch_is_explained(where: str) -> None:
    class Crowded(Member):
        def add_up(self, parameters: Sequence[nn.Parameter], numbers: Tensor, kind: str) -> Tensor:
            if where == "sum":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return numbers

    model, settings = files.model(), parse_training_settings(["--name=x", "--train_file=x.xyz"])
    dataset = InMemoryDataset([structure(1)], ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    state = TrainingState(model, settings, (LOSS, None))
    if where == "optimizer":
        state.optimizer = Full([{"params": list(model.parameters()), "lr": 0.1, "lr_factor": 1.0}])
    step = BatchStep(state, dataset, EdgeLimit(None, "training"), settings, Crowded(0, 2))
    with pytest.raises(
        UserError, match=f"Out of memory in the (step|sum) of the {'opt' if where[0] == 'o' else 'grad'}"
    ):
        step.take(Step(np.array([0])), LOSS, (False, False))


def test_memory_that_runs_out_before_gradients_are_added_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is computed again in halves, so nothing of it may have been added."""
    model = files.model(files.with_heads("low", "high"))
    table = ElementTable(model.plan.atomic_numbers)
    one = replace(structure(1), head="low")
    batch = InMemoryDataset([one], table, model.plan.r_max, heads=("low", "high")).batch([0])
    loss_gradient(model, batch, LOSS)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    calls = list[Tensor]()

    def full(parameter: Tensor) -> Tensor:
        calls.append(parameter)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "zeros_like", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        loss_gradient(model, batch, LOSS, add=True)
    monkeypatch.undo()
    assert calls
    assert all(torch.equal(a, b) for a, b in zip(before, (p.grad for p in model.parameters()), strict=False))
