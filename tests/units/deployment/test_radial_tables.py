"""Are tables used where they are accurate, and only there?"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms

from mace.calculators import MACECalculator
from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.compiler import CompilationError, find_compiler
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.model.prediction import predict
from mace.potential import radial_tables
from mace.potential.radial_tables import choose_radial_tables, disordered_structure, largest_error

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler on this machine")
MakeModel = Callable[..., MACE]


@pytest.fixture
def ready(make_model: MakeModel) -> MACE:
    """A model in float32 with compiled kernels."""
    model = make_model(dtype=torch.float32)
    assert choose_kernels(model, "c") == "c"
    return model


def uses_tables(model: MACE) -> bool:
    return not any(interaction.needs_basis for interaction in model.interactions)


def test_in_float32_tables_are_used_and_told(ready: MACE, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_radial_tables(ready)
    assert uses_tables(ready)
    assert "tables of 256 points" in caplog.text


def test_in_float64_only_if_wanted(make_model: MakeModel, crystal: Atoms) -> None:
    assert not choose_radial_tables(choose_and_return(make_model()))
    with_tables, without = (MACECalculator(models=make_model(), radial_tables=wanted) for wanted in (True, None))
    forces = [calculator.get_forces(crystal) for calculator in (with_tables, without)]
    assert uses_tables(with_tables.models[0]) and not uses_tables(without.models[0])
    difference = np.abs(forces[0] - forces[1]).max()
    assert 0.0 < difference < 1e-6


def choose_and_return(model: MACE) -> MACE:
    choose_kernels(model)
    return model


def test_results_differ_by_rounding(make_model: MakeModel, crystal: Atoms) -> None:
    exact = MACECalculator(models=make_model())
    errors = []
    for wanted in (False, None):
        calculator = MACECalculator(models=make_model(), default_dtype="float32", radial_tables=wanted)
        assert uses_tables(calculator.models[0]) == (wanted is None)
        found = [calculator.get_property(name, crystal) for name in ("energy", "forces", "stress")]
        expected = [exact.get_property(name, crystal) for name in ("energy", "forces", "stress")]
        errors.append([float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)])
    for with_network, with_tables in zip(*errors, strict=True):
        assert with_tables < 2.0 * with_network + 1e-7


def test_the_check_sees_a_coarse_table(ready: MACE) -> None:
    assert largest_error(ready, 8) > radial_tables.LARGEST_ERROR > largest_error(ready, 256) > 0.0


def test_inaccurate_tables_are_not_used(
    ready: MACE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(radial_tables, "NUMBERS_OF_NODES", (6, 8))
    assert not choose_radial_tables(ready)
    assert "not tabulated" in caplog.text and not uses_tables(ready)
    with pytest.raises(UserError, match="tables of 8 points change forces"):
        choose_radial_tables(ready, wanted=True)


@pytest.mark.parametrize(("n_nodes", "fine"), [(20, False), (24, False), (32, True), (40, True)])
def test_forces_may_change_by_as_much_as_float32_rounds(
    ready: MACE, monkeypatch: pytest.MonkeyPatch, n_nodes: int, fine: bool
) -> None:
    """One hundred thousandth of an eV/Angstrom: tables of 24 points change this model's forces by twice that."""
    assert (largest_error(ready, n_nodes) < 1.0e-5) == fine
    assert largest_error(ready, n_nodes) < 1.0e-4  # so that ten times the limit would be noticed
    monkeypatch.setattr(radial_tables, "NUMBERS_OF_NODES", (n_nodes,))
    assert choose_radial_tables(ready) == fine == uses_tables(ready)


@pytest.mark.parametrize("kind", ["AtomicDipolesMACE", "EnergyDipolesMACE"])
def test_dipoles_are_looked_at_too(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Forces a million times smaller hide nothing: the error is that of the dipoles."""
    energy = {"reference_energies": (), "readout_channels": 0} if kind == "AtomicDipolesMACE" else {"scale": 1e-6}
    changes = {"model": kind, "dipole_scale": 5.0, "shift": 0.0, "readout_vectors": 4, **energy}
    plan = ModelPlan.model_validate(make_model().plan.model_dump() | changes)
    model = MACE(plan, torch.float32).initialize(torch.Generator().manual_seed(0))
    assert choose_kernels(model, "c") == "c"
    atoms = disordered_structure(model)
    graph = InMemoryDataset([atoms], ElementTable(plan.atomic_numbers), plan.r_max).batch([0]).graph
    exact = MACE(plan, torch.float64)
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    expected = predict(exact, graph).atomic_dipoles
    choose_kernels(exact, "c")
    found = predict(exact.use_radial_tables(12), graph).atomic_dipoles
    assert expected is not None and found is not None
    error = float((found - expected).abs().max())
    assert error > 1e-4 and largest_error(model, 12) == pytest.approx(error, rel=1e-3)
    monkeypatch.setattr(radial_tables, "NUMBERS_OF_NODES", (12,))
    assert not choose_radial_tables(model)


def test_tables_need_compiled_kernels_and_plain_distances(make_model: MakeModel) -> None:
    assert not choose_radial_tables(make_model(dtype=torch.float32))
    with pytest.raises(UserError, match="not compiled"):
        choose_radial_tables(make_model(), wanted=True)
    plan = ModelPlan.model_validate(make_model().plan.model_dump() | {"distance_transform": "Agnesi"})
    with pytest.raises(UserError, match="depend on the atoms, not on their distance alone"):
        choose_radial_tables(choose_and_return(MACE(plan).initialize(torch.Generator().manual_seed(0))), wanted=True)


def test_another_precision_drops_the_tables(ready: MACE) -> None:
    choose_radial_tables(ready)
    assert not uses_tables(ready.to_precision(torch.float64))


def test_no_two_atoms_of_the_test_structure_touch(ready: MACE) -> None:
    positions = disordered_structure(ready).positions
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)[~np.eye(len(positions), dtype=bool)]
    assert 0.5 < distances.min() < 1.2 and distances.max() > ready.plan.r_max


def test_a_compiler_that_fails_is_an_obstacle(ready: MACE, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: MACE) -> None:
        raise CompilationError("the compiler is out of order")

    monkeypatch.setattr(radial_tables, "compile_radial_tables", fail)
    assert not choose_radial_tables(ready) and not uses_tables(ready)
    with pytest.raises(UserError, match="radial_tables=True is not possible, because the compiler is out of order"):
        choose_radial_tables(ready, wanted=True)
    assert not choose_radial_tables(ready, wanted=False)
