"""Does torch-sim get from a model what the calculator gives to ASE: numbers, units, signs, the order of the cell?

Without torch-sim a plain object with the fields of its state stands in, and what needs torch-sim itself is skipped.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.build
import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from mace.calculators import MACECalculator, torch_sim
from mace.calculators.mace_torchsim import MaceTorchSimModel as ModelByOriginalPath
from mace.calculators.torch_sim import MaceTorchSimModel
from mace.errors import UserError
from mace.model.model_file import save_model
from mace.model.plan import ModelPlan

INSTALLED = find_spec("torch_sim") is not None
needs_torch_sim = pytest.mark.skipif(
    not INSTALLED,
    reason="torch-sim is not installed: pip install 'mace-train[torch-sim]' (a stand-in is used elsewhere)",
)
ELEMENTS = (1, 6, 8, 12, 14, 26)
PLAN = files.PLAN.model_copy(
    update={
        "atomic_numbers": ELEMENTS,
        "reference_energies": tuple(-1.5 * z for z in ELEMENTS),
        "avg_num_neighbors": 12.0,
        "scale": 100.0,  # forces as strong as in matter
    }
)
DIPOLES: dict[str, Any] = {"model": "AtomicDipolesMACE", "readout_vectors": 2, "readout_channels": 0}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INSTALLED:
        monkeypatch.setattr(torch_sim, "_MISSING", None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "some.model", files.model(PLAN))


def structures() -> list[Atoms]:
    """A molecule, a crystal in a skewed cell that is not symmetric, and a slab; atoms outside the cell."""
    molecule = ase.build.molecule("CH3CH2OH")
    crystal = ase.build.bulk("Si", cubic=False).repeat((2, 1, 1))
    crystal.set_cell(crystal.cell.array @ [[1.0, 0.1, 0.0], [0.0, 1.05, 0.2], [0.0, 0.0, 0.95]], scale_atoms=True)
    crystal.rattle(0.1, seed=1)
    crystal.positions[0] += 2.0 * crystal.cell[1]
    slab = ase.build.bcc110("Fe", (1, 2, 3), a=2.87, vacuum=5.0)
    slab.pbc = (True, True, False)
    slab.rattle(0.1, seed=2)
    return [molecule, crystal, slab]


def state_of(atoms: list[Atoms], dtype: torch.dtype = torch.float64, pbc: Any = None) -> SimpleNamespace:
    """The fields of torch-sim's state; columns of its cells are lattice vectors."""
    return SimpleNamespace(
        positions=torch.tensor(np.concatenate([a.positions for a in atoms]), dtype=dtype),
        cell=torch.tensor(np.stack([a.cell.array.T for a in atoms]), dtype=dtype),
        pbc=torch.tensor(np.stack([a.pbc for a in atoms])) if pbc is None else pbc,
        atomic_numbers=torch.tensor(np.concatenate([a.numbers for a in atoms])),
        system_idx=torch.tensor(np.repeat(np.arange(len(atoms)), [len(a) for a in atoms])),
    )


def assert_as_in_ase(found: dict[str, torch.Tensor], atoms: list[Atoms], path: Path) -> None:
    """Compare with the calculator, one structure after the other."""
    calculator, forces = MACECalculator(path, default_dtype="float64"), found["forces"].numpy()
    ends = np.cumsum([len(a) for a in atoms])
    for index, one in enumerate(atoms):
        one.calc = calculator
        np.testing.assert_allclose(found["energy"][index].item(), one.get_potential_energy(), rtol=0, atol=1e-10)
        expected = one.get_forces()
        np.testing.assert_allclose(forces[ends[index] - len(one) : ends[index]], expected, rtol=0, atol=1e-10)
        assert np.abs(expected).max() > 1e-3
        if one.cell.rank == 3:
            stress = voigt_6_to_full_3x3_stress(one.get_stress())
            np.testing.assert_allclose(found["stress"][index].numpy(), stress, rtol=0, atol=1e-10)
            assert np.abs(stress).max() > 1e-6
        else:
            assert found["stress"][index].isnan().all()


def test_a_mixed_batch_is_as_in_ase(path: Path) -> None:
    atoms = structures()
    found = MaceTorchSimModel(path, "cpu")(state_of(atoms))
    assert {name: (tuple(v.shape), v.dtype, v.requires_grad) for name, v in found.items()} == {
        "energy": ((3,), torch.float64, False),
        "forces": ((sum(map(len, atoms)), 3), torch.float64, False),
        "stress": ((3, 3, 3), torch.float64, False),
    }
    assert_as_in_ase(found, atoms, path)


def test_the_stress_is_the_derivative_by_a_strain(path: Path) -> None:
    """Of torch-sim's own fields: columns of the cell and positions move with the strain."""
    model, crystal, step = MaceTorchSimModel(path, "cpu"), structures()[1], 1e-4
    strain = torch.tensor([[0.3, 0.2, -0.1], [0.2, -0.4, 0.5], [-0.1, 0.5, 0.6]], dtype=torch.float64)
    energies = []
    for size in (step, -step):
        state, move = state_of([crystal]), torch.eye(3, dtype=torch.float64) + size * strain
        state.positions, state.cell = state.positions @ move, move @ state.cell
        energies.append(model(state)["energy"].item())
    slope = (model(state_of([crystal]))["stress"][0] * strain).sum().item() * crystal.get_volume()
    assert (energies[0] - energies[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_a_file_of_mace_torch_is_taken(tmp_path: Path) -> None:
    old, atoms = files.write_original(tmp_path / "old.model", files.tree_of(files.model(PLAN))), structures()
    assert_as_in_ase(MaceTorchSimModel(str(old), "cpu")(state_of(atoms)), atoms, old)


@pytest.mark.parametrize("pbc", [True, [True, True, True], torch.tensor([True, True, True])])
def test_one_pbc_for_all(pbc: Any, path: Path) -> None:
    atoms = structures()[1:]
    for one in atoms:
        one.pbc = True
    state = state_of(atoms, pbc=pbc)
    assert_as_in_ase(MaceTorchSimModel(path, "cpu")(vars(state)), atoms, path)


def test_neighbors_are_kept_only_as_long_as_they_hold(path: Path) -> None:
    kept, searched = MaceTorchSimModel(path, "cpu"), MaceTorchSimModel(path, "cpu", skin=0.0)
    atoms = structures()
    for seed, order in enumerate([(0, 1, 2), (0, 1, 2), (2, 0, 1), (1,), (1, 2), (0,)]):
        chosen = [atoms[place] for place in order]
        for one in chosen:
            one.rattle(0.1, seed=seed)
        state = state_of(chosen)
        first, second = kept(state), searched(state)
        for name in first:
            assert torch.equal(first[name].nan_to_num(), second[name].nan_to_num()), name


def searches(model: MaceTorchSimModel) -> list[int]:
    (moving,) = model.potential._moving.values()
    return [search.n_searches for search in moving.searches]


def test_neighbors_are_not_searched_at_every_step(path: Path) -> None:
    model, atoms = MaceTorchSimModel(path, "cpu"), structures()[1:]
    for _ in range(4):  # all within half of the skin of the first
        atoms[1].positions[2, 2] += 0.07
        model(state_of(atoms))
        assert searches(model) == [1, 1]
    for _ in range(2):
        atoms[1].positions[2, 2] += 0.07
        model(state_of(atoms))
    assert searches(model) == [1, 2]


def test_only_what_is_wanted_in_the_precision_wanted(path: Path) -> None:
    model = ModelByOriginalPath(files.model(PLAN), "cpu", torch.float32, compute_stress=False)
    assert (model.compute_forces, model.compute_stress) == (True, False)
    state = state_of(structures(), torch.float32)
    found = model(state)
    assert set(found) == {"energy", "forces"} and {v.dtype for v in found.values()} == {torch.float32}
    exact = MaceTorchSimModel(path, "cpu")(state)
    torch.testing.assert_close(found["forces"].double(), exact["forces"], rtol=1e-4, atol=1e-4)
    model.compute_forces, model.compute_stress = False, True
    assert set(model(state)) == {"energy", "stress"}
    model.compute_stress = False
    assert set(model(state)) == {"energy"}


def test_a_missing_package_is_said_in_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_sim, "_MISSING", ImportError("No module named 'torch_sim'"))
    with pytest.raises(UserError, match=r"No module named 'torch_sim'.; .*pip install 'mace-train\[torch-sim\]'"):
        MaceTorchSimModel(path)


def dipole_model() -> Any:
    return files.model(ModelPlan.model_validate(PLAN.model_dump() | DIPOLES | {"reference_energies": ()}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": torch.float16}, "dtype is torch.float16; choose torch.float32 or"),
        ({"device": "cpux"}, "no device 'cpux'"),
        ({"skin": -1.0}, "skin is -1.0; it must be"),
        ({"model": torch.nn.Linear(1, 1)}, "the model is a Linear; name a model file"),
        ({"model": "nowhere.model"}, "no such model file"),
        ({"model": files.model(PLAN), "head": "other"}, "the model has one head, Default, and no head 'other'"),
        ({"model": dipole_model()}, "AtomicDipolesMACE model predicts no energy"),
    ],
)
def test_models_that_cannot_be_used(arguments: dict[str, Any], said: str, path: Path) -> None:
    with pytest.raises(UserError, match=said):
        MaceTorchSimModel(**({"model": path, "device": "cpu"} | arguments))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": torch.full((4, 3), torch.nan)}, "structure 0 has a position that is NaN"),
        ({"atomic_numbers": torch.tensor([14, 14, 92, 14])}, "structure 0 contains U, which the model was not trained"),
        ({"cell": torch.zeros(1, 3, 3)}, "structure 0 repeats along .* lattice vectors there are zero"),
        ({"system_idx": torch.tensor([0, 1, 1, 1])}, "every atom must have a number and"),
        ({"atomic_numbers": torch.tensor([14])}, "every atom must have a number and"),
        ({"system_idx": torch.tensor([0, 0])}, "every atom must have a number and"),
    ],
)
def test_states_that_make_no_sense(changes: dict[str, Any], said: str, path: Path) -> None:
    state = SimpleNamespace(**(vars(state_of([structures()[1]])) | changes))
    with pytest.raises(UserError, match=f"torch-sim state: .*{said}"):
        MaceTorchSimModel(path, "cpu")(state)


@needs_torch_sim
def test_a_state_of_torch_sim_is_as_in_ase(path: Path) -> None:
    import torch_sim as ts

    atoms = structures()
    for one in atoms:
        one.pbc = True
    atoms[0].center(vacuum=4.0)
    model = MaceTorchSimModel(path, "cpu")
    assert_as_in_ase(model(ts.io.atoms_to_state(atoms, model.device, model.dtype)), atoms, path)
    molecules = [ase.build.molecule("CH3OH"), ase.build.molecule("H2O")]
    assert_as_in_ase(model(ts.io.atoms_to_state(molecules, model.device, model.dtype)), molecules, path)


@needs_torch_sim
def test_torch_sim_finds_the_interface_kept(path: Path) -> None:
    from torch_sim.models.interface import ModelInterface, validate_model_outputs

    model = MaceTorchSimModel(path, "cpu", compute_forces=False, compute_stress=False)
    assert isinstance(model, ModelInterface)
    assert (model.dtype, model.device) == (torch.float64, torch.device("cpu"))
    assert model.memory_scales_with == "n_atoms_x_density"
    validate_model_outputs(model, model.device, model.dtype)


@needs_torch_sim
def test_dynamics_in_torch_sim_keep_the_energy(path: Path) -> None:
    """From rest, so that the energy at the start is the potential one."""
    import torch_sim as ts

    model, crystal = MaceTorchSimModel(path, "cpu"), structures()[1]
    start = ts.io.atoms_to_state([crystal, crystal.repeat((1, 2, 1))], model.device, model.dtype)
    integrator = ts.Integrator.nve if hasattr(ts, "Integrator") else ts.nve
    end = ts.integrate(start, model, integrator=integrator, n_steps=100, temperature=0.0, timestep=0.001)
    kinetic = torch.zeros(2, dtype=torch.float64).index_add(
        0, end.system_idx, (end.momenta**2).sum(1) / (2.0 * end.masses)
    )
    assert (kinetic > 1e-3).all()
    torch.testing.assert_close(end.energy + kinetic, model(start)["energy"], rtol=0, atol=0.01 * kinetic.min().item())


@pytest.mark.parametrize("head", ["low", "high", 1, None])
def test_a_head_of_several(tmp_path: Path, head: str | int | None) -> None:
    model = files.model(files.with_heads("low", "high", "default"))
    path = save_model(tmp_path / "heads.model", model)
    name = {1: "high", None: "default"}.get(head, head)  # type: ignore[call-overload]
    water = ase.build.molecule("H2O")
    expected = MACECalculator(path, head=name).evaluate([water])[0]
    for given in (path, model):
        found = MaceTorchSimModel(given, "cpu", head=head)(state_of([water]))
        assert float(found["energy"][0]) == pytest.approx(expected["energy"], abs=1e-9)
    for unknown, said in (("pt", "no head 'pt'"), (3, r"no head 3; the heads are 0 to 2 \(low, high, default\)")):
        with pytest.raises(UserError, match=said):
            MaceTorchSimModel(path, "cpu", head=unknown)
