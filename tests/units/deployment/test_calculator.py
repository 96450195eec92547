"""Does the calculator give the model's energies with their derivatives, for whatever structure comes next?"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import ase.build
import ase.calculators.fd as finite_differences
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, compare_atoms

from mace.calculators import MACECalculator
from mace.calculators.structures import what_changed
from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import build_graph
from mace.kernels.backend import TORCH
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.prediction import predict
from mace.structures.configuration import Configuration


@pytest.fixture
def calculator(model_path: Path) -> MACECalculator:
    """The calculator of the small model."""
    return MACECalculator(model_paths=model_path)


def _results(calculator: MACECalculator, atoms: Atoms) -> dict[str, Any]:
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_potential_energy()
    return dict(calculator.results)


def _assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_results_are_those_of_the_model(calculator: MACECalculator, model: MACE, crystal: Atoms) -> None:
    configuration = Configuration(crystal.numbers, crystal.positions, crystal.cell.array, (True, True, True))
    graph = build_graph(configuration, ElementTable(model.plan.atomic_numbers), model.plan.r_max)
    prediction = predict(model, graph, stress=True)
    results = _results(calculator, crystal)
    assert results["energy"] == results["free_energy"] == pytest.approx(prediction.energy.item(), abs=1e-10)
    np.testing.assert_allclose(results["forces"], prediction.forces.numpy(), atol=1e-12)
    xx, yy, zz, yz, xz, xy = results["stress"]
    full = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    np.testing.assert_allclose(full, prediction.stress[0].numpy(), atol=1e-12)


def test_energies_of_atoms_add_up_with_and_without_references(calculator: MACECalculator, crystal: Atoms) -> None:
    results = _results(calculator, crystal)
    assert results["energies"].sum() == pytest.approx(results["energy"], abs=1e-9)
    references = np.array([{1: -13.6, 6: -1030.0, 8: -2040.0}[number] for number in crystal.numbers])
    np.testing.assert_allclose(results["energies"] - results["node_energy"], references, atol=1e-9)


@pytest.mark.parametrize("kind", ["crystal", "slab", "molecule in a box"])
def test_forces_and_stress_are_derivatives_of_the_energy(
    calculator: MACECalculator, crystal: Atoms, water: Atoms, kind: str
) -> None:
    atoms = crystal
    if kind == "slab":
        atoms.pbc = (True, True, False)
        atoms.cell[2] = (0.3, 0.1, 14.0)
    elif kind == "molecule in a box":
        atoms = water
        atoms.cell = [[6.0, 0.0, 0.3], [0.0, 7.0, 0.0], [0.1, 0.0, 8.0]]
    atoms.calc = calculator
    forces = finite_differences.calculate_numerical_forces(atoms, eps=1e-5)
    stress = finite_differences.calculate_numerical_stress(atoms, eps=1e-6)
    assert np.abs(forces).max() > 1e-2 and np.abs(stress).max() > 1e-5
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-6)


@pytest.mark.parametrize("cell", [None, (5.0, 5.0, 0.0), [[5, 0, 0], [0, 5, 0], [5, 5, 0]]])
def test_no_stress_without_volume(calculator: MACECalculator, water: Atoms, cell: Any) -> None:
    water.cell = cell
    water.calc = calculator
    water.get_forces()
    assert "stress" not in calculator.results
    with pytest.raises(PropertyNotImplementedError, match="no volume"):
        water.get_stress()
    assert np.isfinite(water.get_forces()).all()


def test_one_call_gives_all_results(calculator: MACECalculator, crystal: Atoms) -> None:
    crystal.calc = calculator
    crystal.get_potential_energy()
    assert set(calculator.implemented_properties) - set(calculator.results) == {"stresses", "virials"}
    crystal.get_stresses()
    assert set(calculator.implemented_properties) <= set(calculator.results)
    assert "dipole" not in calculator.implemented_properties


def test_follows_every_change_of_the_structure(calculator: MACECalculator, model_path: Path, crystal: Atoms) -> None:
    crystal.calc = calculator
    seen = [crystal.get_potential_energy()]
    changes: list[Callable[[], None]] = [
        lambda: crystal.positions.__setitem__((0, 0), crystal.positions[0, 0] + 0.2),
        lambda: crystal.set_cell(crystal.cell * 1.05, scale_atoms=False),
        lambda: crystal.set_pbc((True, False, True)),
        lambda: crystal.numbers.__setitem__(2, 8),
        lambda: crystal.append("H"),
        lambda: crystal.set_pbc(False),
    ]
    for change in changes:
        change()
        fresh = _results(MACECalculator(model_paths=model_path), crystal)
        energy = crystal.get_potential_energy()
        assert energy not in seen
        seen.append(energy)
        _assert_same(dict(calculator.results), fresh)


def test_a_failed_calculation_leaves_no_old_results(calculator: MACECalculator, water: Atoms) -> None:
    water.calc = calculator
    water.get_forces()
    water.numbers[0] = 26
    with pytest.raises(UserError, match="contains Fe.*it knows H, C, O"):
        water.get_forces()
    assert not calculator.results


def test_precision(tmp_path: Path, make_model: Callable[..., MACE], crystal: Atoms) -> None:
    double = save_model(tmp_path / "double.model", make_model())
    single = save_model(tmp_path / "single.model", make_model(dtype=torch.float32))
    exact = _results(MACECalculator(double), crystal)
    assert MACECalculator(double).default_dtype == "float64"
    assert MACECalculator(single).default_dtype == "float32"
    for calculator in (MACECalculator(single), MACECalculator(double, default_dtype="float32")):
        results = _results(calculator, crystal)
        assert results["forces"].dtype == np.float32
        difference = np.abs(results["forces"] - exact["forces"]).max()
        assert 0.0 < difference < 1e-3
        assert results["energy"] == pytest.approx(exact["energy"], abs=1e-3)


def test_committee(tmp_path: Path, make_model: Callable[..., MACE], crystal: Atoms) -> None:
    for seed in range(3):
        save_model(tmp_path / f"member_{seed}.model", make_model(seed, r_max=4.0 - 0.1 * (seed == 2)))
    files = sorted(tmp_path.glob("member_*.model"))
    single = [_results(MACECalculator(file), crystal) for file in files]
    calculators = {
        "list": MACECalculator([str(file) for file in files]),
        "pattern": MACECalculator(str(tmp_path / "member_*.model")),
        "both": MACECalculator([files[0], str(tmp_path / "member_[12].model")]),
    }
    for calculator in calculators.values():
        assert calculator.num_models == 3
        results = _results(calculator, crystal)
        for name in ("energy", "free_energy", "energies", "node_energy", "forces", "stress"):
            np.testing.assert_allclose(results[name], np.mean([r[name] for r in single], axis=0), atol=1e-9)
        energies, forces = np.array([r["energy"] for r in single]), np.array([r["forces"] for r in single])
        np.testing.assert_allclose(results["energy_comm"], energies, atol=1e-9)
        assert results["energy_var"] == pytest.approx(energies.var())
        assert results["energy_std"] == pytest.approx(energies.std())
        of_atoms = np.array([r["energies"] for r in single])
        np.testing.assert_allclose(results["energies_comm"], of_atoms, atol=1e-9)
        np.testing.assert_allclose(results["forces_std"], forces.std(0), atol=1e-9)
        np.testing.assert_allclose(results["forces_comm"], forces, atol=1e-10)
        np.testing.assert_allclose(results["forces_var"], forces.var(0), atol=1e-9)
        assert results["stress_comm"].shape == (3, 3, 3) and results["stress_var"].shape == (3, 3)
        assert {"energy_var", "forces_comm"} <= set(calculator.implemented_properties)
    assert "energy_var" not in MACECalculator.implemented_properties


def test_a_name_with_brackets_is_taken_literally(tmp_path: Path, model: MACE) -> None:
    path = save_model(tmp_path / "run[1].model", model)
    assert MACECalculator(str(path)).num_models == 1


def test_models_in_memory_are_copied(model: MACE, crystal: Atoms) -> None:
    calculator = MACECalculator(models=model)
    before = _results(calculator, crystal)
    with torch.no_grad():
        model.embedding.mul_(2.0)
    crystal.positions += 1e-14
    _assert_same(_results(calculator, crystal), before, 1e-8)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in calculator.models[0].parameters())


@pytest.mark.parametrize("carry", [deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
def test_copies_and_pickles(
    calculator: MACECalculator, crystal: Atoms, carry: Callable[[MACECalculator], MACECalculator]
) -> None:
    expected = _results(calculator, crystal)
    other = carry(calculator)
    crystal.rattle(0.1)
    _results(calculator, crystal)
    crystal_again = calculator.atoms.copy()
    _assert_same(_results(other, crystal_again), dict(calculator.results))
    assert other.results["energy"] != expected["energy"]


def test_units_of_the_model(model_path: Path, calculator: MACECalculator, crystal: Atoms) -> None:
    energy_unit, length_unit = 27.2, 0.5
    scaled = crystal.copy()
    scaled.set_cell(crystal.cell * length_unit, scale_atoms=True)
    found = _results(MACECalculator(model_path, energy_units_to_eV=energy_unit, length_units_to_A=length_unit), scaled)
    plain = _results(calculator, crystal)
    assert found["energy"] == pytest.approx(plain["energy"] * energy_unit)
    np.testing.assert_allclose(found["node_energy"], plain["node_energy"] * energy_unit, atol=1e-7)
    np.testing.assert_allclose(found["forces"], plain["forces"] * energy_unit / length_unit, atol=1e-7)
    np.testing.assert_allclose(found["stress"], plain["stress"] * energy_unit / length_unit**3, atol=1e-7)


def test_descriptors_do_not_turn_with_the_molecule(calculator: MACECalculator, water: Atoms) -> None:
    descriptors = calculator.get_descriptors(water)
    assert descriptors.shape == (3, 8)
    turned = water.copy()
    turned.rotate(50.0, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(calculator.get_descriptors(turned), descriptors, atol=1e-10)
    np.testing.assert_array_equal(calculator.get_descriptors(water, num_layers=1), descriptors[:, :4])
    assert np.abs(descriptors[0] - descriptors[1]).max() > 1e-3


def test_ase_dynamics_conserves_energy(calculator: MACECalculator, water: Atoms) -> None:
    from ase import units
    from ase.md.verlet import VelocityVerlet

    water.calc = calculator
    start = water.get_total_energy()
    spread = []
    dynamics = VelocityVerlet(water, timestep=0.05 * units.fs)
    dynamics.attach(lambda: spread.append((water.get_total_energy() - start, water.get_kinetic_energy())))
    dynamics.run(30)
    drift, kinetic = np.array(spread).T
    assert kinetic.max() > 1e-4
    assert np.abs(drift).max() < 0.02 * kinetic.max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": "DipoleMACE"}, "model_type='DipoleMACE' contradicts the model.*ScaleShiftMACE"),
        ({"model_type": "PolarMACE"}, "model_type='PolarMACE' cannot be used"),
        ({"charges_key": "q"}, "charges_key='q'"),
        ({"info_keys": {"total_spin": "spin"}}, "info_keys names 'total_spin', which is no such condition.*none"),
        ({"arrays_keys": {"site": "site"}}, "arrays_keys names 'site', which is no such condition.*none"),
        ({"head": "pt_head"}, "no head 'pt_head'"),
        ({"committee_threshold": 0.1}, "committee_threshold needs several models"),
        ({"committee_action": "stop"}, "committee_action is 'stop'; choose warn or error"),
        ({"default_dtype": "float16"}, "default_dtype is 'float16'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "banana"}, "There is no device 'banana'"),
        ({"device": "meta"}, "'meta' is not supported"),
        ({"energy_units_to_eV": 0.0}, "energy_units_to_eV is 0.0"),
        ({"length_units_to_A": float("nan")}, "length_units_to_A is nan"),
        ({"model_path": "x.model"}, "only one of them"),
        ({"models": []}, "not both"),
    ],
)
def test_refuses_what_it_cannot_do(model_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MACECalculator(model_paths=model_path, **arguments)


def test_accepts_the_defaults_of_the_original(model_path: Path, crystal: Atoms, calculator: MACECalculator) -> None:
    other = MACECalculator(
        model_path=str(model_path),
        head="Default",
        info_keys=None,
        arrays_keys=None,
        compile_mode=None,
        fullgraph=True,
        enable_cueq=False,
        enable_oeq=False,
        pad_num_atoms=0,
        pad_num_edges=0,
        warmup=False,
        label="run",
    )
    _assert_same(_results(other, crystal), _results(calculator, crystal))


def test_a_misspelled_argument_is_named(model_path: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'defualt_dtype'; did you mean 'default_dtype'"):
        MACECalculator(model_path, defualt_dtype="float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either model_paths or models"),
        ({"models": []}, "list of models is empty"),
        ({"model_paths": []}, "list of model_paths is empty"),
        ({"model_paths": "nowhere_*.model"}, "no model file matches"),
        ({"model_paths": "nowhere.model"}, "no such model file"),
        ({"models": torch.nn.Linear(1, 1)}, "not torch.nn.modules.linear.Linear"),
        ({"models": [torch.nn.Linear(1, 1)]}, "not torch.nn.modules.linear.Linear"),
    ],
)
def test_needs_models(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MACECalculator(**arguments)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda atoms: atoms.positions.__setitem__((0, 0), np.nan), "NaN or infinite"),
        (lambda atoms: atoms.cell.__setitem__((2, 2), np.inf), "NaN or infinite"),
        (lambda atoms: atoms.cell.__setitem__(2, atoms.cell[1]), "linearly dependent"),
        (lambda atoms: atoms.cell.__setitem__(0, 0.0), "linearly dependent"),
        (lambda atoms: atoms.__delitem__(slice(None)), "no atoms"),
        (lambda atoms: atoms.numbers.__setitem__(0, 0), "contains Z=0"),
    ],
)
def test_refuses_senseless_structures(
    calculator: MACECalculator, crystal: Atoms, spoil: Callable[[Atoms], None], message: str
) -> None:
    spoil(crystal)
    crystal.calc = calculator
    with pytest.raises(UserError, match=message):
        crystal.get_forces()


def test_a_wire_needs_one_lattice_vector_only(calculator: MACECalculator) -> None:
    wire = Atoms("H", cell=(1.5, 0, 0), pbc=(True, False, False))
    wire.calc = calculator
    single = _results(calculator, Atoms("H"))["energy"]
    assert wire.get_potential_energy() != pytest.approx(single, abs=1e-4)
    assert np.abs(wire.get_forces()).max() < 1e-10


def test_atom_alone(calculator: MACECalculator) -> None:
    results = _results(calculator, Atoms("O"))
    assert np.isfinite(results["energy"]) and not results["forces"].any()


@pytest.mark.parametrize("copies", [1, 5, 12])
def test_hessian_is_the_derivative_of_the_forces(
    calculator: MACECalculator, crystal: Atoms, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with several rows at a time, as on devices."""
    monkeypatch.setattr("mace.calculators.calculator.copies_for_hessian", lambda *_: copies)
    hessian = calculator.get_hessian(crystal)
    assert hessian.shape == (12, 4, 3)
    step, numerical = 1e-4, np.zeros((12, 12))
    for row in range(12):
        for sign in (1, -1):
            moved = crystal.copy()
            moved.positions.reshape(-1)[row] += sign * step
            numerical[row] -= sign * calculator.get_forces(moved).reshape(-1) / (2 * step)
    flat = hessian.reshape(12, 12)
    np.testing.assert_allclose(flat, numerical, atol=1e-6 * np.abs(flat).max())
    np.testing.assert_allclose(flat, flat.T, atol=1e-10 * np.abs(flat).max())


def test_hessian_needs_no_compiled_kernels_and_leaves_them(make_model: Callable[..., MACE], water: Atoms) -> None:
    plain, fast = MACECalculator(models=make_model()), MACECalculator(models=make_model(), radial_tables=None)
    fast.models[0].use_backend(TORCH)
    before = plain.models[0].backend
    np.testing.assert_allclose(plain.get_hessian(water), fast.get_hessian(water), atol=1e-10)
    assert plain.models[0].backend is before
    np.testing.assert_allclose(plain.get_forces(water), fast.get_forces(water), atol=1e-10)


def test_hessian_of_lonely_atoms_and_of_committees(make_model: Callable[..., MACE]) -> None:
    committee = MACECalculator(models=[make_model(0), make_model(1)])
    hessians = committee.get_hessian(Atoms("HH", positions=[[0, 0, 0], [0, 0, 9.0]]))
    assert len(hessians) == 2 and not np.any(hessians[0])
    with pytest.raises(UserError, match="needs a structure"):
        committee.get_hessian()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, mace, mace.calculators; sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_slab_from_ase_builder(calculator: MACECalculator) -> None:
    slab = ase.build.graphene_nanoribbon(1, 1, type="zigzag", saturated=True, vacuum=4.0)
    slab.calc = calculator
    slab.rattle(0.02)
    numerical = finite_differences.calculate_numerical_forces(slab, eps=1e-5)
    np.testing.assert_allclose(slab.get_forces(), numerical, atol=1e-6)


def test_changes_are_those_that_ase_finds() -> None:
    before = ase.build.molecule("CH3OH", cell=[8.0, 9.0, 10.0], pbc=(True, False, True))

    def edited(edit: Callable[[Atoms], object]) -> Atoms:
        atoms = before.copy()
        edit(atoms)
        return atoms

    edits: list[Callable[[Atoms], object]] = [
        lambda atoms: None,
        lambda atoms: atoms.rattle(0.01, seed=0),
        lambda atoms: atoms.positions.__iadd__(1e-16),
        lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 3e-15),
        lambda atoms: atoms.positions.__setitem__((0, 0), np.nan),
        lambda atoms: atoms.positions.__setitem__((0, 0), np.inf),
        lambda atoms: atoms.set_cell(1.1 * atoms.cell),
        lambda atoms: atoms.set_pbc(True),
        lambda atoms: atoms.numbers.__setitem__(0, 14),
        lambda atoms: atoms.set_initial_charges(np.zeros(len(atoms))),
        lambda atoms: atoms.set_initial_magnetic_moments(np.ones((len(atoms), 3))),
        lambda atoms: atoms.pop(),
        lambda atoms: (atoms.pop(), atoms.set_pbc(False), atoms.set_initial_charges(np.ones(len(atoms)))),
    ]
    found = set[str]()
    for one in [None, *map(edited, edits)]:
        for other in map(edited, edits):
            for tolerance in (1e-15, 0.1):
                changes = what_changed(one, other, tolerance)
                assert sorted(changes) == sorted(compare_atoms(one, other, tolerance))
                found |= set(changes)
    assert len(found) == 6


def test_results_of_a_walk_are_those_of_a_new_calculator(model_path: Path) -> None:
    """What is kept from step to step shows in no result."""
    rng, atoms = np.random.default_rng(4), ase.build.molecule("CH3OH")
    atoms.calc, sizes = MACECalculator(model_paths=model_path), [1e-3, 0.05, 0.3]
    for step in range(12):
        atoms.positions += sizes[step % 3] * rng.normal(size=atoms.positions.shape)
        if step == 8:
            atoms.set_cell([6.0, 6.0, 6.0])
            atoms.pbc = True
        fresh = _results(MACECalculator(model_paths=model_path, skin=0.0), atoms)
        for name, value in _results(atoms.calc, atoms).items():
            assert np.array_equal(value, fresh[name]), (step, name)
