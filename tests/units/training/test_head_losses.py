"""Is the loss of a batch of several heads the one of its structures, each alone, and does every loss obey weights?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import original_files as files
import pytest
import torch

from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.model.mace import MACE
from mace.model.prediction import predict
from mace.structures.configuration import Configuration
from mace.training.loss import Loss, make_loss
from mace.training.step import loss_gradient

HEADS = ("low", "high")
WORDS = ("weighted", "ef", "forces_only", "virials", "stress", "huber", "universal", "l1l2energyforces")
WEIGHTS = {"energy": 2.0, "forces": 50.0, "stress": 10.0, "virials": 10.0}


def structures(weights: tuple[float, float] = (1.0, 1.0)) -> list[Configuration]:
    """Five, of both heads by turns; one has no forces, another no stress."""
    rng = np.random.default_rng(5)
    made = []
    for place in range(5):
        stress = rng.normal(size=(3, 3)) * 0.1
        cell = np.eye(3) * (4.0 + place / 4)
        labeled = Configuration(
            np.array([8, 1, 1]), rng.uniform(0, 1.8, (3, 3)), cell, (True,) * 3, head=HEADS[place % 2],
            weight=weights[place % 2], energy=rng.normal(), forces=rng.normal(size=(3, 3)), stress=stress + stress.T,
            virials=-np.linalg.det(cell) * (stress + stress.T),
        )  # fmt: skip
        made.append(replace(labeled, forces=None) if place == 1 else labeled)
    made[2] = replace(made[2], stress=None, virials=None)
    return made


def dataset(model: MACE, members: list[Configuration]) -> InMemoryDataset:
    return InMemoryDataset(
        members, ElementTable(model.plan.atomic_numbers), model.plan.r_max, heads=model.plan.head_names
    )


def gradient(model: MACE, members: list[Configuration], loss: Loss) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of a batch."""
    for parameter in model.parameters():
        parameter.grad = None
    batch = dataset(model, members).batch(range(len(members)))
    value = float(loss(predict(model, batch.graph, stress=loss.needs_stress), batch.targets))
    loss_gradient(model, batch, loss)
    return value, {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("word", WORDS)
def test_a_batch_is_the_sum_of_its_structures(word: str) -> None:
    """Each computed in a graph of its own, where only one head is evaluated, and divided by the counts of all."""
    model, loss, members = files.model(files.with_heads(*HEADS)), make_loss(word, WEIGHTS, 0.3), structures((1.0, 2.5))
    value, found = gradient(model, members, loss)
    counts = loss.counts(dataset(model, members), np.arange(5))
    expected, summed = 0.0, {name: torch.zeros_like(each) for name, each in found.items()}
    for configuration in members:
        batch = dataset(model, [configuration]).batch([0])
        for parameter in model.parameters():
            parameter.grad = None
        prediction = predict(model, batch.graph, stress=loss.needs_stress)
        expected += float(loss(prediction, batch.targets, counts))
        # the loss alone divides by its own counts, term by term
        for term in loss.terms:
            own = Loss(loss.name, (term,))
            here, whole = (
                int(term.counts(batch.targets.labeled[term.name], batch.targets.atoms_per_structure).sum()),
                int(counts[term.name]),
            )
            if here:
                _, of_term = gradient(model, [configuration], own)
                for name, each in of_term.items():
                    summed[name] += each * (here / whole)
    assert value == pytest.approx(expected, rel=1e-12)
    for name, each in found.items():
        scale = float(each.abs().max())
        assert float((each - summed[name]).abs().max()) <= 1e-10 * max(scale, 1e-8), name


@pytest.mark.parametrize("word", WORDS)
def test_twice_the_weight_of_a_head_doubles_its_penalties(word: str) -> None:
    model, loss = files.model(files.with_heads(*HEADS)), make_loss(word, WEIGHTS, 0.3)
    values, gradients = zip(
        *(gradient(model, structures(each), loss) for each in ((1.0, 0.0), (0.0, 1.0), (1.0, 2.0))), strict=True
    )
    assert values[2] == pytest.approx(values[0] + 2.0 * values[1], rel=1e-12) and values[1] > 0.01 * values[0]
    for name, each in gradients[2].items():
        together = gradients[0][name] + 2.0 * gradients[1][name]
        assert torch.allclose(each, together, rtol=1e-10, atol=1e-10 * float(each.abs().max())), name
    own = {name: each for name, each in gradients[0].items() if ".heads.1." in name}
    assert own and not any(each.any() for each in own.values())  # no structure of it has a weight
