"""Are captured predictions those of the program, in simulations too, and in copies?"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from standing_in import Rerun

from mace.calculators.mace import MACECalculator
from mace.kernels.compiler import find_compiler
from mace.model import captured as captured_module
from mace.model.mace import MACE
from mace.potential import potential
from mace.potential.potential import open_potential
from tests.program_models import OF_HEADS, SMALL, build

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rerun]]:
    found: list[Rerun] = []

    def make(device: torch.device) -> Rerun:
        found.append(Rerun())
        return found[-1]

    monkeypatch.setattr(potential, "has_graphs", lambda device: True)
    monkeypatch.setattr(potential, "recorder_for", make)
    yield found


@pytest.fixture
def model() -> MACE:
    return build(torch.float64, **SMALL | {"atomic_numbers": (1, 6, 29)})


def crystal(step: int, repeat: int = 1) -> Atoms:
    rng = np.random.default_rng(4)
    atoms = bulk("Cu", cubic=True).repeat((repeat, 1, 1))
    atoms.positions += 0.02 * step * rng.normal(size=atoms.positions.shape)
    return atoms


def results(calculator: MACECalculator) -> list[np.ndarray]:
    found = []
    for step, repeat in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 1), (7, 1)]:
        atoms = crystal(step, repeat)
        atoms.calc = calculator
        found.append(np.concatenate([[atoms.get_potential_energy()], atoms.get_forces().ravel(), atoms.get_stress()]))
    return found


def test_a_simulation(model: MACE, stand_ins: list[Rerun], monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    refill = captured_module.refill

    def counted(there: object, value: object, before: object = None) -> None:
        copied.append(sum(a is not b for a, b in zip(tensors(value), tensors(before), strict=True)) if before else -1)
        refill(there, value, before)

    tensors = captured_module.refill.__globals__["_tensors"]
    monkeypatch.setattr(captured_module, "refill", counted)
    found = results(MACECalculator(models=model))
    assert stand_ins[0].repetitions > 3
    assert 1 in copied  # positions alone
    monkeypatch.setattr(potential, "has_graphs", lambda device: False)
    for one, other in zip(found, results(MACECalculator(models=model)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-10)


def test_many_structures_and_heads(stand_ins: list[Rerun], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(torch.float64, **SMALL | OF_HEADS | {"atomic_numbers": (1, 6, 29)})
    structures = [crystal(step, 1 + step % 2) for step in range(6)]
    calculator = MACECalculator(models=model, head="two")
    found = [calculator.evaluate(structures, batch_size=2) for _ in range(3)]
    assert stand_ins[0].repetitions
    monkeypatch.setattr(potential, "has_graphs", lambda device: False)
    expected = MACECalculator(models=model, head="two").evaluate(structures, batch_size=2)
    for one, other in zip(found[-1], expected, strict=True):
        np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-10)
        assert one["energy"] == pytest.approx(other["energy"], abs=1e-10)


def test_a_capture_that_is_wrong(
    model: MACE, stand_ins: list[Rerun], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(potential, "differs", lambda *arguments: "their forces deviate")
    found = results(MACECalculator(models=model))
    assert "CUDA graphs are not used for predictions on cpu, because their forces deviate" in caplog.text
    assert stand_ins[0].repetitions == 1 and len(found) == 8


def test_a_capture_that_fails(model: MACE, stand_ins: list[Rerun], caplog: pytest.LogCaptureFixture) -> None:
    calculator = MACECalculator(models=model)
    atoms = crystal(0)
    for step in range(3):
        if stand_ins:
            stand_ins[0].error = RuntimeError("not permitted when stream is capturing")
        atoms.positions[0] += 0.01 * step
        atoms.calc = calculator
        atoms.get_forces()
    assert "not permitted" in caplog.text


def test_copies_begin_without_captures(model: MACE, stand_ins: list[Rerun]) -> None:
    opened = open_potential(model)
    for copy in (deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        assert copy._captured is None and copy.outputs == opened.outputs
    results(calculator := MACECalculator(models=model))
    results(deepcopy(calculator))
