"""Do simulations of the usual kinds run in ASE: relaxation with the cell, phonons, a committee that moves atoms?"""

from __future__ import annotations

from pathlib import Path

import ase.build
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.test import gradient_test
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.langevin import Langevin
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.phonons import Phonons

from mace.calculators import MACECalculator
from mace.cli import run_train
from mace.model.model_file import load_model

DATA = Path(__file__).resolve().parents[2] / "examples" / "silicon" / "silicon_train.xyz"
SMALL = (
    "--num_channels=8",
    "--max_L=0",
    "--max_ell=2",
    "--correlation=2",
    "--r_max=4.0",
    "--num_radial_basis=6",
    "--radial_MLP=[16]",
    "--batch_size=4",
    "--lr=0.02",
    "--max_num_epochs=12",
    "--eval_interval=12",
    "--plot=False",
)
"""Flags of a model of silicon that is trained in a few seconds and knows the crystal about."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of silicon that differ by their seed."""
    folder = tmp_path_factory.mktemp("silicon")
    for seed, epochs in ((1, 12), (2, 4)):
        flags = [f"--name=silicon_{seed}", f"--seed={seed}", f"--train_file={DATA}", f"--work_dir={folder}"]
        run_train.run([*flags, *SMALL, f"--max_num_epochs={epochs}"])
    return [folder / f"silicon_{seed}.model" for seed in (1, 2)]


@pytest.fixture
def calculator(models: list[Path]) -> MACECalculator:
    """The better one of the two."""
    return MACECalculator(models[0])


def test_relaxation_with_the_cell(calculator: MACECalculator) -> None:
    atoms = ase.build.bulk("Si", a=5.5)
    atoms.rattle(0.03, seed=1)
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-4 and np.abs(atoms.get_forces()).max() < 1e-3
    assert atoms.get_potential_energy() < before
    assert atoms.cell.lengths() == pytest.approx(atoms.cell.lengths().mean(), abs=0.01)
    assert 5.3 < atoms.cell.lengths().mean() * np.sqrt(2.0) < 5.8  # the labels prefer 5.63 Angstrom


def test_phonons(calculator: MACECalculator, tmp_path: Path) -> None:
    crystal = ase.build.bulk("Si", a=5.6)
    phonons = Phonons(crystal, calculator, supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / "phonons"))
    phonons.run()
    phonons.read(acoustic=False, symmetrize=0)
    constants = phonons.get_force_constant()
    of_translation = constants.sum(0).reshape(2, 3, 2, 3).sum(2)
    assert np.abs(constants).max() > 1.0
    np.testing.assert_allclose(of_translation, 0.0, atol=1e-6)
    phonons.read(acoustic=True)
    at_gamma, at_x = 1e3 * phonons.band_structure(np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.5]]), verbose=False)
    np.testing.assert_allclose(at_gamma[:3], 0.0, atol=0.5)  # meV
    np.testing.assert_allclose(at_gamma[3:], at_gamma[3:].mean(), atol=0.1)
    assert 30.0 < at_gamma[3] < 90.0  # 64 meV in nature
    assert (at_x > 1.0).all(), "no frequency is imaginary"
    np.testing.assert_allclose(at_x[::2], at_x[1::2], atol=0.1)  # in pairs, by symmetry


def test_a_committee_moves_atoms(models: list[Path]) -> None:
    committee = MACECalculator(models)
    atoms = ase.build.bulk("Si", a=5.6, cubic=True)
    atoms.rattle(0.02, seed=3)
    atoms.calc = committee
    spreads = []
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=600, friction=0.02, fixcm=False, rng=np.random.default_rng(1)
    )
    dynamics.attach(lambda: spreads.append(np.sqrt(committee.results["forces_var"].sum(1)).max()), interval=5)
    dynamics.run(25)
    assert len(spreads) == 6 and min(spreads) > 0.0
    alone = []
    for member in (MACECalculator(path) for path in models):
        copy = atoms.copy()
        copy.calc = member
        alone.append(copy.get_forces())
    np.testing.assert_allclose(committee.results["forces"], np.mean(alone, axis=0), atol=1e-9)
    np.testing.assert_allclose(committee.results["forces_std"], np.std(alone, axis=0), atol=1e-9)


@pytest.mark.parametrize("kind", ["molecule", "bulk", "slab"])
def test_forces_pass_the_test_of_ase(calculator: MACECalculator, kind: str) -> None:
    structures = {
        "molecule": Atoms("Si3", positions=[[0.0, 0.0, 0.0], [2.2, 0.1, 0.0], [1.0, 1.9, 0.3]]),
        "bulk": ase.build.bulk("Si", a=5.6, cubic=True),
        "slab": ase.build.diamond100("Si", (1, 1, 4), a=5.6, vacuum=5.0),
    }
    atoms = structures[kind]
    atoms.rattle(0.05, seed=2)
    atoms.calc = calculator
    forces, differences = gradient_test(atoms, indices=[0, len(atoms) // 2])
    assert np.abs(forces).max() > 1e-2
    np.testing.assert_allclose(forces, differences, atol=1e-5)


def test_training_records_how_close_atoms_come(models: list[Path]) -> None:
    found = load_model(models[0]).metadata.shortest_distances
    closest = min(
        np.min(neighbor_list("d", atoms, 4.0), initial=np.inf) for atoms in read(DATA, ":") if atoms.pbc.all()
    )
    assert found.keys() == {"Si-Si"}
    # a tenth of the structures is for validation
    assert closest - 1e-5 < found["Si-Si"] < closest + 0.2
