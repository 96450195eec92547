"""Do programs that were written for mace-torch find what they import, call and read?

Whole programs, where they are installed, are in ``tests/workflows/test_clients.py``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotPresent
from ase.neighborlist import neighbor_list
from training_runs import QUICK, TINY_MODEL, write_water

from mace.calculators import MACECalculator, mace_mp
from mace.calculators.foundations_models import get_cache_dir
from mace.cli import preprocess_data, run_train
from mace.compat.arguments import settings_of
from mace.data import get_neighborhood
from mace.errors import UserError
from mace.model.model_file import load_model, save_model
from mace.tools import (
    AtomicNumberTable,
    atomic_numbers_to_indices,
    build_default_arg_parser,
    build_preprocess_arg_parser,
    set_default_dtype,
    set_seeds,
    to_one_hot,
)

SURFACE = Path(__file__).with_name("cli_surface.json")

MLP_TRAIN = [
    *("--name", "water", "--max_L", "1", "--train_file", "water_data.xyz", "--energy_weight", "1.0"),
    *("--forces_weight", "5.0", "--config_type_weights", '{"Default":1.0}', "--E0s", "{1: -13.5, 8: -2043.5}"),
    *("--model", "MACE", "--hidden_irreps", "128x0e + 128x1o", "--r_max", "5.0", "--lr", "0.001"),
    *("--scaling", "rms_forces_scaling", "--batch_size", "10", "--valid_batch_size", "10"),
    *("--max_num_epochs", "1200", "--error_table", "TotalMAE", "--loss", "weighted", "--correlation", "3"),
    *("--scheduler_patience", "20", "--patience", "50", "--device", "cpu", "--default_dtype", "float32"),
    *("--seed", "345", "--energy_key", "energy", "--forces_key", "forces", "--num_workers", "0"),
    *("--ema", "--ema_decay", "0.99", "--save_cpu", "--valid_fraction=0.1"),
]
"""What mlp-train hands to the parser with its own defaults, but for the number of workers, which is that of cores."""

AUTOPLEX: dict[str, Any] = {
    "model": "MACE", "name": "MACE_model", "amsgrad": True, "batch_size": 10, "compute_avg_num_neighbors": True,
    "compute_forces": True, "config_type_weights": "{'Default':1.0}", "compute_stress": False, "correlation": 3,
    "default_dtype": "float32", "distributed": False, "energy_weight": 1.0, "ema": True, "ema_decay": 0.99,
    "forces_weight": 100.0, "foundation_filter_elements": True, "foundation_model_readout": True,
    "keep_checkpoints": False, "keep_isolated_atoms": False, "hidden_irreps": "128x0e + 128x1o", "loss": "huber",
    "lr": 0.001, "multiheads_finetuning": False, "max_num_epochs": 1500, "pair_repulsion": False, "patience": 2048,
    "r_max": 5.0, "restart_latest": False, "seed": 123, "save_cpu": True, "save_all_checkpoints": False,
    "scaling": "rms_forces_scaling", "stress_weight": 1.0, "start_stage_two": 1200, "stage_two": True,
    "valid_batch_size": 10, "virials_weight": 1.0, "wandb": False,
}  # fmt: skip
"""Hyperparameters of autoplex; it leaves out what the parser does not know, and bare flags that are False."""


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_water(tmp_path_factory.mktemp("water") / "train.xyz")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "own.model", files.model())


def structures() -> list[Atoms]:
    """Molecules and crystals: images of atoms with themselves, a slab, no neighbors, atoms outside of the cell."""
    silicon = bulk("C", "diamond", a=3.57)
    slab = bulk("C", "diamond", a=3.57, cubic=True)
    slab.rattle(0.1, seed=2)
    slab.pbc = (True, True, False)
    slab.positions[0] += 2.0 * slab.cell[0]
    return [molecule("CH3OH"), silicon, slab, Atoms("H", cell=[9.0] * 3)]


# the parser and its namespace


def test_the_parser_knows_every_flag_of_mace_torch() -> None:
    known = {flag for action in build_default_arg_parser()._actions for flag in action.option_strings}
    names = {name for action in json.loads(SURFACE.read_text())["build_default_arg_parser"] for name in action["flags"]}
    assert len(names) > 150 and names - {"-h", "--help"} <= known


def test_arguments_of_mlp_train() -> None:
    parsed = build_default_arg_parser().parse_args(MLP_TRAIN)
    assert isinstance(parsed, argparse.Namespace)
    assert (parsed.name, parsed.r_max, parsed.seed, parsed.ema, parsed.swa) == ("water", 5.0, 345, True, False)
    assert vars(parsed)["max_num_epochs"] == 1200 and "typed" not in vars(parsed)


def test_arguments_of_autoplex() -> None:
    allowed = [flag.split("--")[-1] for a in build_default_arg_parser()._actions for flag in a.option_strings]
    assert set(AUTOPLEX) <= set(allowed)
    bare = {"distributed", "pair_repulsion", "amsgrad", "stage_two", "keep_checkpoints", "save_all_checkpoints",
            "restart_latest", "save_cpu", "wandb", "foundation_model_readout", "ema"}  # fmt: skip
    words = [
        f"--{name}" if name in bare else f"--{name}={value}"
        for name, value in AUTOPLEX.items()
        if value or name not in bare
    ]
    files_and_labels = ["--train_file=./train.extxyz", "--valid_file=./test.extxyz", "--energy_key=REF_energy",
                        "--forces_key=REF_forces", "--device=cpu"]  # fmt: skip
    parsed = build_default_arg_parser().parse_args([*words, *files_and_labels])
    assert parsed.loss == "huber" and parsed.swa and parsed.start_swa == 1200 and parsed.amsgrad


def test_settings_of_a_yaml_file_and_a_folder(tmp_path: Path, water: Path) -> None:
    """As janus-core does."""
    (tmp_path / "config.yml").write_text(f"name: janus\ntrain_file: {water}\nE0s: average\nlr: 0.02\nswa: true\n")
    words = ["--config", str(tmp_path / "config.yml"), "--work_dir", str(tmp_path / "results")]
    parsed = build_default_arg_parser().parse_args(words)
    assert (parsed.name, parsed.lr, parsed.swa, parsed.work_dir) == ("janus", 0.02, True, str(tmp_path / "results"))


def trained(tmp_path: Path, name: str, arguments: Any) -> torch.Tensor:
    run_train.run(arguments)
    return load_model(tmp_path / f"{name}.model").model.embedding.detach()


@pytest.mark.parametrize("kind", ["parsed", "changed", "copied", "by hand"])
def test_a_namespace_trains_like_its_words(kind: str, tmp_path: Path, water: Path) -> None:
    words = [*QUICK[1:], *TINY_MODEL, f"--train_file={water}", f"--work_dir={tmp_path}", "--no_report"]
    expected = trained(tmp_path, "words", ["--name=words", *words])
    namespace = build_default_arg_parser().parse_args([f"--name={kind}", *words])
    if kind == "changed":
        namespace = build_default_arg_parser().parse_args([f"--name={kind}", *words, "--seed=5", "--lr=0.3"])
        namespace.seed, namespace.lr = 7, 0.01
    elif kind == "copied":
        namespace = pickle.loads(pickle.dumps(copy.deepcopy(namespace)))
    elif kind == "by hand":
        namespace = argparse.Namespace(**vars(namespace))
    torch.testing.assert_close(trained(tmp_path, kind, namespace), expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lr": -1.0}, "--lr must be a number above 0"),
        ({"learning_rate": 0.1}, "the namespace has 'learning_rate', which is not a setting"),
        ({"max_epochs": 3}, "did you mean max_num_epochs?"),
        ({"use_so3": True}, "energies are the same for mirror images"),
    ],
)
def test_what_a_namespace_cannot_have(change: dict[str, Any], expected: str, water: Path) -> None:
    namespace = build_default_arg_parser().parse_args(["--name=x", f"--train_file={water}"])
    vars(namespace).update(change)
    with pytest.raises(UserError) as caught:
        settings_of(namespace)
    assert expected in str(caught.value)


def test_what_was_typed_is_kept_also_where_it_is_the_default(water: Path) -> None:
    words = ["--name=x", f"--train_file={water}", "--r_max=5.0", "--batch_size=10"]
    given = settings_of(build_default_arg_parser().parse_args(words)).model_fields_set
    assert given == {"name", "train_file", "r_max", "batch_size"}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("convert_e3nn_cueq", "use model files as they are"),
        ("convert_oeq_e3nn", "use model files as they are"),
    ],
)
def test_what_is_called_and_does_not_exist_says_what_to_do(module: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        importlib.import_module(f"mace.cli.{module}").run("something", device="cpu")


def test_data_are_prepared_by_a_namespace(water: Path, tmp_path: Path) -> None:
    """Other programs make it by the parser, from a file of settings, and call ``run`` with it."""
    config = tmp_path / "config.yml"
    config.write_text(f"train_file: {water}\nvalid_fraction: 0.2\n", encoding="utf-8")
    words = ["--config", str(config), "--h5_prefix", f"{tmp_path}/", "--num_process=1", f"--work_dir={tmp_path}"]
    preprocess_data.run(build_preprocess_arg_parser().parse_args([*words, "--E0s=average", "--compute_statistics"]))
    assert (tmp_path / "train" / "manifest.json").exists() and (tmp_path / "statistics.json").exists()
    with pytest.raises(UserError, match="takes the arguments as a list of strings"):
        preprocess_data.run("something")  # type: ignore[arg-type]


# models called with dictionaries


def dictionary(model: torch.nn.Module, many: list[Atoms], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Make what mace-torch makes of structures, with the functions programs use."""
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    edges, shifts, cells, starts = [], [], [], np.cumsum([0, *map(len, many)])
    for start, atoms in zip(starts, many, strict=False):
        edge_index, shift, _, cell = get_neighborhood(
            atoms.positions, float(model.r_max), tuple(atoms.pbc), atoms.cell.array
        )
        edges.append(edge_index + start), shifts.append(shift), cells.append(cell)
    numbers = np.concatenate([atoms.numbers for atoms in many])
    rows = to_one_hot(torch.tensor(atomic_numbers_to_indices(numbers, z_table=table)).unsqueeze(-1), len(table))
    return {
        "positions": torch.tensor(np.concatenate([atoms.positions for atoms in many]), dtype=dtype),
        "node_attrs": rows.to(dtype),
        "edge_index": torch.tensor(np.concatenate(edges, axis=1)),
        "shifts": torch.tensor(np.concatenate(shifts), dtype=dtype),
        "cell": torch.tensor(np.concatenate(cells), dtype=dtype),
        "batch": torch.tensor(np.repeat(np.arange(len(many)), [len(atoms) for atoms in many])),
        "ptr": torch.tensor(starts),
    }


@pytest.fixture
def model(model_file: Path) -> Any:
    return MACECalculator(model_file).models[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("place", ["calculator", "loader"])
def test_a_dictionary_gives_what_the_calculator_gives(
    place: str, dtype: torch.dtype, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator = MACECalculator(model_file, default_dtype=dtype, skin=0.0, radial_tables=False)
    model = calculator.models[0] if place == "calculator" else mace_mp(model_file, "cpu", dtype, return_raw_model=True)
    found = model(dictionary(model, structures(), dtype), compute_stress=True, compute_atomic_stresses=True)
    expected = calculator.evaluate(structures(), atomic_stresses=True)
    close = 1e-10 if dtype == torch.float64 else 2e-4
    np.testing.assert_allclose(found["energy"].numpy(), [each["energy"] for each in expected], atol=close, rtol=1e-6)
    for ours, theirs in (("node_energy", "energies"), ("forces", "forces"), ("atomic_virials", "virials")):
        rows = np.concatenate([each[theirs] for each in expected])
        np.testing.assert_allclose(found[ours].numpy(), rows, atol=close, rtol=1e-6)
    interaction = [each["node_energy"].sum() for each in expected]
    np.testing.assert_allclose(found["interaction_energy"].numpy(), interaction, atol=close, rtol=1e-6)
    np.testing.assert_allclose(
        found["stress"][1].numpy()[[0, 1, 2, 1], [0, 1, 2, 2]], expected[1]["stress"][:4], atol=close
    )
    np.testing.assert_allclose(found["virials"].numpy(), -_volume(found), atol=close, rtol=1e-5)
    assert found["hessian"] is None


def _volume(found: dict[str, torch.Tensor]) -> np.ndarray:
    """The stress times the volume that the dictionaries of `structures` have."""
    cells = [get_neighborhood(a.positions, 4.0, tuple(a.pbc), a.cell.array)[3] for a in structures()]
    return found["stress"].numpy() * np.abs(np.linalg.det(cells))[:, None, None]


@pytest.mark.parametrize("left_out", ["shifts", "unit_shifts", "ptr"])
def test_either_kind_of_shifts_is_enough(left_out: str, model: Any) -> None:
    data = dictionary(model, structures())
    units = [get_neighborhood(a.positions, 4.0, tuple(a.pbc), a.cell.array)[2] for a in structures()]
    data["unit_shifts"] = torch.tensor(np.concatenate(units), dtype=torch.float64)
    expected = model(dict(data))["energy"]
    data[left_out] = None
    torch.testing.assert_close(model(data)["energy"], expected)


def test_a_dictionary_can_be_differentiated(model: Any) -> None:
    data = dictionary(model, structures())
    forces = model(data)["forces"]
    data["positions"].requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(data, compute_force=False)["energy"].sum(), data["positions"])
    torch.testing.assert_close(-gradient, forces, atol=1e-10, rtol=0.0)
    model.requires_grad_(True)
    model(dictionary(model, structures()), training=True)["forces"].square().sum().backward()
    assert model.embedding.grad.abs().max() > 0.0


def test_second_derivatives_of_a_dictionary(model: Any, model_file: Path) -> None:
    (atoms,) = structures()[:1]
    data = dictionary(model, [atoms]) | {"batch": None, "ptr": None}
    found = model(data, compute_hessian=True)["hessian"]
    np.testing.assert_allclose(found.numpy(), MACECalculator(model_file).get_hessian(atoms), atol=1e-10)


def test_heads_of_a_dictionary() -> None:
    several = files.model(files.with_heads("Default", "other"))
    calculators = [MACECalculator(models=several, head=head) for head in ("Default", "other")]
    (model,) = MACECalculator(models=several, head="other").models
    assert not hasattr(model, "atomic_energies_fn"), "models in memory are as they were given"
    from mace.compat.dictionary import with_dictionaries

    model = with_dictionaries(model)
    data = dictionary(model, structures()[:2]) | {"head": torch.tensor([1, 0])}
    expected = [
        calculators[head].evaluate([atoms])[0]["energy"] for head, atoms in zip((1, 0), structures(), strict=False)
    ]
    np.testing.assert_allclose(model(data)["energy"].numpy(), expected, atol=1e-10)
    assert model.atomic_energies_fn(data["node_attrs"]).shape == (8, 2)
    with pytest.raises(UserError, match="the model has the heads 0 to 1"):
        model(data | {"head": torch.tensor([0, 2])})


def test_reference_energies_of_models(model: Any) -> None:
    energies = model.atomic_energies_fn
    assert energies.atomic_energies.tolist() == [[-13.6, -1027.2, -2041.8]]
    assert energies(torch.eye(3)[[2, 0]]).tolist() == [[-2041.8], [-13.6]]
    model.atomic_numbers = model.atomic_numbers.clone()
    with pytest.raises(UserError, match="cannot be changed"):
        model.atomic_numbers = torch.tensor([1, 6, 7])


def without_reverse(data: dict[str, Any]) -> dict[str, Any]:
    keep = data["edge_index"][0] <= data["edge_index"][1]
    return {"edge_index": data["edge_index"][:, keep], "shifts": data["shifts"][keep]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_reverse, "once in both directions"),
        (lambda data: {"shifts": data["shifts"] + 0.3}, "no sums of the lattice vectors"),
        (lambda data: {"node_attrs": data["node_attrs"][:, :2]}, "'node_attrs' of the dictionary has the shape"),
        (lambda data: {"edge_index": None}, "has no 'edge_index'"),
        (lambda data: {"cell": data["cell"][:3]}, "has 1 cells for 4 structures"),
        (lambda data: {"batch": data["batch"].flip(0)}, "structures in 'batch'"),
    ],
)
def test_a_wrong_dictionary_is_refused(change: Any, expected: str, model: Any) -> None:
    data = dictionary(model, structures())
    with pytest.raises(UserError, match=expected):
        model(data | change(data))


@pytest.mark.parametrize("name", ["compute_displacement", "compute_edge_forces", "lammps_mliap"])
def test_what_a_dictionary_cannot_be_asked_for(name: str, model: Any) -> None:
    with pytest.raises(UserError, match=f"cannot obey {name}"):
        model(dictionary(model, structures()[:1]), **{name: True})


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("cutoff", [2.0, 4.5])
def test_neighbors_are_those_of_ase(number: int, cutoff: float) -> None:
    atoms = structures()[number]
    cell = atoms.cell.array.copy()
    edges, shifts, units, box = get_neighborhood(atoms.positions, cutoff, tuple(atoms.pbc), cell)
    i, j, s = neighbor_list("ijS", atoms, cutoff)
    found, expected = (sorted(np.column_stack(rows).tolist()) for rows in ((*edges, units), (i, j, s)))
    assert found == expected and np.all(np.diff(edges[0]) >= 0)
    np.testing.assert_allclose(shifts, units @ box, atol=1e-12)
    np.testing.assert_array_equal(cell, atoms.cell.array)
    assert abs(np.linalg.det(box)) > 0.0


def test_neighbors_without_a_cell() -> None:
    edges, shifts, _, _ = get_neighborhood(molecule("H2O").positions, 3.0)
    assert edges.shape == (2, 6) and not shifts.any()
    with pytest.raises(UserError, match="span no volume"):
        get_neighborhood(molecule("H2O").positions, 3.0, (True, False, False))


@pytest.fixture
def global_state() -> Iterator[None]:
    """Put torch and NumPy back as they were."""
    dtype, of_torch, of_numpy = torch.get_default_dtype(), torch.get_rng_state(), np.random.get_state()
    yield
    torch.set_default_dtype(dtype), torch.set_rng_state(of_torch), np.random.set_state(of_numpy)


@pytest.mark.usefixtures("global_state")
def test_seeds_and_precision_are_set_when_asked() -> None:
    drawn = []
    for seed in (345, 345, 346):
        set_seeds(seed)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))
    assert drawn[0] == drawn[1] != drawn[2]
    for name in ("float64", "float32"):
        set_default_dtype(name)
        assert str(torch.get_default_dtype()) == f"torch.{name}" == str(to_one_hot(torch.tensor([[1]]), 2).dtype)
    with pytest.raises(UserError, match="float32 or float64"):
        set_default_dtype("half")


# the calculator


def test_other_names_of_model_paths(model_file: Path) -> None:
    energies = []
    for arguments in (
        {"model_paths": model_file},
        {"model": str(model_file)},
        {"model": [model_file]},
        {"model_path": model_file},
        {"model_paths": str(model_file), "model": str(model_file)},  # atomate2 gives both
        {"model": model_file, "dispersion": False},
    ):
        atoms = molecule("CH3OH")
        atoms.calc = MACECalculator(**arguments, device="cpu")
        energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 1
    with pytest.raises(UserError, match="model is another name of model_paths"):
        MACECalculator(model_paths=model_file, model="other.model")


def test_dispersion_is_left_to_who_adds_it(model_file: Path) -> None:
    with pytest.warns(UserWarning, match=r"the model alone is computed; mace_mp\(model, dispersion=True\) adds D3"):
        calculator = MACECalculator(model_paths=model_file, model=model_file, dispersion=True)
    assert calculator.num_models == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MACECalculator(model_paths=model_file, dispersion=False)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", torch.float32, "float64", torch.float64])
def test_results_have_the_precision_asked_for(dtype: Any, count: int, model_file: Path) -> None:
    (_, crystal, *_) = structures()
    crystal.calc = MACECalculator([model_file] * count, default_dtype=dtype, compute_atomic_stresses=True)
    crystal.get_potential_energy()
    kinds = {name: str(value.dtype) for name, value in crystal.calc.results.items() if isinstance(value, np.ndarray)}
    wanted = str(dtype).removeprefix("torch.")
    assert {"forces", "stress", "stresses", "virials", "energies"} <= set(kinds)
    for name, kind in kinds.items():
        assert kind == ("float64" if "energ" in name else wanted), name
    assert crystal.calc.default_dtype == wanted and isinstance(crystal.calc.results["energy"], float)


@pytest.mark.parametrize(
    "names", [["energy", "forces", "stress"], ["energy", "node_energy"], ["stresses", "virials"], []]
)
@pytest.mark.parametrize("count", [1, 2])
def test_properties_are_found_by_name(names: list[str], count: int, model_file: Path) -> None:
    """As i-PI asks for them; ASE does not know the names of all results."""
    (_, crystal, *_) = structures()
    crystal.calc = MACECalculator([model_file] * count)
    found = crystal.get_properties(names)
    assert {*names, "energy", "forces"} <= set(found) and found["natoms"] == 2
    np.testing.assert_array_equal(found["forces"], crystal.get_forces())
    with pytest.raises(PropertyNotPresent):
        crystal.get_properties(["magmoms"])


@pytest.mark.parametrize(("energy_unit", "length_unit"), [(27.2114, 1.0), (1.0, 0.529177), (0.0433641, 10.0)])
def test_units_of_a_model(energy_unit: float, length_unit: float, model_file: Path) -> None:
    """Forces are those of the converted energy at the converted positions; mace-torch converts no positions."""
    atoms = structures()[1] * (2, 1, 1)
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(atoms.cell * length_unit, scale_atoms=True)
    atoms.calc = MACECalculator(model_file, energy_units_to_eV=energy_unit, length_units_to_A=length_unit)
    own = atoms.copy()
    own.set_cell(atoms.cell / length_unit, scale_atoms=True)
    own.calc = MACECalculator(model_file)
    assert atoms.get_potential_energy() == pytest.approx(energy_unit * own.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), energy_unit / length_unit * own.get_forces(), atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(), energy_unit / length_unit**3 * own.get_stress(), atol=1e-9)
    moved, size = atoms.copy(), 1e-4 * length_unit
    energies = []
    for sign in (1, -1):
        moved.positions = atoms.positions
        moved.positions[0, 1] += sign * size
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert -(energies[0] - energies[1]) / (2 * size) == pytest.approx(
        own.get_forces()[0, 1] * energy_unit / length_unit, rel=1e-4
    )


def test_derivatives_of_polarizabilities_say_what_they_need(model_file: Path) -> None:
    with pytest.raises(UserError, match=r"needs a model of dipoles and polarizabilities \(AtomicDielectricMACE\)"):
        MACECalculator(model_file).get_dielectric_derivatives(molecule("H2O"))


@pytest.mark.parametrize("cause", ["no such file", "element", "unit", "damaged"])
def test_errors_are_value_errors_too(cause: str, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.model").write_bytes(b"PK\x03\x04" + b"?" * 600)
    with pytest.raises(ValueError) as caught:
        if cause == "element":
            MACECalculator(model_file).get_potential_energy(Atoms("Au"))
        elif cause == "unit":
            MACECalculator(model_file, energy_units_to_eV=-1.0)
        else:
            MACECalculator(tmp_path / f"{cause}.model")
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_the_cache_is_where_downloads_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert get_cache_dir() == tmp_path / "mace"
