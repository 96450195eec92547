"""Does every mistake end in one sentence with a way out, before anything is written that looks like a result?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from training_runs import copper, isolated_atoms, train, water, write_water

from mace.errors import UserError

PROGRAM = Path(__file__).parents[2] / "mace" / "cli" / "run_train.py"


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Run with bad input and return the one sentence it ends with."""

    def run(train_file: Path | str, *flags: str) -> str:
        with pytest.raises(UserError) as caught:
            train(tmp_path / "work", train_file, *flags)
        sentence = str(caught.value)
        assert "\n" not in sentence and sentence.endswith((".", "?")), sentence
        written = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        unwanted = [path for path in written if path.suffix in (".model", ".pt", ".png") or "train.txt" in path.name]
        assert not unwanted
        return sentence

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_water(tmp_path / "train.xyz")


def frames_in(path: Path, frames: list[Atoms]) -> Path:
    write(path, isolated_atoms() + frames, format="extxyz")
    return path


def test_a_missing_file(refused: Callable[..., str], tmp_path: Path, data: Path) -> None:
    assert "nowhere.xyz: there is no such file" in refused(tmp_path / "nowhere.xyz")
    assert "nowhere.xyz: there is no such file" in refused(data, f"--valid_file={tmp_path / 'nowhere.xyz'}")
    assert "nowhere.xyz: there is no such file" in refused(data, f"--test_file={tmp_path / 'nowhere.xyz'}")
    assert "--test_dir: " in refused(data, f"--test_dir={tmp_path / 'nowhere'}")


def test_an_empty_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").touch()
    assert "empty.xyz: the file is empty" in refused(tmp_path / "empty.xyz")


def test_a_frame_that_cannot_be_read_is_named(refused: Callable[..., str], tmp_path: Path, data: Path) -> None:
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    # two isolated atoms take three lines each, a water molecule takes five: spoil the third water molecule
    lines[6 + 2 * 5 + 2] = "O not a number at all 0 0\n"
    (tmp_path / "spoilt.xyz").write_text("".join(lines), encoding="utf-8")
    assert "spoilt.xyz: structure 4 cannot be read" in refused(tmp_path / "spoilt.xyz")


def test_a_file_that_is_cut_off(refused: Callable[..., str], tmp_path: Path, data: Path) -> None:
    text = data.read_text(encoding="utf-8")
    (tmp_path / "cut.xyz").write_text("\n".join(text.splitlines()[:-1]) + "\n", encoding="utf-8")
    assert "cut.xyz: structure 13 cannot be read: the file ends after 2 of its 3 atoms" in refused(tmp_path / "cut.xyz")


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_labels_that_are_nowhere(refused: Callable[..., str], tmp_path: Path, label: str) -> None:
    frames = water(6)
    for atoms in frames:
        (atoms.info if label == "energy" else atoms.arrays).pop(f"REF_{label}")
    sentence = refused(frames_in(tmp_path / "bare.xyz", frames), "--E0s={1: 3.2, 8: 4.6}")
    other = {"energy": "REF_forces (arrays", "forces": "REF_energy (info"}[label]
    assert f"no structure has a label '{label}'" in sentence and other in sentence
    assert f"--{label}_key" in sentence


def test_a_key_that_is_nowhere(refused: Callable[..., str], data: Path) -> None:
    sentence = refused(data, "--energy_key=dft_energy")
    assert "under the key 'dft_energy'" in sentence and "REF_energy" in sentence


@pytest.mark.parametrize(
    ("flags", "label", "way_out"),
    [
        (["--loss=stress"], "stress", "set --stress_weight=0 (it is 1)"),
        (["--loss=virials"], "virials", "set --virials_weight=0 (it is 1)"),
        (["--loss=huber", "--stress_weight=5"], "stress", "set --stress_weight=0 (it is 5)"),
        (["--loss=universal", "--stress_weight=1"], "stress", "set --stress_weight=0 (it is 1)"),
        (["--loss=huber", "--swa", "--swa_stress_weight=2"], "stress", "set --swa_stress_weight=0 (it is 2)"),
        (
            ["--loss=universal", "--stress_weight=3", "--swa", "--stage_two_stress_weight=2"],
            "stress",
            "set --stress_weight=0 (it is 3) and --swa_stress_weight=0 (it is 2)",
        ),
    ],
)
def test_a_loss_with_stress_needs_stress(
    refused: Callable[..., str], data: Path, flags: list[str], label: str, way_out: str
) -> None:
    """Where the weight was typed, or the loss is the one of this label."""
    sentence = refused(data, *flags)
    assert f"no structure has a label '{label}'" in sentence and sentence.endswith(f"or {way_out}.")


def test_a_validation_set_without_labels(refused: Callable[..., str], tmp_path: Path, data: Path) -> None:
    """Its loss would be zero from the beginning, and the first epoch the best."""
    frames = water(3, seed=1)
    for atoms in frames:
        del atoms.info["REF_energy"], atoms.arrays["REF_forces"]
    write(tmp_path / "valid.xyz", frames, format="extxyz")
    sentence = refused(data, f"--valid_file={tmp_path / 'valid.xyz'}")
    assert "valid.xyz: no validation structure has a label with weight" in sentence


def test_training_structures_without_weight(refused: Callable[..., str], data: Path) -> None:
    assert "no training structure has a label with weight" in refused(data, "--config_type_weights={'Default': 0.0}")


def test_E0s_that_lack_an_element(refused: Callable[..., str], data: Path) -> None:
    assert "--E0s gives no reference energy for O" in refused(data, "--E0s={1: -13.6}")


def test_no_E0s_and_no_isolated_atoms(refused: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "bare.xyz", water(6), format="extxyz")
    assert "The reference energies (E0s) of H, O are not in the training data" in refused(tmp_path / "bare.xyz")


@pytest.mark.parametrize(
    "flag",
    [
        "--r_max=0",
        "--r_max=-3",
        "--r_max=far",
        "--valid_fraction=0",
        "--valid_fraction=1",
        "--valid_fraction=1.5",
        "--batch_size=0",
        "--max_num_epochs=-1",
        "--lr=0",
        "--lr=nan",
        "--ema_decay=1",
        "--scheduler=ReduceLROnPlatoe",
        "--loss=wheighted",
        "--optimizer=sgd",
        "--error_table=PerAtom",
        "--device=gpu",
        "--default_dtype=float16",
        "--E0s={1: }",
        "--num_channels=0",
        "--max_ell=9",
        "--config_type_weights={'Default': -1}",
    ],
)
def test_a_value_that_makes_no_sense_names_its_flag(refused: Callable[..., str], flag: str) -> None:
    # the file does not exist: the value is refused before any file is opened
    assert refused("nowhere.xyz", flag).startswith(flag.split("=")[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--hidden_irreps=16x0e + 8x1o",), "unequal numbers of channels"),
        (("--hidden_irreps=sixteen",), "--hidden_irreps"),
        (("--hidden_irreps=4x0e + 4x1o", "--num_channels=4", "--max_L=2"), "need --max_ell of at least 2"),
        (("--hidden_irreps=4x0e + 4x1o + 4x2e",), "need --max_ell of at least 2"),
        (("--MLP_irreps=4x1o",), "--MLP_irreps"),
        (("--edge_irreps=16x0e + 8x1o",), "--edge_irreps='16x0e + 8x1o' has unequal numbers of channels"),
        (("--edge_irreps=16x1e",), "1e does not have the parity"),
        (("--edge_irreps=16x2e",), "the hidden features have none of these to send"),
        (("--edge_irreps=16x1o", "--use_edge_irreps_first=True"), "the first layer has only scalars to send"),
        (("--use_last_readout_only=True", "--num_interactions=1"), "leaves a model of one layer without any readout"),
        (("--use_last_readout_only=True", "--model=EnergyDipolesMACE"), "reads dipoles out of every layer"),
        (("--use_so3=True",), "the same for mirror images"),
        (("--energy_weight=0", "--forces_weight=0"), "all its weights are zero"),
        (("--swa", "--swa_energy_weight=0", "--swa_forces_weight=0"), "all its weights are zero"),
        (("--compute_forces=False",), "--compute_forces=False needs --forces_weight=0"),
        (("--name=a/b",), "--name='a/b' cannot begin a file name"),
        (("--name=a\nb",), "--name='a\\nb' cannot begin a file name"),
        ((f"--name={'x' * 240}",), "--name=xxxxxxxxxxxxxxxxxxxx... is too long for file names: choose one that is 51"),
        (
            ("--name=" + "\N{GREEK SMALL LETTER ALPHA}" * 120,),
            "is too long for file names: choose one that is 51 bytes",
        ),
        ((f"--name={'x' * 180}", f"--seed={10**15}"), "is too long for file names: choose one that is 6 bytes"),
        (("--correlation=[3,3,3]",), "--correlation has 3 entries for 2 layers"),
    ],
)
def test_settings_that_contradict_are_refused_before_any_file_is_opened(
    refused: Callable[..., str], flags: tuple[str, ...], words: str
) -> None:
    assert words in refused("nowhere.xyz", *flags)


def test_a_device_that_is_not_there(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused("nowhere.xyz", "--device=cuda") == (
        "--device=cuda is not available on this machine; use --device=cpu."
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--device=cuda:2: this machine has 2 such device(s)" in refused("nowhere.xyz", "--device=cuda:2")
    assert "--device=mps has no double precision" in refused("nowhere.xyz", "--device=mps")


def test_a_position_that_is_no_number(refused: Callable[..., str], tmp_path: Path) -> None:
    frames = water(6)
    frames[2].positions[1, 1] = np.nan
    sentence = refused(frames_in(tmp_path / "nan.xyz", frames))
    assert "nan.xyz: structure 4 has a position that is NaN" in sentence


@pytest.mark.parametrize("label", ["energy", "forces"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_label_that_is_no_number(refused: Callable[..., str], tmp_path: Path, label: str, value: float) -> None:
    frames = water(6)
    if label == "energy":
        frames[2].info["REF_energy"] = value
    else:
        frames[2].arrays["REF_forces"][0, 0] = value
    sentence = refused(frames_in(tmp_path / "nan.xyz", frames))
    assert f"nan.xyz: structure 4: the label '{label}' (key 'REF_{label}') is NaN or infinite" in sentence


def test_a_cell_without_volume(refused: Callable[..., str], tmp_path: Path) -> None:
    frames = water(6)
    frames[1].set_cell([[5, 0, 0], [10, 0, 0], [0, 0, 5]])
    frames[1].pbc = True
    assert "structure 3 repeats along" in refused(frames_in(tmp_path / "flat.xyz", frames))


@pytest.mark.parametrize("role", ["train", "valid", "test"])
def test_a_stress_without_volume(refused: Callable[..., str], tmp_path: Path, data: Path, role: str) -> None:
    frames = water(6, seed=3)
    for atoms in frames:
        atoms.info["REF_stress"] = np.ones(9)
    path = frames_in(tmp_path / "strange.xyz", frames)
    sentence = refused(path) if role == "train" else refused(data, f"--{role}_file={path}")
    assert "strange.xyz: structure" in sentence and "has a stress but its cell has no volume" in sentence


@pytest.mark.parametrize("role", ["valid", "test"])
def test_an_element_that_is_not_trained_on(refused: Callable[..., str], tmp_path: Path, data: Path, role: str) -> None:
    write(tmp_path / "other.xyz", copper(2), format="extxyz")
    sentence = refused(data, f"--{role}_file={tmp_path / 'other.xyz'}")
    assert "other.xyz: structure 0 contains Cu, which the training data does not" in sentence


def test_an_element_of_a_test_folder_that_is_not_trained_on(
    refused: Callable[..., str], tmp_path: Path, data: Path
) -> None:
    (tmp_path / "tests").mkdir()
    write(tmp_path / "tests" / "other.xyz", copper(2), format="extxyz")
    assert "other.xyz: structure 0 contains Cu" in refused(data, f"--test_dir={tmp_path / 'tests'}")


def test_elements_that_are_given_but_too_few(refused: Callable[..., str], data: Path) -> None:
    assert "contains O, which --atomic_numbers does not" in refused(data, "--atomic_numbers=[1]")


def test_one_structure_cannot_be_divided(refused: Callable[..., str], tmp_path: Path) -> None:
    path = write_water(tmp_path / "one.xyz", count=1)
    assert "1 structures cannot be divided into training and validation" in refused(path)


def test_isolated_atoms_alone(refused: Callable[..., str], tmp_path: Path) -> None:
    write(tmp_path / "atoms.xyz", isolated_atoms(), format="extxyz")
    assert "atoms.xyz: there is no structure to learn from" in refused(tmp_path / "atoms.xyz")


@pytest.mark.parametrize("kind", ["work", "log", "model", "checkpoints", "results"])
def test_a_folder_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path, data: Path, kind: str) -> None:
    # below a regular file not even the superuser can create a folder
    sentence = refused(data, f"--{kind}_dir={data / 'below'}")
    assert f"{data / 'below'}: files cannot be written there (Not a directory)" in sentence
    assert f"--{kind}_dir" in sentence


def test_a_misspelt_flag(refused: Callable[..., str], data: Path) -> None:
    assert refused(data, "--enrgy_weight=3") == "--enrgy_weight is not a setting; did you mean --energy_weight?"


def run_program(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--name=a",), "--train_file is required"),
        (("--name=a", "--train_file=nowhere.xyz"), "nowhere.xyz: there is no such file"),
        (("--name=a", "--train_file=a.xyz", "--enrgy_weight=3"), "did you mean --energy_weight?"),
        (("--config=run.yaml",), "run.yaml: 'learning_rate' is not a setting"),
    ],
)
def test_the_program_exits_with_2_and_one_sentence(tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "run.yaml").write_text("name: a\ntrain_file: a.xyz\nlearning_rate: 0.1\n", encoding="utf-8")
    result = run_program(tmp_path, *flags)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
