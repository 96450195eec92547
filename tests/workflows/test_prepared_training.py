"""Is a run from prepared sets the run from the files that they were made of, to the last bit, whatever it does?"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import original_files
import pytest
import torch
from ase import Atoms
from ase.io import read
from killed_runs import Trainers
from rich.console import Console
from training_runs import (
    QUICK,
    TINY_MODEL,
    Run,
    at_level,
    copper,
    isolated_atoms,
    same,
    train,
    untimed,
    water,
    write_frames,
)

from mace.cli import check_data, eval_configs, fine_tuning_select, preprocess_data, quickstart
from mace.errors import UserError
from mace.packing import folder as packing_folder
from mace.runs.run import run_training
from mace.settings import parse_training_settings
from mace.structures import prepared
from mace.training.batch_step import BatchStep
from mace.training.checkpoints import load_safely


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sets of a dozen structures have several shards."""
    monkeypatch.setattr(packing_folder, "STRUCTURES_IN_A_PART", 5)


def molecules(count: int = 14, seed: int = 0) -> list[Atoms]:
    """Water molecules of two types, some with weights, and the isolated atoms."""
    frames = isolated_atoms() + water(count, seed)
    for number, atoms in enumerate(frames[2:]):
        atoms.info["config_type"] = ("gas", "cluster")[number % 3 == 0]
        if number % 4 == 1:
            atoms.info["config_weight"] = 0.3
        if number % 5 == 2:
            atoms.info["config_forces_weight"] = 2.0
    return frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "train.xyz", molecules())


def prepare(folder: Path, *flags: str, r_max: float = 3.0) -> Path:
    """Write prepared sets, as the command does, and return their folder."""
    given = [
        f"--h5_prefix={folder}/",
        f"--r_max={r_max}",
        f"--work_dir={folder}",
        "--num_process=1",
        "--log_level=WARNING",
        *flags,
    ]
    preprocess_data.run(given)
    return folder


def assert_same_runs(one: Run, other: Run, but: tuple[str, ...] = ()) -> None:
    """Compare records, error tables, states and weights, bit for bit."""
    assert [untimed(record) for record in one.records] == [untimed(record) for record in other.records]
    assert same(one.weights(), other.weights())
    states = [run.last_state() for run in (one, other)]
    for part in ("weights", "optimizer", "average", "best", "progression"):
        assert part in but or same(states[0][part], states[1][part]), part
    rows = [[line for line in run.log.splitlines() if line.startswith("|")] for run in (one, other)]
    assert len(rows[0]) > 4 and rows[0] == rows[1][-len(rows[0]) :]  # after those of an attempt before


STAGES = ("--swa", "--start_swa=1", "--ema", "--lbfgs", "--lbfgs_steps=2")


@pytest.mark.parametrize("workers", [0, 4])
def test_a_set_in_place_of_its_file(tmp_path: Path, file: Path, workers: int) -> None:
    """Split in the run, with weights of types, isolated atoms to train on, all stages, and a test set."""
    test = write_frames(tmp_path / "test.xyz", molecules(5, seed=4)[2:])
    sets = prepare(tmp_path / "sets", f"--train_file={file}", f"--valid_file={test}", f"--test_file={test}")
    flags = (
        "--valid_fraction=0.3", '--config_type_weights={"cluster": 3.0, "IsolatedAtom": 0.7}', "--E0s=average",
        "--keep_isolated_atoms=True", *STAGES,
    )  # fmt: skip
    in_memory = train(tmp_path / "memory", file, *flags, f"--test_file={test}")
    on_disk = train(
        tmp_path / "disk", sets / "train", *flags, f"--num_workers={workers}", f"--test_dir={sets / 'test'}"
    )
    assert_same_runs(in_memory, on_disk)
    assert on_disk.said("Split Training set") and not on_disk.said("Neighbors of")


@pytest.mark.parametrize("workers", [0, 4])
def test_a_set_that_was_split_when_it_was_prepared(tmp_path: Path, file: Path, workers: int) -> None:
    """The structures set aside then are those that a run would set aside; the others are trained on."""
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7")
    on_disk = train(
        tmp_path / "disk", sets / "train", f"--valid_file={sets / 'val'}", f"--num_workers={workers}", "--ema"
    )
    assert_same_runs(train(tmp_path / "memory", file, "--valid_fraction=0.3", "--ema"), on_disk)


def test_weights_of_types_given_when_it_was_prepared(tmp_path: Path, file: Path) -> None:
    weights = '--config_type_weights={"cluster": 3.0, "Default": 0.5}'
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", weights)
    given = (f"--valid_file={sets / 'val'}", "--max_num_epochs=1")
    assert_same_runs(
        train(tmp_path / "memory", file, "--valid_fraction=0.3", "--max_num_epochs=1", weights),
        train(tmp_path / "disk", sets / "train", *given),
    )
    others = '--config_type_weights={"cluster": 1.0, "gas": 1.0}'  # says that all are one
    assert_same_runs(
        train(tmp_path / "memory1", file, "--valid_fraction=0.3", "--max_num_epochs=1"),
        train(tmp_path / "disk1", sets / "train", *given, others),
    )


@pytest.mark.parametrize(
    "given", [["--neighbors=False"], ["--neighbors=False", "--compute_statistics"], ["--r_max=2.0"]]
)
def test_neighbors_that_are_not_stored(tmp_path: Path, file: Path, given: list[str]) -> None:
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", *given)
    on_disk = train(tmp_path / "disk", sets / "train", f"--valid_file={sets / 'val'}", "--num_workers=2")
    assert_same_runs(train(tmp_path / "memory", file, "--valid_fraction=0.3"), on_disk)
    assert on_disk.said("they are searched now to be counted") is (len(given) == 1)


def test_sets_beside_files(tmp_path: Path) -> None:
    """Several files, some of them prepared, in their order; with cells, stress, and another type of loss."""
    frames = [isolated_atoms(["Cu"]) + copper(6), copper(5, seed=1), copper(4, seed=2)]
    files = [write_frames(tmp_path / f"{number}.xyz", each) for number, each in enumerate(frames)]
    sets = prepare(tmp_path / "sets", f"--train_file={files[0]}", f"--valid_file={files[2]}")
    other = prepare(tmp_path / "other", f"--train_file={files[2]}", "--E0s=average", f"--valid_file={files[1]}")
    flags = ("--loss=universal", "--compute_stress=True", "--valid_fraction=0.2", "--max_num_epochs=1")
    in_memory = train(tmp_path / "memory", None, f"--train_file={':'.join(map(str, files))}", *flags)
    mixed = f"{sets / 'train'}:{files[1]}:{other / 'train'}"
    assert_same_runs(in_memory, train(tmp_path / "disk", None, f"--train_file={mixed}", *flags))


def heads(**tables: Any) -> str:
    return f"--heads={json.dumps(tables, default=str)}"


def test_heads_with_sets_of_their_own(tmp_path: Path, file: Path) -> None:
    other = write_frames(tmp_path / "other.xyz", at_level(isolated_atoms() + water(9, 1), 2.0, -40.0))
    flags = ("--valid_fraction=0.3", "--max_num_epochs=1")
    files, sets = {"low": file, "high": other}, dict[str, Path]()
    for name, path in files.items():
        sets[name] = prepare(tmp_path / name, f"--train_file={path}", "--valid_fraction=0.3", "--seed=7")
    in_memory = heads(**{name: {"train_file": path} for name, path in files.items()})
    on_disk = heads(
        **{name: {"train_file": folder / "train", "valid_file": folder / "val"} for name, folder in sets.items()}
    )
    one = train(tmp_path / "memory", None, in_memory, *flags, "--model=ScaleShiftMACE")
    for workers in (0, 3):
        two = train(
            tmp_path / f"disk{workers}", None, on_disk, *flags, "--model=ScaleShiftMACE", f"--num_workers={workers}"
        )
        assert_same_runs(one, two)


def test_heads_that_structures_name(tmp_path: Path) -> None:
    """One file of which each structure names its head, prepared as such, in one set."""
    frames = [*isolated_atoms(), *water(9), *at_level(isolated_atoms() + water(7, 1), 2.0, -40.0)]
    for number, atoms in enumerate(frames):
        atoms.info["head"] = "low" if number < 11 else "high"
    mixed = [frames[place] for place in np.random.default_rng(0).permutation(len(frames))]
    file = write_frames(tmp_path / "train.xyz", mixed)
    valid = write_frames(
        tmp_path / "valid.xyz", [atoms for atoms in mixed if atoms.info.get("config_type") is None][:6]
    )
    given = (heads(low={}, high={}), "--model=ScaleShiftMACE", "--max_num_epochs=1")
    sets = prepare(tmp_path / "sets", f"--train_file={file}", f"--valid_file={valid}", given[0])
    one = train(tmp_path / "memory", file, f"--valid_file={valid}", *given)
    two = train(tmp_path / "disk", sets / "train", f"--valid_file={sets / 'val'}", *given, "--num_workers=2")
    assert_same_runs(one, two)
    by_key = ("--head_key=head", *given[1:])
    assert_same_runs(
        train(tmp_path / "memory-key", file, f"--valid_file={valid}", *by_key),
        train(tmp_path / "disk-key", sets / "train", f"--valid_file={sets / 'val'}", *by_key),
    )


def test_dipoles_with_charges(tmp_path: Path) -> None:
    frames = water(10)
    for atoms in frames:
        atoms.arrays["my_charges"] = np.array([{"O": -0.8, "H": 0.4}[symbol] for symbol in atoms.symbols])
        atoms.info["my_dipole"] = atoms.arrays["my_charges"] @ atoms.positions
    file = write_frames(tmp_path / "train.xyz", isolated_atoms() + frames)
    keys = ("--dipole_key=my_dipole", "--charges_key=my_charges")
    model = ("--model=EnergyDipolesMACE", "--loss=energy_forces_dipole", "--error_table=EnergyDipoleRMSE")
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", *keys, *model)
    one = train(tmp_path / "memory", file, "--valid_fraction=0.3", *keys, *model)
    two = train(tmp_path / "disk", sets / "train", f"--valid_file={sets / 'val'}", *model)
    assert_same_runs(one, two)
    assert two.said("Charges of 10 structures enter their dipoles")
    with pytest.raises(UserError, match="--dipole_key=other is given, but this set was prepared with other keys"):
        train(tmp_path / "other", sets / "train", f"--valid_file={sets / 'val'}", *model, "--dipole_key=other")


def test_a_model_that_depends_on_conditions(tmp_path: Path) -> None:
    frames = water(10)
    for number, atoms in enumerate(frames):
        atoms.info |= {"charge": number % 3 - 1, "total_spin": 1 + number % 2}
    file = write_frames(tmp_path / "train.xyz", isolated_atoms() + frames)
    specs = {
        "total_charge": {
            "type": "categorical",
            "num_classes": 5,
            "per": "graph",
            "in_dim": 1,
            "emb_dim": 4,
            "offset": 2,
        },
        "total_spin": {"type": "categorical", "num_classes": 3, "per": "graph", "in_dim": 1, "emb_dim": 4},
    }
    both = ("--total_charge_key=charge", f"--embedding_specs={json.dumps(specs)}")
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", *both)
    disk = (f"--valid_file={sets / 'val'}", "--max_num_epochs=1", "--keep_isolated_atoms=True")
    memory = ("--valid_fraction=0.3", "--max_num_epochs=1", "--keep_isolated_atoms=True")
    for number, names in enumerate((("total_charge", "total_spin"), ("total_spin", "total_charge"), ("total_charge",))):
        some = (both[0], f"--embedding_specs={json.dumps({name: specs[name] for name in names})}")
        one = train(tmp_path / f"memory{number}", file, *memory, *some)
        assert_same_runs(one, train(tmp_path / f"disk{number}", sets / "train", *disk, *some))
    few = {"total_charge": specs["total_charge"] | {"offset": 0, "num_classes": 2}}
    for where, given in ((file, memory), (sets / "train", disk)):
        with pytest.raises(
            UserError, match=r"structure 2: total_charge .*is -1, but the model knows values from 0 to 1"
        ):
            train(tmp_path / "few", where, *given, both[0], f"--embedding_specs={json.dumps(few)}")
    numbers = {"total_charge": {"type": "continuous", "per": "atom", "in_dim": 2, "emb_dim": 4}}
    with pytest.raises(UserError, match="was prepared without total_charge, .*, or in another form"):
        train(tmp_path / "few", sets / "train", *disk, both[0], f"--embedding_specs={json.dumps(numbers)}")
    without = prepare(tmp_path / "without", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7")
    with pytest.raises(UserError, match="was prepared without total_charge and total_spin, on which the model depends"):
        train(tmp_path / "without-run", without / "train", f"--valid_file={without / 'val'}", *both)


def test_a_foundation_model_with_another_cutoff(tmp_path: Path, file: Path, foundation: Path) -> None:
    sets = prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", r_max=2.0)
    flags = (f"--foundation_model={foundation}", "--multiheads_finetuning=False", "--max_num_epochs=1")
    one = tuned(tmp_path / "memory", file, "--valid_fraction=0.3", *flags)
    two = tuned(tmp_path / "disk", sets / "train", f"--valid_file={sets / 'val'}", *flags, "--num_workers=2")
    assert_same_runs(one, two)
    own = prepare(
        tmp_path / "own", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7", f"--foundation_model={foundation}"
    )
    three = tuned(tmp_path / "own-run", own / "train", f"--valid_file={own / 'val'}", *flags)
    assert_same_runs(one, three)
    assert two.said("they are searched now") and not three.said("they are searched now")
    estimated = (*flags, "--E0s=estimated")
    assert_same_runs(
        tuned(tmp_path / "memory-estimated", file, "--valid_fraction=0.3", *estimated),
        tuned(tmp_path / "disk-estimated", own / "train", f"--valid_file={own / 'val'}", *estimated),
    )


def tuned(folder: Path, file: Path, *flags: str) -> Run:
    """Fine-tune a model, of which no flag says what it is."""
    settings = parse_training_settings([*QUICK, f"--work_dir={folder}", f"--train_file={file}", *flags])
    run_training(settings, Console(file=io.StringIO(), width=200))
    return Run(settings, folder, "")


@pytest.fixture
def divided(tmp_path: Path, file: Path) -> Path:
    """Sets to train and validate on."""
    return prepare(tmp_path / "sets", f"--train_file={file}", "--valid_fraction=0.3", "--seed=7")


def of(sets: Path) -> tuple[Path, str]:
    """What names the sets in a training."""
    return sets / "train", f"--valid_file={sets / 'val'}"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["gone", "shorter", "another byte"])
def test_a_shard_that_breaks_in_an_epoch_ends_the_run_by_its_name(
    tmp_path: Path, divided: Path, monkeypatch: pytest.MonkeyPatch, workers: int, how: str
) -> None:
    """And once it is mended, the run goes on from its last state as if nothing had happened."""
    straight = train(tmp_path / "straight", *of(divided), "--max_num_epochs=4")
    shard = divided / "train" / "shard-00001.safetensors"
    whole, take, taken = shard.read_bytes(), BatchStep.take, [0]

    def breaking(step: BatchStep, *given: Any) -> Any:
        taken[0] += 1
        if taken[0] == 4:
            content = {"shorter": whole[:-9], "another byte": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]}
            shard.unlink() if how == "gone" else shard.write_bytes(content[how])
        return take(step, *given)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_OPEN_FILES", 1)
        patch.setattr(BatchStep, "take", breaking)
        faults = "cannot be read|is damaged|become shorter"
        with pytest.raises(UserError, match=f"shard-00001.safetensors: .*({faults})") as said:
            train(tmp_path / "broken", *of(divided), "--max_num_epochs=4", f"--num_workers={workers}")
    assert "\n" not in str(said.value) and "train.xyz: structure" in str(said.value)
    assert load_safely(tmp_path / "broken" / "checkpoints" / "tiny_run-7_last.pt")["progression"]["epoch"] in (1, 2)
    if how != "another byte":
        with pytest.raises(UserError, match="shard-00001.safetensors: this part .* (is missing|is damaged)"):
            train(tmp_path / "broken", *of(divided), "--max_num_epochs=4", "--restart_latest")
    shard.write_bytes(whole)
    assert_same_runs(
        straight,
        train(tmp_path / "broken", *of(divided), "--max_num_epochs=4", "--restart_latest", f"--num_workers={workers}"),
    )


def test_status_2_and_one_sentence(tmp_path: Path, divided: Path, trainers: Trainers) -> None:
    flags = [*TINY_MODEL, *QUICK, f"--train_file={divided / 'train'}", of(divided)[1]]
    shard = divided / "val" / "shard-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    assert trainers.run(tmp_path / "run", flags) == 2
    said = (tmp_path / "run" / "output").read_text()
    assert "Traceback" not in said and f"{shard}: this part of the prepared set is damaged" in said.replace("\n", "")
    shard.write_bytes(content)
    assert trainers.run(tmp_path / "run", flags) == 0


def test_a_set_that_has_changed_is_noticed(tmp_path: Path, file: Path, divided: Path) -> None:
    flags = ("--max_num_epochs=1",)
    train(tmp_path / "run", *of(divided), *flags)
    same_again = train(tmp_path / "run", *of(divided), "--max_num_epochs=2", "--restart_latest")
    assert not same_again.said("has changed on the disk")
    frames = molecules()
    frames[5].info["REF_energy"] += 0.01
    write_frames(file, frames)
    given = (f"--train_file={file}", "--valid_fraction=0.3", "--seed=7")
    with pytest.raises(UserError, match="a set made otherwise is there .*has changed"):
        prepare(divided, *given)
    prepare(divided, *given, "--overwrite")
    changed = train(tmp_path / "run", *of(divided), "--max_num_epochs=3", "--restart_latest")
    assert changed.said(rf"{divided / 'train'} has changed on the disk since the run was stopped")
    assert not changed.said(rf"{divided / 'val'} has changed")


def test_the_checks_of_the_data_say_the_same(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored when the set was prepared is judged anew for every run."""
    monkeypatch.setattr(packing_folder, "STRUCTURES_IN_A_PART", 1000)
    frames = molecules()
    frames += [frames[4].copy(), frames[5].copy()]
    frames[7].arrays["REF_forces"] *= 100.0
    frames[9].info["REF_energy"] += 50.0
    write_frames(file, frames)
    whole = prepare(tmp_path / "whole", f"--train_file={file}", f"--valid_file={write_water_only(tmp_path)}")
    reports = []
    for number, train_file in enumerate((file, whole / "train")):
        given = [f"--train_file={train_file}", f"--work_dir={tmp_path / str(number)}", "--r_max=3.0", "--E0s=average"]
        status = check_data.run([*given, "--json", str(tmp_path / f"{number}.json")])
        document = json.loads((tmp_path / f"{number}.json").read_text())
        reports.append((status, document["findings"], document["files"], document["reference_energies"]))
    assert reports[0][:2] == reports[1][:2] and len(reports[0][1]) >= 2
    assert reports[0][2:] == reports[1][2:]


def write_water_only(folder: Path) -> Path:
    return write_frames(folder / "others.xyz", water(5, seed=8))


def test_a_dry_run(tmp_path: Path, divided: Path, file: Path) -> None:
    """Says the same of model and epochs, besides what a clock says."""
    in_memory = train(tmp_path / "memory", file, "--valid_fraction=0.3", "--dry_run").shown
    on_disk = train(tmp_path / "disk", *of(divided), "--dry_run").shown
    told = [
        [line for line in shown.splitlines() if line.startswith("|") and "time" not in line and "memory" not in line]
        for shown in (in_memory, on_disk)
    ]
    assert len(told[0]) > 5 and told[0] == told[1]


def test_quickstart(tmp_path: Path, divided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart.run([str(divided / "train"), "--yes"])
    written = (tmp_path / "train.yaml").read_text()
    assert f"train_file: {divided / 'train'}" in written


def test_structures_are_selected_from_files_only(tmp_path: Path, divided: Path, foundation: Path) -> None:
    given = ["--configs_pt", str(divided / "train"), "--num_samples=3", "--filtering_type=none"]
    with pytest.raises(UserError, match=f"{divided / 'train'}: structures are selected with all that their files hold"):
        fine_tuning_select.run([*given, f"--model={foundation}", f"--output={tmp_path / 'selected.xyz'}"])


@pytest.fixture
def foundation(tmp_path: Path) -> Path:
    return original_files.write_original(tmp_path / "old.model", original_files.tree_of(original_files.model()))


def test_predictions_of_structures_in_a_set(tmp_path: Path, divided: Path, file: Path) -> None:
    """Those of the same structures in their file."""
    run = train(tmp_path / "run", *of(divided), "--max_num_epochs=1")
    found = []
    for number, configs in enumerate((file, divided / "train", divided / "val")):
        output = tmp_path / f"predicted-{number}.xyz"
        eval_configs.run([f"--model={run.folder / 'tiny.model'}", f"--configs={configs}", f"--output={output}"])
        found.append({round(float(a.info["REF_energy"]), 7): a for a in read(output, ":") if len(a) == 3})
    in_sets = found[1] | found[2]
    assert len(in_sets) == len(found[0]) == 14
    for label, atoms in found[0].items():
        np.testing.assert_allclose(in_sets[label].arrays["MACE_forces"], atoms.arrays["MACE_forces"], atol=1e-7)
        assert in_sets[label].info["MACE_energy"] == pytest.approx(atoms.info["MACE_energy"], abs=1e-7)


KILLED = -9


@pytest.fixture(scope="module")
def trainers() -> Iterator[Trainers]:
    with Trainers() as program:
        yield program


def kill_and_compare(trainers: Trainers, sets: Path, folder: Path, kills: list[dict[str, Any]], *flags: str) -> int:
    """Train once without and once with kills, each resumed from the sets, and compare all that is left."""
    files = (f"--train_file={sets / 'train'}", f"--valid_file={sets / 'val'}", "--num_workers=2", "--batch_size=2")
    given = [*TINY_MODEL, *QUICK, *files, "--checkpoint_minutes=0", "--restart_latest", *flags]
    count = 0
    assert trainers.run(folder / "straight", given) == 0, (folder / "straight" / "output").read_text()
    for kill in [*kills, {}]:
        status = trainers.run(folder / "killed", given, **kill)
        assert status in ((0, KILLED) if kill else (0,)), (folder / "killed" / "output").read_text()
        count += status == KILLED
    settings = parse_training_settings(given)
    assert_same_runs(*(Run(settings, folder / name, "") for name in ("straight", "killed")))
    return count


def test_killed_in_an_epoch(tmp_path: Path, divided: Path, trainers: Trainers) -> None:
    kills: list[dict[str, Any]] = [{"at": "step", "count": 3}, {"at": "half written", "count": 4}]
    assert kill_and_compare(trainers, divided, tmp_path, kills, "--ema") == 2


@pytest.mark.slow
def test_killed_at_twenty_instants(tmp_path: Path, divided: Path, trainers: Trainers) -> None:
    rng = np.random.default_rng(0)
    kills: list[dict[str, Any]] = []
    for number in range(20):
        event = ("step", "evaluate", "half written", "replace")[number % 4]
        kills.append({"at": event, "count": int(rng.integers(1, 4))})
    assert kill_and_compare(trainers, divided, tmp_path, kills, *STAGES, "--max_num_epochs=8") >= 15


def test_two_processes(tmp_path: Path, file: Path, divided: Path) -> None:
    """Each reads its share of every step; together they are as one process with batches of twice the size."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    flags = [*TINY_MODEL, *QUICK, "--ema", "--max_num_epochs=2"]
    program = "import sys; from mace.cli.run_train import main; main()"
    started = []
    for rank in range(2):
        given = [f"--train_file={divided / 'train'}", of(divided)[1], "--batch_size=2", "--num_workers=2"]
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, *flags, *given, f"--work_dir={tmp_path / 'two'}"]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    one = train(tmp_path / "one", file, "--valid_fraction=0.3", "--ema", "--batch_size=4")
    try:
        said = [process.communicate(timeout=240.0)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    two = Run(one.settings, tmp_path / "two", "")
    for mine, theirs in zip(one.records, two.records, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
    for name, value in one.weights().items():
        torch.testing.assert_close(value, two.weights()[name], rtol=1e-10, atol=1e-10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port
