"""Does every head learn from its own structures, with its own keys, energies, weights and constants?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.db import connect
from ase.io import read
from training_runs import at_level, copper, isolated_atoms, prepared, same, train, water, write_frames

from mace.calculators import MACECalculator
from mace.errors import UserError
from mace.model.model_file import load_model
from mace.preparation.preparation import Preparation
from mace.settings import parse_training_settings
from mace.units import ENERGY_UNITS

SCALED = "--model=ScaleShiftMACE"


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """Twelve molecules and the isolated atoms."""
    return write_frames(tmp_path / "low.xyz", isolated_atoms() + water(12))


@pytest.fixture
def high(tmp_path: Path) -> Path:
    """Eight others at another level of theory, with theirs."""
    return write_frames(tmp_path / "high.xyz", at_level(isolated_atoms() + water(8, 1), 2.0, -40.0))


def heads(**tables: Any) -> str:
    """The flag, with paths as text."""
    return f"--heads={json.dumps(tables, default=str)}"


def energies(preparation: Preparation, head: str) -> list[float]:
    """The labels to train on, in eV."""
    return [configuration.energy or np.nan for configuration in preparation.train_of(head)]


def constants(preparation: Preparation) -> dict[str, tuple[float, float]]:
    """Scale and shift of each head."""
    return {head.name: (head.scale, head.shift) for head in preparation.plan.every_head}


def test_every_head_predicts_its_own_labels(tmp_path: Path) -> None:
    """The same molecules at two levels: forces of one are opposite to those of the other, and energies are shifted."""
    frames = isolated_atoms() + water(12)
    files = {
        "first": write_frames(tmp_path / "first.xyz", frames),
        "second": write_frames(tmp_path / "second.xyz", at_level(frames, -2.0, -500.0)),
    }
    given = heads(**{name: {"train_file": file} for name, file in files.items()})
    run = train(tmp_path, None, given, SCALED, "--max_num_epochs=15", "--lr=0.02")
    assert [record["head"] for record in run.records if record["mode"] == "eval"][:3] == ["first", "second", "first"]

    def errors(head: str, file: Path) -> tuple[float, float]:
        """Largest error of an energy, and root mean square of those of forces in units of the forces'."""
        calculator = MACECalculator(
            model_paths=str(tmp_path / "tiny.model"), device="cpu", default_dtype="float64", head=head
        )
        energy, squares, scale = 0.0, 0.0, 0.0
        for atoms in read(file, "2:"):
            label, forces = atoms.info["REF_energy"], atoms.arrays["REF_forces"]
            atoms.calc = calculator
            energy = max(energy, abs(atoms.get_potential_energy() - label))
            squares, scale = squares + ((atoms.get_forces() - forces) ** 2).sum(), scale + (forces**2).sum()
        return energy, float(squares / scale) ** 0.5

    for name, other in (("first", "second"), ("second", "first")):
        energy, force = errors(name, files[name])
        assert energy < 5.0 and force < 0.7, name
        energy, force = errors(name, files[other])
        assert energy > 1000.0 and force > 1.0, name


def test_a_shift_of_one_head_goes_into_its_reference_energies(tmp_path: Path, low: Path) -> None:
    """So training is that of the unshifted labels: losses are equal to rounding."""
    frames = read(low, ":")
    shifted = write_frames(tmp_path / "shifted.xyz", at_level(frames, 1.0, -1000.0))
    same_level = write_frames(tmp_path / "same.xyz", at_level(frames, 1.0, 0.0))
    runs = [
        train(tmp_path / file.stem, None, SCALED, heads(one={"train_file": low}, two={"train_file": file}))
        for file in (same_level, shifted)
    ]
    one, other = ([record["loss"] for record in run.records] for run in runs)
    assert one == pytest.approx(other, rel=1e-6)
    plans = [load_model(run.folder / "tiny.model").model.plan for run in runs]
    assert plans[0].heads[0] == plans[1].heads[0]
    before, after = (np.array(plan.heads[1].reference_energies) for plan in plans)
    np.testing.assert_allclose(after - before, -1000.0)


def test_keys_of_a_head_come_before_those_of_all(tmp_path: Path, low: Path) -> None:
    """info_keys and arrays_keys before energy_key and forces_key, and these before those outside of the heads."""
    frames = read(low, ":")
    for number in range(4):
        for atoms in frames:
            atoms.info[f"E{number}"] = atoms.info["REF_energy"] + 100.0 * number * len(atoms)
            atoms.arrays[f"F{number}"] = atoms.arrays["REF_forces"] * (number + 1)
    file = write_frames(tmp_path / "keys.xyz", frames)
    found = prepared(
        tmp_path,
        heads(
            plain={},
            keyed={"energy_key": "E2"},
            mapped={"energy_key": "E2", "info_keys": {"energy": "E3"}, "arrays_keys": {"forces": "F3"}},
        ),
        f"--train_file={file}", "--energy_key=E1", "--forces_key=F1",
    )  # fmt: skip
    first = found.train_of("plain")[0]
    for head, energy, force in (("plain", 1, 2), ("keyed", 2, 2), ("mapped", 3, 4)):
        configuration = found.train_of(head)[0]
        assert configuration.index == first.index and configuration.head == head
        original = frames[configuration.index]
        assert configuration.energy == pytest.approx(original.info["REF_energy"] + 300.0 * energy)
        np.testing.assert_allclose(configuration.forces, original.arrays["REF_forces"] * force)
    shifts = [np.array(head.reference_energies) for head in found.plan.heads]
    np.testing.assert_allclose(shifts[2] - shifts[0], 200.0)


def test_a_head_has_its_own_units_fraction_weights_and_isolated_atoms(tmp_path: Path, low: Path, high: Path) -> None:
    frames = at_level(read(high, ":"), 1.0, 0.0)
    for place, atoms in enumerate(frames):
        atoms.info["REF_energy"] /= ENERGY_UNITS["Hartree"]
        atoms.arrays["REF_forces"] /= ENERGY_UNITS["Hartree"]
        if place % 2 and len(atoms) > 1:
            atoms.info["config_type"] = "odd"
    file = write_frames(tmp_path / "hartree.xyz", frames)
    of_head = {
        "train_file": file, "energy_unit": "Ha", "valid_fraction": 0.5, "keep_isolated_atoms": True,
        "config_type_weights": {"odd": 3.0}, "weight": 2.0,
    }  # fmt: skip
    found = prepared(tmp_path, heads(low={"train_file": low}, high=of_head), "--config_type_weights={'Default': 5.0}")
    assert {name: len(valid) for name, valid in found.valid.items()} == {"low": 1, "high": 4}
    assert found.sampling.sizes == {"low": 11, "high": 4 + 2}
    expected = {atoms.info["REF_energy"] for atoms in read(high, ":")}
    assert all(min(abs(energy - each) for each in expected) < 1e-8 for energy in energies(found, "high"))
    assert {c.weight for c in found.train_of("low")} == {5.0}
    odd = {(c.config_type, c.weight) for c in [*found.train_of("high"), *found.valid["high"]]}
    assert odd == {("odd", 6.0), ("Default", 2.0), ("IsolatedAtom", 2.0)}
    text = prepared(
        tmp_path, heads(low={"train_file": low}, high={**of_head, "config_type_weights": "{'odd': 3.0}"})
    )  # as the original wants it
    assert [c.weight for c in text.train_of("high")] == [c.weight for c in found.train_of("high")]


def test_a_head_has_its_own_scale_and_shift(tmp_path: Path, low: Path, high: Path) -> None:
    def found(**tables: Any) -> dict[str, tuple[float, float]]:
        given = {name: {"train_file": file, **tables.get(name, {})} for name, file in (("low", low), ("high", high))}
        return constants(prepared(tmp_path, SCALED, heads(**given)))

    def alone(file: Path, *flags: str) -> tuple[float, float]:
        return constants(prepared(tmp_path, SCALED, f"--train_file={file}", *flags))["Default"]

    assert found() == {"low": alone(low), "high": alone(high)}
    assert found(high={"scaling": "std_scaling"}) == {"low": alone(low), "high": alone(high, "--scaling=std_scaling")}
    assert found(low={"mean": 0.5, "std": 3.0}) == {"low": (3.0, 0.5), "high": alone(high)}
    assert found(high={"scaling": "no_scaling"})["high"] == (1.0, 0.0)


@pytest.mark.parametrize(
    "loss",  # the others are tried in units/training/test_head_losses.py too
    [
        *("weighted", "universal"),
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("forces_only", "virials", "stress", "huber", "l1l2energyforces")
        ),
    ],
)
def test_every_loss_obeys_the_weight_of_a_head(tmp_path: Path, loss: str) -> None:
    """In training and in validation, and so in the choice of the best model."""
    files = {
        name: write_frames(tmp_path / f"{name}.xyz", copper(count, count)) for name, count in (("few", 3), ("many", 5))
    }
    flags = (f"--loss={loss}", "--stress_weight=10", "--E0s={29: 0.0}", "--batch_size=100", "--max_num_epochs=1")
    losses: list[dict[str, float]] = []
    for place, weights in enumerate(({"few": 1, "many": 1}, {"few": 3, "many": 1}, {"few": 3, "many": 2})):
        given = heads(**{name: {"train_file": file, "weight": weights[name]} for name, file in files.items()})
        run = train(tmp_path / str(place), None, given, *flags)
        first = [record for record in run.records if record["epoch"] is None]
        losses.append({record["head"]: record["loss"] for record in first})
        (step,) = (record["loss"] for record in run.records if record["mode"] == "opt")
        losses[-1]["training"] = step
        shares = {"few": 2 / 6, "many": 4 / 6}
        last = {record["head"]: record["loss"] for record in run.records if record["mode"] == "eval"}
        judged = sum(share * last[name] for name, share in shares.items())
        assert run.last_state()["progression"]["lowest_loss"] == pytest.approx(judged)
    plain, few, both = losses
    assert (few["few"], few["many"]) == pytest.approx((3 * plain["few"], plain["many"]))
    assert (both["few"], both["many"]) == pytest.approx((3 * plain["few"], 2 * plain["many"]))
    # of the first batch, which has all structures: few * 1 + many, few * 3 + many, few * 3 + many * 2
    of_few = (few["training"] - plain["training"]) / 2
    of_many = both["training"] - few["training"]
    assert of_few > 0 and plain["training"] == pytest.approx(of_few + of_many)


def test_one_average_number_of_neighbors_is_that_of_all_structures(tmp_path: Path, low: Path, high: Path) -> None:
    given = heads(low={"train_file": low}, high={"train_file": high})
    found = prepared(tmp_path, given, "--r_max=1.2")
    pairs = atoms = 0
    for configuration in (*found.train_of("low"), *found.train_of("high")):
        distances = np.linalg.norm(configuration.positions[:, None] - configuration.positions, axis=-1)
        close = (distances < 1.2) & (distances > 0)
        pairs, atoms = pairs + close.sum(), atoms + close.any(1).sum()
    assert found.plan.avg_num_neighbors == pytest.approx(pairs / atoms)


@pytest.mark.parametrize("flags", [("--heads=low,high",), ("--head_key=head",), ("--heads={'low': {}, 'high': None}",)])
def test_structures_of_one_file_go_to_the_head_they_name(
    tmp_path: Path, low: Path, high: Path, flags: tuple[str, ...]
) -> None:
    frames = [(atoms, "low") for atoms in read(low, ":")] + [(atoms, "high") for atoms in read(high, ":")]
    order = np.random.default_rng(0).permutation(len(frames) - 1) + 1  # the first one names the first head
    for atoms, name in frames:
        atoms.info["head"] = name
    both = write_frames(tmp_path / "both.xyz", [frames[place][0] for place in (0, *order)])
    found = prepared(tmp_path, f"--train_file={both}", *flags, "--valid_fraction=0.2")
    expected = prepared(tmp_path, heads(low={"train_file": low}, high={"train_file": high}), "--valid_fraction=0.2")
    for name in ("low", "high"):
        members = [
            sorted([*energies(each, name), *(c.energy or 0 for c in each.valid[name])]) for each in (found, expected)
        ]
        assert members[0] == pytest.approx(members[1])
        assert {c.head for c in found.train_of(name)} == {name}
    before, after = (each.plan.heads for each in (expected, found))
    assert [head.reference_energies for head in before] == [head.reference_energies for head in after]


def test_the_entry_that_names_heads_can_be_another(tmp_path: Path, low: Path, high: Path) -> None:
    frames = at_level(read(low, ":"), 1, 0, level="a") + at_level(read(high, ":"), 1, 0, level="b")
    for atoms in frames:
        atoms.info["head"] = "something else"
    both = write_frames(tmp_path / "both.xyz", frames)
    found = prepared(tmp_path, f"--train_file={both}", "--head_key=level")
    assert found.plan.head_names == ("a", "b") and found.sampling.sizes == {"a": 11, "b": 7}


def test_files_of_a_head_may_be_lists_patterns_and_tables(tmp_path: Path, low: Path) -> None:
    for place in range(3):
        write_frames(tmp_path / f"part{place}.xyz", water(4, 10 + place))
    frames = water(4, 20)
    for atoms in frames:
        atoms.info["E"] = atoms.info.pop("REF_energy")
    table = {"file": str(write_frames(tmp_path / "table.xyz", frames)), "energy_key": "E"}
    found = prepared(
        tmp_path,
        heads(low={"train_file": low}, high={"train_file": [tmp_path / "part*.xyz", table], "E0s": {1: 3, 8: 4}}),
        "--valid_fraction=0.25",
    )  # fmt: skip
    assert found.sampling.sizes == {"low": 9, "high": 12} and np.isfinite(energies(found, "high")).all()
    used = {c.file for c in [*found.train_of("high"), *found.valid["high"]]}
    assert used == {str(tmp_path / name) for name in ("part0.xyz", "part1.xyz", "part2.xyz", "table.xyz")}


def test_files_of_a_head_may_be_folders_lists_and_databases(tmp_path: Path, low: Path) -> None:
    """Test sets too: a folder in ``--test_dir`` is one set, whatever its parts are called."""
    files = ["parts/a.xyz", "parts/b.xyz", "tests/hot/0.xyz", "tests/hot/1.xyz", "tests/cold.xyz"]
    for place, name in enumerate(files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_frames(tmp_path / name, water(4, 10 + place))
    with connect(tmp_path / "tests" / "lmdb.aselmdb", type="aselmdb") as database:
        for atoms in water(3, 30):
            data = {**atoms.info, "REF_forces": atoms.arrays.pop("REF_forces")}
            database.write(atoms, data=data)
    parts = f"{tmp_path / 'parts' / 'a.xyz'}:{tmp_path / 'parts' / 'b.xyz'}"
    E0s = {1: 3, 8: 4}
    for given in (str(tmp_path / "parts"), parts, str(tmp_path / "part*"), [{"file": parts}]):
        high = {"train_file": given, "test_dir": str(tmp_path / "tests"), "E0s": E0s}
        found = prepared(tmp_path, heads(low={"train_file": low}, high=high), "--valid_fraction=0.25")
        assert found.sampling.sizes == {"low": 9, "high": 6}
        sizes = {name: len(tests) for name, tests in found.tests.items()}
        assert sizes == {"cold_high": 4, "hot_high": 8, "lmdb_high": 3}
    write_frames(tmp_path / "tests" / "hot.xyz", water(2))
    with pytest.raises(UserError, match="tests/hot and .*tests/hot.xyz would both be the test set hot; rename"):
        prepared(tmp_path, f"--train_file={low}", f"--test_dir={tmp_path / 'tests'}")


def test_structures_of_hdf5_go_to_the_head_of_their_file_and_to_the_one_they_name(tmp_path: Path, low: Path) -> None:
    frames = water(6, 9)
    for folder, named in [("own", ""), ("both", "level")]:
        (tmp_path / folder).mkdir()
        with h5py.File(tmp_path / folder / "train_0.h5", "w") as file:
            for place, atoms in enumerate(frames):
                group = file.create_group(f"config_batch_0/config_{place}")
                arrays = {"atomic_numbers": atoms.numbers, "positions": atoms.positions, "cell": "None", "pbc": "None"}
                for key, value in {**arrays, "weight": 1.0, "config_type": "Default"}.items():
                    group[key] = value
                head = ("low", "high")[place % 2] if named else ""
                labels = {"energy": -1.0 - place, "forces": atoms.arrays["REF_forces"], "head": head, "stress": "None"}
                for key, value in labels.items():
                    group[f"properties/{key}"], group[f"property_weights/{key}"] = value, float(key != "stress")
    own = {"train_file": tmp_path / "own", "E0s": {1: 3, 8: 4}}
    flags = ("--head_key=level", "--valid_fraction=0.2", "--energy_key=REF_energy")
    found = prepared(tmp_path, heads(low={"train_file": low}, high=own), *flags)
    assert found.sampling.sizes == {"low": 10, "high": 5}
    assert set(energies(found, "high")) <= {-1.0 - place for place in range(6)}
    found = prepared(tmp_path, f"--train_file={tmp_path / 'both'}", "--E0s={1: 3, 8: 4}", *flags)
    assert found.plan.head_names == ("low", "high")
    assert {c.energy for c in [*found.train_of("low"), *found.valid["low"]]} == {-1.0, -3.0, -5.0}
    assert {c.energy for c in [*found.train_of("high"), *found.valid["high"]]} == {-2.0, -4.0, -6.0}


def test_tests_of_each_head_and_of_all(tmp_path: Path, low: Path, high: Path) -> None:
    own = write_frames(tmp_path / "own.xyz", water(3, 5))
    frames = water(5, 6)
    for place, atoms in enumerate(frames):
        atoms.info["head"] = ("low", "high")[place % 2]
    folder = tmp_path / "tests"
    folder.mkdir()
    write_frames(folder / "cold.xyz", frames)
    shared = write_frames(tmp_path / "shared.xyz", frames)
    given: dict[str, dict[str, Any]] = {"low": {"train_file": low}, "high": {"train_file": high}}
    found = prepared(tmp_path, heads(**given), f"--test_file={shared}", f"--test_dir={folder}")
    sizes = {name: len(tests) for name, tests in found.tests.items()}
    assert sizes == {"Default_low": 3, "cold_low": 3, "Default_high": 2, "cold_high": 2}
    assert all({c.head for c in tests} == {name.split("_")[1]} for name, tests in found.tests.items())
    given["high"]["test_file"] = own
    given["low"]["test_dir"] = folder  # all of its structures are then of this head
    found = prepared(tmp_path, heads(**given))
    assert {name: len(tests) for name, tests in found.tests.items()} == {"Default_high": 3, "cold_low": 5}
    assert {c.file for c in found.tests["Default_high"]} == {str(own)}


def test_elements_of_one_head_and_elements_of_none(tmp_path: Path, low: Path) -> None:
    """Every head has an energy of every element of the model, its own where it has a structure with it."""
    sulfide = water(6, 3)
    for atoms in sulfide:
        atoms.numbers[atoms.numbers == 8] = 16
    file = write_frames(tmp_path / "sulfide.xyz", sulfide)
    own = {"H": -1.0, "S": -2.0, "O": -3.0}
    given = heads(low={"train_file": low}, high={"train_file": file, "E0s": own})
    found = prepared(tmp_path, given)
    assert found.plan.atomic_numbers == (1, 8, 16)
    first, second = found.plan.heads
    assert second.reference_energies == (-1.0, -3.0, -2.0) and first.reference_energies[2] == -2.0
    of_low = {int(atoms.numbers[0]): atoms.info["REF_energy"] for atoms in read(low, ":2")}
    assert first.reference_energies[:2] == pytest.approx((of_low[1], of_low[8]))
    found = prepared(tmp_path, given, "--atomic_numbers=[1, 8, 16]")
    assert [head.reference_energies for head in found.plan.heads] == [(*of_low.values(), -2.0), (-1.0, -3.0, -2.0)]


def test_a_single_head_with_a_name_is_a_model_without_heads(tmp_path: Path, low: Path) -> None:
    named = train(tmp_path / "named", None, heads(dft={"train_file": low}))
    plain = train(tmp_path / "plain", low)
    assert same(named.weights(), plain.weights())
    plans = [load_model(run.folder / "tiny.model").model.plan for run in (named, plain)]
    assert plans[0] == plans[1] and not plans[0].heads


def test_the_name_of_the_head_of_replay_is_no_other_without_a_foundation_model(tmp_path: Path, low: Path) -> None:
    assert not prepared(tmp_path, heads(pt_head={"train_file": low})).plan.heads


def test_heads_with_conditions(tmp_path: Path) -> None:
    files = {}
    for seed, (name, key) in enumerate((("low", "total_charge"), ("high", "q"))):
        frames = water(6, seed)
        for place, atoms in enumerate(frames):
            atoms.info[key] = place % 2
        files[name] = write_frames(tmp_path / f"{name}.xyz", isolated_atoms() + frames)
    specs = "{'total_charge': {'type': 'categorical', 'per': 'graph', 'num_classes': 3, 'emb_dim': 4, 'offset': 1}}"
    given = heads(
        low={"train_file": files["low"]}, high={"train_file": files["high"], "info_keys": {"total_charge": "q"}}
    )
    run = train(tmp_path, None, given, f"--embedding_specs={specs}", "--valid_fraction=0.3")
    found = prepared(tmp_path / "again", given, f"--embedding_specs={specs}")
    for name in files:
        assert {float(c.conditions["total_charge"][0]) for c in found.train_of(name)} == {0.0, 1.0}
    plan = load_model(run.folder / "tiny.model").model.plan
    assert plan.head_names == ("low", "high") and plan.conditions


def test_heads_with_dipoles_have_their_own_reference_energies(tmp_path: Path, low: Path) -> None:
    """And nothing else, which is said."""
    frames = read(low, ":")
    for atoms in frames:
        atoms.info["REF_dipole"] = np.zeros(3) if len(atoms) == 1 else atoms.positions[0] - atoms.positions[1:].mean(0)
    one = write_frames(tmp_path / "one.xyz", frames)
    two = write_frames(tmp_path / "two.xyz", at_level(frames, 1.0, 100.0))
    flags = ("--model=EnergyDipolesMACE", "--loss=energy_forces_dipole", "--MLP_irreps=4x0e + 4x1o", "--lr=0.02")
    run = train(tmp_path, None, heads(one={"train_file": one}, two={"train_file": two}), *flags, "--max_num_epochs=4")
    assert run.said("WARNING: --model=EnergyDipolesMACE: its heads share all weights, .* reference energies only")
    evaluations = [record for record in run.records if record["mode"] == "eval"]
    first, second = ([record for record in evaluations if record["head"] == name] for name in ("one", "two"))
    for error in ("rmse_mu_per_atom", "rmse_e_per_atom"):
        assert [record[error] for record in first] == pytest.approx([record[error] for record in second], rel=1e-6)
    assert first[-1]["rmse_mu_per_atom"] < 0.7 * first[0]["rmse_mu_per_atom"]


def test_all_forms_of_heads_are_one(tmp_path: Path) -> None:
    own = {"train_file": ["a.xyz", "b.xyz"], "E0s": {"H": -0.5, "8": -1}, "keep_isolated_atoms": True}
    table = {"pbe-d3": own, "2": {"weight": 2.5}}
    lines = ("train_file: [a.xyz, b.xyz]", "E0s: {H: -0.5, 8: -1}", "keep_isolated_atoms: yes")
    text = "\n".join(["", "  pbe-d3:", *[f"    {line}" for line in lines], "  2:", "    weight: 2.5", ""])
    (tmp_path / "run.yaml").write_text(f"heads:{text}")
    (tmp_path / "heads.yaml").write_text(text)
    (tmp_path / "heads.json").write_text(json.dumps(table))
    (tmp_path / "run.json").write_text(json.dumps({"heads": table}))
    quoted = {**table, "pbe-d3": {**own, "E0s": "{1: -0.5, 8: -1}"}}
    forms = [
        f"--heads={table}", f"--heads={json.dumps(table)}", f"--config={tmp_path / 'run.yaml'}", f"--heads={quoted}",
        f"--heads={tmp_path / 'heads.yaml'}", f"--heads={tmp_path / 'heads.json'}", f"--config={tmp_path / 'run.json'}",
    ]  # fmt: skip
    read_heads = [parse_training_settings(["--name=a", "--train_file=c.xyz", form]).heads for form in forms]
    assert all(each == read_heads[0] for each in read_heads)
    assert read_heads[0] is not None and list(read_heads[0]) == ["pbe-d3", "2"]
    assert read_heads[0]["pbe-d3"].E0s == {1: -0.5, 8: -1.0} and read_heads[0]["2"].weight == 2.5
    saved = parse_training_settings(["--name=a", "--train_file=c.xyz", forms[0]])
    assert type(saved).model_validate_json(saved.model_dump_json()) == saved
