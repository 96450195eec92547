"""What the calculator offers beyond energy, forces and stress: atomic stresses, features, batches, warnings."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from ase import Atoms

from mace.calculators import MACECalculator
from mace.calculators.extrapolation import ExtrapolationError, ExtrapolationWarning
from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import build_graph
from mace.graphs.distances import distance_limits, shortest_distances
from mace.model.mace import MACE
from mace.model.model_file import ModelMetadata, save_model
from mace.structures.configuration import Configuration


@pytest.fixture
def calculator(model_path: Path) -> MACECalculator:
    """The calculator of the small model."""
    return MACECalculator(model_path)


def _assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def _alone(calculator: MACECalculator, atoms: Atoms) -> dict[str, Any]:
    calculator.calculate(atoms.copy(), ["energy"])
    return dict(calculator.results)


def test_stresses_of_atoms_sum_to_the_stress(calculator: MACECalculator, crystal: Atoms) -> None:
    crystal.calc = calculator
    stresses = crystal.get_stresses()
    assert stresses.shape == (4, 6) and np.abs(stresses).max() > 1e-5
    np.testing.assert_allclose(stresses.sum(0), crystal.get_stress(), atol=1e-12)
    full = calculator.get_atomic_stresses(crystal)
    np.testing.assert_allclose(full, full.transpose(0, 2, 1))
    np.testing.assert_allclose(full[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], stresses, atol=1e-12)
    np.testing.assert_allclose(calculator.results["virials"], -full * crystal.get_volume(), atol=1e-10)


def test_an_atom_out_of_reach_bears_no_stress(calculator: MACECalculator, water: Atoms) -> None:
    atoms = water + Atoms("C", positions=[[0.0, 0.0, 12.0]])
    atoms.cell = np.diag([30.0, 30.0, 30.0])
    stresses = calculator.get_atomic_stresses(atoms)
    assert np.abs(stresses[3]).max() == 0.0 and np.abs(stresses[:3]).max() > 1e-7
    with pytest.raises(UserError, match="no volume"):
        calculator.get_atomic_stresses(water)


def test_two_atoms_share_a_pair_equally(calculator: MACECalculator) -> None:
    pair = Atoms("CC", positions=[[0, 0, 0], [0.3, 0.5, 1.2]], cell=np.diag([20.0, 20.0, 20.0]))
    first, second = calculator.get_atomic_stresses(pair)
    np.testing.assert_allclose(first, second, atol=1e-14)
    pair.calc = calculator
    product = np.outer(pair.positions[1] - pair.positions[0], -pair.get_forces()[1]) / pair.get_volume()
    np.testing.assert_allclose(first, product / 2, atol=1e-12)


def test_atomic_stresses_can_be_had_every_time(model_path: Path, crystal: Atoms, water: Atoms) -> None:
    calculator = MACECalculator(model_path, compute_atomic_stresses=True)
    assert {"stresses", "virials"} <= _alone(calculator, crystal).keys()
    without_cell = _alone(calculator, water)
    assert "virials" in without_cell and "stresses" not in without_cell


def test_all_features_turn_with_the_molecule(calculator: MACECalculator, water: Atoms) -> None:
    features = calculator.get_descriptors(water, invariants_only=False)
    assert features.shape == (3, 4 * 4 + 4)  # degrees 0 and 1 of the first layer, degree 0 of the second
    invariant = np.r_[0:4, 16:20]
    np.testing.assert_array_equal(features[:, invariant], calculator.get_descriptors(water))
    turned = water.copy()
    turned.rotate(70.0, (1.0, -2.0, 0.5), center="COM")
    axes = Atoms("H3", positions=np.eye(3))
    axes.rotate(70.0, (1.0, -2.0, 0.5))
    rotation = axes.positions.T
    found = calculator.get_descriptors(turned, invariants_only=False)
    vectors = features[:, 4:16].reshape(3, 4, 3)
    np.testing.assert_allclose(found[:, 4:16].reshape(3, 4, 3), vectors @ rotation.T, atol=1e-9)
    assert np.abs(vectors).max() > 1e-3
    one_layer = calculator.get_descriptors(water, invariants_only=False, num_layers=1)
    np.testing.assert_array_equal(one_layer, features[:, :16])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_batch_gives_what_single_calculations_give(
    calculator: MACECalculator, crystal: Atoms, water: Atoms, batch_size: int
) -> None:
    methanol = ase.build.molecule("CH3OH", cell=np.diag([7.0, 8.0, 9.0]), pbc=(True, False, False))
    structures = [water, crystal, Atoms("H"), methanol, water]
    found = calculator.evaluate(structures, batch_size=batch_size)
    assert calculator.evaluate([]) == []
    for results, atoms in zip(found, structures, strict=True):
        _assert_same(results, _alone(calculator, atoms))
    assert "stresses" in calculator.evaluate([crystal], atomic_stresses=True)[0]


def test_a_batch_of_a_committee(tmp_path: Path, make_model: Callable[..., MACE], crystal: Atoms, water: Atoms) -> None:
    committee = MACECalculator(models=[make_model(seed, r_max=4.0 - 0.5 * seed) for seed in range(2)])
    for results, atoms in zip(committee.evaluate([crystal, water]), [crystal, water], strict=True):
        _assert_same(results, _alone(committee, atoms))
        assert results["forces_comm"].shape == (2, len(atoms), 3)


def test_a_batch_names_the_structure_at_fault(calculator: MACECalculator, water: Atoms) -> None:
    with pytest.raises(UserError, match="Structure 2 of the list: The structure contains Fe"):
        calculator.evaluate([water, water, Atoms("Fe")], batch_size=2)
    with pytest.raises(UserError, match="batch_size is 0"):
        calculator.evaluate([water], batch_size=0)


def test_random_walks_through_structures(model_path: Path, crystal: Atoms) -> None:
    """Cells, elements, numbers of atoms and pbc change in any order; a fresh calculator knows no past."""
    rng, calculator = np.random.default_rng(7), MACECalculator(model_path)
    for _ in range(40):
        match rng.integers(7):
            case 0:
                crystal.positions += rng.normal(scale=0.03, size=crystal.positions.shape)
            case 1:
                crystal.set_cell(crystal.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
            case 2:
                crystal.pbc = rng.random(3) < 0.5
            case 3:
                crystal.numbers[rng.integers(len(crystal))] = rng.choice([1, 6, 8])
            case 4 if len(crystal) < 7:
                crystal.append(Atoms("H", positions=[crystal.positions.mean(0) + rng.normal(size=3)])[0])
            case 5 if len(crystal) > 2:
                del crystal[int(rng.integers(len(crystal)))]
            case _:
                crystal = crystal[rng.permutation(len(crystal))]
        crystal.calc = calculator
        crystal.get_potential_energy()
        _assert_same(dict(calculator.results), _alone(MACECalculator(model_path), crystal))


def _energy(job: tuple[MACECalculator, Atoms]) -> float:
    calculator, atoms = job
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def test_other_processes_can_use_it(calculator: MACECalculator, water: Atoms) -> None:
    expected = _alone(calculator, water)["energy"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(_energy, [(calculator, water), (calculator, water)])
    assert found == [expected, expected]


def _with_distances(path: Path, model: MACE, distances: dict[str, float]) -> MACECalculator:
    return MACECalculator(save_model(path / "watched.model", model, ModelMetadata(shortest_distances=distances)))


def test_warns_once_of_atoms_closer_than_in_training(tmp_path: Path, model: MACE, water: Atoms) -> None:
    known = {"H-O": 0.9, "H-H": 1.4}
    calculator = _with_distances(tmp_path, model, known)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        _alone(calculator, water)
        _alone(MACECalculator(models=model), Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.5]]))
    water.positions[1] = water.positions[0] + [0.0, 0.0, 0.8]
    with pytest.warns(
        ExtrapolationWarning, match=r"distance H-O is 0.800 Angstrom, but the shortest .* is 0.900"
    ) as told:
        _alone(calculator, water)
    shown = warnings.formatwarning(told[0].message, told[0].category, told[0].filename, told[0].lineno)
    assert shown.startswith("mace:1: ExtrapolationWarning: A distance H-O") and shown.count("\n") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        _alone(calculator, water)
    carbon = _with_distances(tmp_path, model, known)
    with pytest.warns(ExtrapolationWarning, match="H-C is .* but the training data have none within the cutoff"):
        carbon.evaluate([ase.build.molecule("CH4")])


def test_one_model_of_a_committee_is_enough_to_warn(tmp_path: Path, make_model: Callable[..., MACE]) -> None:
    files = []
    for seed, distances in enumerate([{"H-O": 0.9}, {"H-O": 0.3}, {}]):
        metadata = ModelMetadata(shortest_distances=distances)
        files.append(save_model(tmp_path / f"{seed}.model", make_model(seed), metadata))
    close = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.6]])
    for paths in (files, files[::-1]):
        with pytest.warns(ExtrapolationWarning, match="A distance H-O is 0.600 Angstrom, .* is 0.900"):
            _alone(MACECalculator(paths), close)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        _alone(MACECalculator(files[1:]), close)


def test_shortest_distances_of_structures() -> None:
    elements = ElementTable((1, 6, 8))
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1], [0.0, 0.0, 2.0], [0.0, 2.5, 0.0]])
    numbers = np.array([6, 1, 8, 1])
    graph = build_graph(Configuration(numbers, positions, np.zeros((3, 3)), (False,) * 3), elements, 2.2)
    found = shortest_distances([graph], elements, 2.2)
    assert found == {"H-C": 1.1, "H-O": 0.9, "C-O": 2.0}
    limits = distance_limits(found, elements, 2.2).view(3, 3)
    assert limits.tolist() == [[2.2, 1.1, 0.9], [1.1, 2.2, 2.0], [0.9, 2.0, 2.2]]


def test_a_committee_that_disagrees(make_model: Callable[..., MACE], crystal: Atoms) -> None:
    models = [make_model(0), make_model(1)]
    spread = np.sqrt(_alone(MACECalculator(models=models), crystal)["forces_var"].sum(1)).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        _alone(MACECalculator(models=models, committee_threshold=1.01 * spread), crystal)
    calculator = MACECalculator(models=models, committee_threshold=0.99 * spread)
    with pytest.warns(ExtrapolationWarning, match="disagree about the force on atom"):
        _alone(calculator, crystal)
    strict = MACECalculator(models=models, committee_threshold=0.99 * spread, committee_action="error")
    for _ in range(2):
        with pytest.raises(ExtrapolationError, match="train them with structures like this one"):
            strict.calculate(crystal)
        assert not strict.results
