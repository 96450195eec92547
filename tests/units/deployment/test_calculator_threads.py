"""Does every thread get the results of its own structure from one calculator?"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ase.build
import numpy as np
import original_files as files
import pytest
from ase import Atoms

from mace.calculators import MACECalculator
from mace.model.mace import MACE

N_THREADS = 8


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Let Python change threads far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def structures() -> list[Atoms]:
    """A molecule for every thread, no two with the same energy, some of the same size."""
    made = [ase.build.molecule(name) for name in ("H2O", "CH4", "CO2", "CH3OH")] * 2
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
        atoms.set_cell([8.0, 8.5, 9.0])
    return made


def _in_threads(work: Callable[[int], list[Any]]) -> list[list[Any]]:
    """Do the same in all threads, which begin at the same time."""
    barrier = threading.Barrier(N_THREADS)

    def one(number: int) -> list[Any]:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(one, range(N_THREADS)))


def by_ase(calculator: MACECalculator, atoms: Atoms) -> Any:
    atoms.calc = calculator
    return np.append(atoms.get_forces(), [atoms.get_potential_energy(), *atoms.get_stress()])


def by_hand(calculator: MACECalculator, atoms: Atoms) -> Any:
    calculator.calculate(atoms, ["energy"])
    results = calculator.results
    return np.append(results["forces"], [results["energy"], *results["stress"]])


def by_evaluate(calculator: MACECalculator, atoms: Atoms) -> Any:
    (results,) = calculator.evaluate([atoms])
    return np.append(results["forces"], [results["energy"], *results["stress"]])


def by_last_calculation(calculator: MACECalculator, atoms: Atoms) -> Any:
    calculator.get_property("energy", atoms)
    forces, energy, stress = (calculator.get_property(name) for name in ("forces", "energy", "stress"))
    return np.append(forces, [energy, *stress])


WAYS = {way.__name__: way for way in (by_ase, by_hand, by_evaluate, by_last_calculation)}


def wrong_answers(calculator: MACECalculator, way: Callable[..., Any], times: int) -> int:
    """Count the answers that differ from those of a calculator of the thread's own."""
    expected = [WAYS["by_ase"](MACECalculator(models=calculator.models), atoms) for atoms in structures()]

    def work(number: int) -> list[Any]:
        wrong = []
        for turn in range(times):
            atoms = structures()[(number + turn) % N_THREADS]
            found = way(calculator, atoms)
            right = expected[(number + turn) % N_THREADS]
            wrong.append(found.shape != right.shape or not np.allclose(found, right, rtol=0, atol=1e-9))
        return wrong

    return sum(sum(of_thread) for of_thread in _in_threads(work))


@pytest.mark.parametrize("way", WAYS)
def test_every_thread_gets_its_own_results(way: str, model: MACE) -> None:
    assert wrong_answers(MACECalculator(models=model), WAYS[way], times=8) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_thread_gets_its_own_results_for_long(way: str, model: MACE) -> None:
    assert wrong_answers(MACECalculator(models=model), WAYS[way], times=500) == 0


def test_hessians_and_descriptors_beside_energies(model: MACE) -> None:
    """Other calls do not disturb a thread between its energy and its forces."""
    calculator, alone = MACECalculator(models=model), MACECalculator(models=model)
    calls = (calculator.get_hessian, calculator.get_descriptors, calculator.get_atomic_stresses)
    of_one = (alone.get_hessian, alone.get_descriptors, alone.get_atomic_stresses)

    def work(number: int) -> list[Any]:
        atoms = structures()[number]
        return [(by_ase(calculator, atoms), calls[(number + turn) % 3](atoms)) for turn in range(3)]

    for number, found in enumerate(_in_threads(work)):
        atoms = structures()[number]
        for turn, (values, other) in enumerate(found):
            np.testing.assert_allclose(values, by_ase(alone, atoms), rtol=0, atol=1e-9)
            np.testing.assert_allclose(other, of_one[(number + turn) % 3](atoms), rtol=0, atol=1e-9)


def test_a_change_of_the_head_counts_in_every_thread() -> None:
    calculator = MACECalculator(models=files.model(files.with_heads("low", "high")), head="low")
    atoms = ase.build.molecule("H2O")
    atoms.calc = calculator
    low = atoms.get_potential_energy()
    ready, changed = threading.Event(), threading.Event()

    def other() -> tuple[float, float]:
        own = atoms.copy()
        own.calc = calculator
        before = own.get_potential_energy()
        ready.set()
        assert changed.wait(60)
        return before, own.get_potential_energy()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(other)
        assert ready.wait(60)
        calculator.head = "high"
        changed.set()
        before, after = answer.result()
    assert before == low and after != low and atoms.get_potential_energy() == after


def test_a_thread_without_a_calculation_sees_the_last_one(model: MACE) -> None:
    calculator = MACECalculator(models=model)
    energies = [by_ase(calculator, atoms)[-7] for atoms in structures()[:2]]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: calculator.results["energy"]).result() == energies[-1]
        assert pool.submit(by_ase, calculator, structures()[0]).result()[-7] == pytest.approx(energies[0], abs=1e-9)
    assert calculator.results["energy"] == energies[-1] and len(calculator.atoms) == len(structures()[1])
