"""Are files evaluated part by part as if they were read at once, whatever their format?"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.db import connect

from mace.cli import eval_configs, preprocess_data
from mace.errors import UserError
from mace.evaluation import evaluation, inputs
from mace.evaluation.comparison import Comparison
from mace.formats.reading import iterate_frames
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan
from mace.structures.configuration import Configuration

N_STRUCTURES = 23


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    plan = ModelPlan(
        model="MACE",
        r_max=3.0,
        l_max=1,
        n_channels=2,
        hidden_l=(0,),
        interactions=(InteractionPlan(residual=False),),
        correlation=(2,),
        radial_mlp=(4,),
        avg_num_neighbors=3.0,
        atomic_numbers=(1, 6, 8),
        reference_energies=(-13.0, -1000.0, -2000.0),
    )
    made = MACE(plan, torch.float64).initialize(torch.Generator().manual_seed(3))
    return save_model(tmp_path_factory.mktemp("model") / "small.model", made)


def molecules() -> list[Atoms]:
    """Structures of which the first few have labels under other keys than the rest, isolated atoms among them."""
    frames = []
    for place in range(N_STRUCTURES):
        atoms = Atoms("O") if place % 7 == 3 else ase.build.molecule(("H2O", "CH3OH", "CO2")[place % 3])
        atoms.rattle(0.02, seed=place)
        atoms.info["config_type"] = "IsolatedAtom" if len(atoms) == 1 else f"kind{place % 2}"
        atoms.info["note"] = f"number {place}"
        atoms.info["energy" if place < 6 else "REF_energy"] = -100.0 - place
        atoms.arrays["REF_forces"] = 0.1 * atoms.positions
        frames.append(atoms)
    return frames


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few structures are read at once, and none are kept."""
    monkeypatch.setattr(inputs, "READ_TOGETHER", 4)
    monkeypatch.setattr(inputs, "MOST_KEPT", 0)


def evaluate(folder: Path, model: Path, configs: Any, *flags: Any, output: str = "out.xyz") -> Path:
    """Evaluate in batches of three."""
    path = folder / output
    given = [f"--configs={configs}", f"--model={model}", f"--output={path}", "--batch_size=3"]
    eval_configs.run([*given, *map(str, flags)])
    return path


def written(folder: Path, frames: list[Atoms], name: str = "in.xyz") -> Path:
    """Write structures into a file."""
    ase.io.write(folder / name, frames, format="extxyz")
    return folder / name


def told(text: str) -> list[str]:
    """What the command says, without times and speeds."""
    lines = [line.split(": ", 1)[-1] for line in text.splitlines()]
    return [line for line in lines if "structures/s" not in line and not line.startswith("Wrote")]


@pytest.mark.parametrize("size", [1, 4, 5, N_STRUCTURES])
def test_parts_make_no_difference(
    tmp_path: Path, model: Path, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes, the same table and the same remarks, though the first parts alone have a key of their own."""
    one, two = written(tmp_path, molecules()[:9], "a.xyz"), written(tmp_path, molecules()[9:], "b.xyz")
    # wrong only under a key that the file does not use
    one.write_text(one.read_text().replace("energy=-102.0", "energy=unknown"))
    whole = evaluate(tmp_path, model, tmp_path / "[ab].xyz").read_bytes()
    before = told(capsys.readouterr().out)
    monkeypatch.setattr(inputs, "READ_TOGETHER", size)
    monkeypatch.setattr(inputs, "MOST_KEPT", 40)  # the first file fits, the second does not
    parts = evaluate(tmp_path, model, tmp_path / "[ab].xyz", output="parts.xyz").read_bytes()
    assert parts == whole and two.exists()
    assert told(capsys.readouterr().out) == before
    assert "6 structures have 'energy' but no 'REF_energy'" in "\n".join(before)
    assert [frame.info["note"] for frame in iterate_frames(str(tmp_path / "parts.xyz"))] == [
        f"number {place}" for place in range(N_STRUCTURES)
    ]


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frames: frames[21].numbers.__setitem__(0, 26), "structure 21 contains Fe"),
        (lambda frames: frames[22].info.update(REF_energy="none"), "structure 22: the label 'energy'"),
        (lambda frames: frames[18].positions.__setitem__((0, 0), np.nan), "structure 18 has a position that is NaN"),
        (lambda frames: frames[20].info.update(MACE_x=1, REF_MACE_energy=1), ""),
    ],
)
def test_what_is_wrong_at_the_end_is_said_before_anything_is_computed(
    tmp_path: Path, model: Path, spoil: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = molecules()
    spoil(frames)
    configs = written(tmp_path, frames)
    if not message:  # nothing is wrong
        assert len(list(iterate_frames(str(evaluate(tmp_path, model, configs))))) == N_STRUCTURES
        return
    monkeypatch.setattr(evaluation, "predict_configurations", None)
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, model, configs)
    assert [path.name for path in tmp_path.iterdir()] == ["in.xyz"]


@pytest.mark.usefixtures("in_parts")
def test_a_head_that_does_not_exist_is_found_in_any_part(tmp_path: Path) -> None:
    path = save_model(tmp_path / "heads.model", files.model(files.with_heads("low", "high")))
    frames = [ase.build.molecule("H2O") for _ in range(10)]
    for place, atoms in enumerate(frames):
        atoms.info["head"] = "middle" if place == 9 else "low"
    with pytest.raises(UserError, match="structure 9 is for the head 'middle'"):
        evaluate(tmp_path, path, written(tmp_path, frames))
    assert not (tmp_path / "out.xyz.partial").exists()


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("done", [3, 12, N_STRUCTURES])
def test_an_evaluation_goes_on_in_any_part(
    tmp_path: Path, model: Path, done: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = written(tmp_path, molecules())
    whole = evaluate(tmp_path, model, configs).read_text()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    texts = whole.split("\n")
    end = 0
    for _ in range(done):
        end += int(texts[end]) + 2
    partial = tmp_path / "resumed.xyz.partial"
    partial.write_text("\n".join([*texts[:end], "9", "Properties="]))
    resumed = evaluate(tmp_path, model, configs, "--resume", output="resumed.xyz").read_text()
    text = capsys.readouterr().out
    assert resumed == whole and f"{done} structures had been done before" in text
    assert [line for line in text.splitlines() if line.startswith("|")] == table


@pytest.mark.usefixtures("in_parts")
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = written(tmp_path, molecules())
    predict = evaluation.predict_configurations

    def change_first(*arguments: Any) -> Any:
        os.utime(configs, ns=(1, 1))
        return predict(*arguments)

    monkeypatch.setattr(evaluation, "predict_configurations", change_first)
    with pytest.raises(UserError, match=r"in.xyz: the file has changed since it was checked"):
        evaluate(tmp_path, model, configs)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many structures only those of a part and of some batches exist at the same time."""
    monkeypatch.setattr(inputs, "READ_TOGETHER", 10)
    monkeypatch.setattr(inputs, "MOST_KEPT", 50)
    alive: list[weakref.ref[Configuration]] = []
    most = [0]
    read_part = inputs.read_part

    def watched(*arguments: Any, **further: Any) -> Any:
        found = read_part(*arguments, **further)
        alive.extend(map(weakref.ref, found.configurations))
        most[0] = max(most[0], sum(each() is not None for each in alive))
        return found

    monkeypatch.setattr(inputs, "read_part", watched)
    configs = written(tmp_path, [ase.build.molecule("H2O") for _ in range(300)])
    evaluate(tmp_path, model, configs)
    assert len(alive) == 600 and most[0] <= 60


def test_values_to_draw_are_chosen_as_they_come() -> None:
    """The picture stands for all values, in memory that is the same for any number of structures and types."""
    random, comparison = np.random.default_rng(0), Comparison(keep=True)
    labels = [random.normal(size=(20, 3)) for _ in range(2000)]
    errors = [0.1 * random.normal(size=(20, 3)) for _ in labels]
    for label, error in zip(labels, errors, strict=True):
        atoms = Configuration(np.ones(20, dtype=int), label, np.eye(3), (False,) * 3, forces=label)
        comparison.add([atoms], [{"forces": label + error}])
    points = comparison.parity()["Default"]["forces"]
    every = np.concatenate(errors)
    assert points.count == every.size == 120_000 and len(points.reference) == len(points.prediction) == 20_000
    assert points.rmse == pytest.approx(np.sqrt(np.mean(every**2)))
    assert np.abs(points.prediction - points.reference).max() == pytest.approx(np.abs(every).max())
    assert comparison.errors()["all"]["q95_f"] == pytest.approx(np.percentile(np.abs(every), 95), rel=1e-3)
    many = Comparison(keep=True)
    for place in range(60):
        atoms = Configuration(np.ones(1), labels[0][:1], np.eye(3), (False,) * 3, energy=1.0, config_type=f"t{place}")
        many.add([atoms], [{"energy": 1.0 + place}])
    assert len(many.errors()) == 61 and len(many.parity()) == 25
    assert sum(of_row["energy"].count for of_row in many.parity().values()) == 60


def test_prepared_sets(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written as extended XYZ with the labels of the set."""
    frames = [atoms for place, atoms in enumerate(molecules()) if place > 5]
    configs = written(tmp_path, frames)
    valid = written(tmp_path, frames[:1], "valid.xyz")
    preprocess_data.run(
        [
            f"--train_file={configs}",
            f"--valid_file={valid}",
            f"--h5_prefix={tmp_path}/",
            "--E0s=average",
            f"--work_dir={tmp_path}",
        ]
    )
    plain = evaluate(tmp_path, model, configs)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = list(iterate_frames(str(evaluate(tmp_path, model, tmp_path / "train", output="stored.xyz"))))
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("|")] == table
    assert "labels of a prepared set are written as REF_energy" in text
    expected = sorted(iterate_frames(str(plain)), key=lambda frame: len(frame) == 1)  # isolated atoms come last
    for frame, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frame.numbers, other.numbers)
        assert frame.info["MACE_energy"] == pytest.approx(other.info["MACE_energy"], abs=1e-9)
        assert frame.info["REF_energy"] == other.info["REF_energy"]
        assert frame.info["config_type"] == other.info["config_type"]
        np.testing.assert_allclose(frame.arrays["MACE_forces"], other.arrays["MACE_forces"], atol=2e-8)
        np.testing.assert_allclose(frame.arrays["REF_forces"], other.arrays["REF_forces"], atol=1e-8)
    with pytest.raises(UserError, match="take the place of the label 'REF_energy'"):
        evaluate(tmp_path, model, tmp_path / "train", "--info_prefix=REF_")


def test_prepared_sets_of_no_head_are_for_the_default_one(tmp_path: Path) -> None:
    """As structures of files are that name none."""
    path = save_model(tmp_path / "heads.model", files.model(files.with_heads("low", "default")))
    frames = [ase.build.molecule("H2O") for _ in range(4)]
    for place, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=place)
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = -10.0, 0.0 * atoms.positions
    configs, valid = written(tmp_path, frames), written(tmp_path, frames[:1], "valid.xyz")
    preprocess_data.run(
        [
            f"--train_file={configs}",
            f"--valid_file={valid}",
            f"--h5_prefix={tmp_path}/",
            "--E0s=average",
            f"--work_dir={tmp_path}",
        ]
    )
    outputs = [evaluate(tmp_path, path, tmp_path / name, output=f"{name}.out.xyz") for name in ("in.xyz", "train")]
    one, other = ([frame.info["MACE_energy"] for frame in iterate_frames(str(output))] for output in outputs)
    assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("ending", ["h5", "lmdb"])
def test_other_formats_than_text(tmp_path: Path, model: Path, ending: str, in_parts: None) -> None:
    frames = [atoms for place, atoms in enumerate(molecules()) if place > 5]
    source = tmp_path / f"in.{ending}"
    if ending == "lmdb":
        pytest.importorskip("ase_db_backends")
        with connect(source, type="aselmdb", use_lock_file=False) as database:
            for atoms in frames:
                database.write(atoms, data={**atoms.info, "REF_forces": atoms.arrays["REF_forces"]})
    else:
        _write_hdf5(source, frames)
    plain = evaluate(tmp_path, model, written(tmp_path, frames))
    found = list(iterate_frames(str(evaluate(tmp_path, model, source, output="other.xyz"))))
    for frame, other in zip(found, iterate_frames(str(plain)), strict=True):
        assert frame.info["MACE_energy"] == pytest.approx(other.info["MACE_energy"], abs=1e-9)
        label = frame.info.get("REF_energy", frame.results.get("energy"))
        assert label == other.info["REF_energy"] and frame.info["config_type"] == other.info["config_type"]


def _write_hdf5(path: Path, frames: list[Atoms]) -> None:
    """Write a file as mace-torch prepares it."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        batch = file.create_group("config_batch_0")
        for place, atoms in enumerate(frames):
            group = batch.create_group(f"config_{place}")
            entries = {"atomic_numbers": atoms.numbers, "positions": atoms.positions, "cell": np.zeros((3, 3))}
            entries |= {"pbc": [False] * 3, "weight": 1.0, "config_type": atoms.info["config_type"]}
            for name, value in entries.items():
                group[name] = value
            group["properties/energy"], group["property_weights/energy"] = atoms.info["REF_energy"], 1.0
