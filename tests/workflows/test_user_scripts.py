"""Do whole scripts of the kinds that users have run: reaction paths, trajectories, learning loops, pools of workers?

Relaxation with the cell, phonons and a committee that moves atoms are in ``test_simulations.py``.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from mace.calculators import MACECalculator
from mace.cli import run_train

DATA = Path(__file__).resolve().parents[2] / "examples" / "silicon" / "silicon_train.xyz"
SMALL = (
    *("--num_channels=8", "--max_L=0", "--max_ell=2", "--correlation=2", "--r_max=4.0", "--num_radial_basis=6"),
    *("--radial_MLP=[16]", "--batch_size=4", "--lr=0.02", "--eval_interval=12", "--plot=False", "--no_report"),
)


@pytest.fixture(scope="module")
def model_pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pattern of two models of silicon that differ by seed and length of training."""
    folder = tmp_path_factory.mktemp("silicon")
    for seed, epochs in ((1, 12), (2, 4)):
        flags = [f"--name=si_{seed}", f"--seed={seed}", f"--train_file={DATA}", f"--work_dir={folder}"]
        run_train.run([*flags, *SMALL, f"--max_num_epochs={epochs}"])
    return str(folder / "si_*.model")


@pytest.fixture(scope="module")
def model(model_pattern: str) -> str:
    return model_pattern.replace("*", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def crystals(count: int) -> list[Atoms]:
    """Rattled cubic cells."""
    frames = [ase.build.bulk("Si", a=5.6, cubic=True) for _ in range(count)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    return frames


def test_a_vacancy_moves_along_a_reaction_path(model: str) -> None:
    perfect = ase.build.bulk("Si", a=5.6, cubic=True)
    start = perfect[1:]
    end = start.copy()
    end.positions[0] = perfect.positions[0]
    for atoms in (start, end):
        atoms.calc = MACECalculator(model)
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=20)
    images = [start, *(start.copy() for _ in range(3)), end]
    for image in images[1:-1]:
        image.calc = MACECalculator(model_paths=model, device="cpu", default_dtype="float64")
    path = NEB(images, climb=True, method="improvedtangent")
    path.interpolate(mic=True)
    before = path.get_forces()
    FIRE(path, logfile=None).run(fmax=0.05, steps=15)
    energies = np.array([image.get_potential_energy() for image in images])
    assert energies.argmax() in (1, 2, 3) and 0.05 < energies.max() - energies[0] < 20.0
    np.testing.assert_allclose(energies, energies[::-1], atol=0.05)  # the path is symmetric
    assert np.abs(path.get_forces()).max() < np.abs(before).max()

    shared = MACECalculator(model)
    again = NEB([image.copy() for image in images], climb=True, method="improvedtangent", allow_shared_calculator=True)
    for image in again.images:
        image.calc = shared
    np.testing.assert_allclose(again.get_forces(), path.get_forces(), atol=1e-9)


def test_dynamics_writes_a_trajectory_that_remembers_the_results(model: str, tmp_path: Path) -> None:
    (atoms,) = crystals(1)
    atoms.calc = MACECalculator(model)
    atoms.set_constraint(FixAtoms([0]))
    rng = np.random.default_rng(1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=600, friction=0.02, fixcm=False, rng=rng,
        trajectory=str(tmp_path / "md.traj"), logfile=str(tmp_path / "md.log"), loginterval=5,
    )  # fmt: skip
    dynamics.attach(lambda: write(tmp_path / "md.xyz", atoms, append=True), interval=5)
    dynamics.run(20)
    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == len(read(tmp_path / "md.xyz", ":")) == 5
    for frame, text in zip(frames, read(tmp_path / "md.xyz", ":"), strict=True):
        stored, fresh = frame.get_potential_energy(), frame.copy()
        fresh.calc = MACECalculator(model)
        assert fresh.get_potential_energy() == pytest.approx(stored, abs=1e-9)
        assert text.get_potential_energy() == pytest.approx(stored, abs=1e-6)  # eight decimals
        np.testing.assert_allclose(fresh.get_forces(apply_constraint=False), frame.get_forces(False), atol=1e-9)
        np.testing.assert_allclose(fresh.get_stress(), frame.get_stress(), atol=1e-9)
    np.testing.assert_array_equal(frames[0].positions[0], frames[-1].positions[0])


def test_a_learning_loop_picks_what_a_committee_disagrees_about(model_pattern: str, tmp_path: Path) -> None:
    committee = MACECalculator(model_paths=model_pattern, device="cpu")
    pool = []
    for seed, size in enumerate((0.01, 0.05, 0.2)):
        atoms = ase.build.bulk("Si", a=5.6, cubic=True)
        atoms.rattle(size, seed=seed)
        atoms.calc = committee
        atoms.get_potential_energy()
        results = committee.results
        spread = np.sqrt(np.var(results["forces_comm"], axis=0).sum(1)).max()
        assert results["energy_var"] == pytest.approx(np.var(results["energy_comm"]), rel=1e-9)
        np.testing.assert_allclose(np.var(results["forces_comm"], axis=0), results["forces_var"], atol=1e-12)
        pool.append((spread, atoms))
    assert sorted(pool, key=lambda each: each[0])[-1] is pool[2], "the most distorted"
    chosen = pool[2][1]
    assert chosen.calc is committee
    chosen.calc = None
    chosen.info["REF_energy"], chosen.arrays["REF_forces"] = -398.0, np.zeros((8, 3))
    write(tmp_path / "more.xyz", [*read(DATA, ":"), chosen])
    flags = [f"--train_file={tmp_path / 'more.xyz'}", f"--work_dir={tmp_path}", "--max_num_epochs=1", "--name=next"]
    run_train.run([*flags, *SMALL])
    assert (tmp_path / "next.model").exists()


def _energy_of(job: tuple[str, Atoms]) -> float:
    """Compute an energy in another process, with a calculator of its own."""
    model, atoms = job
    atoms = atoms.copy()
    atoms.calc = MACECalculator(model)
    energy: float = atoms.get_potential_energy()
    return energy


@pytest.mark.usefixtures("one_thread")
def test_pools_of_threads_and_processes_compute_the_same(model: str) -> None:
    jobs = [(model, atoms) for atoms in crystals(4)]
    expected = [results["energy"] for results in MACECalculator(model).evaluate([atoms for _, atoms in jobs])]
    with ThreadPoolExecutor(4) as threads:
        np.testing.assert_allclose(list(threads.map(_energy_of, jobs)), expected, atol=1e-9)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        np.testing.assert_allclose(processes.map(_energy_of, jobs), expected, atol=1e-9)


def test_calculators_are_copied_and_sent_to_other_processes(model: str) -> None:
    (atoms,) = crystals(1)
    atoms.calc = MACECalculator(model)
    energy = atoms.get_potential_energy()
    received = pickle.loads(pickle.dumps(atoms))
    assert received.calc.results["energy"] == energy
    for calculator in (received.calc, copy.deepcopy(atoms.calc)):
        atoms.calc = calculator
        calculator.reset()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)


def test_another_calculator_is_added(model: str) -> None:
    (atoms,) = crystals(1)
    extra = LennardJones(sigma=2.1, epsilon=1e-3, rc=6.0)
    parts = []
    for calculator in (MACECalculator(model), extra, SumCalculator([MACECalculator(model), extra])):
        copied = atoms.copy()
        copied.calc = calculator
        parts.append((copied.get_potential_energy(), copied.get_forces(), copied.get_stress()))
    for of_model, of_extra, of_both in zip(*parts, strict=True):
        np.testing.assert_allclose(np.add(of_model, of_extra), of_both, atol=1e-9)
    copied.set_cell([0.0, 0.0, 0.0])
    copied.pbc = False
    assert np.isfinite(copied.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        copied.get_stress()
