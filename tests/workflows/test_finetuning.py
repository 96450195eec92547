"""Does a stranger get from a model of mace-torch to a fine-tuned one?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import original_files as files
import pytest
from ase.io import write
from training_runs import QUICK, water, write_water

from mace.calculators import MACECalculator
from mace.cli import check_data, import_model, info
from mace.cli.run_train import run as run_train
from mace.errors import UserError
from mace.model.model_file import load_model
from mace.reporting.records import read_records


@pytest.fixture
def foundation(tmp_path: Path) -> Path:
    return files.write_original(tmp_path / "old.model", files.tree_of(files.model()))


def train(folder: Path, *flags: str) -> None:
    folder.mkdir(exist_ok=True)
    run_train([*QUICK, f"--work_dir={folder}", f"--train_file={write_water(folder / 'train.xyz')}", *flags])


def test_a_model_of_the_original_is_fine_tuned(
    foundation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, f"--foundation_model={foundation}", "--multiheads_finetuning=False", "--lr=0.001")
    log = (tmp_path / "logs" / "tiny_run-7.log").read_text(encoding="utf-8")
    assert "Starting from the foundation model" in log and "Elements kept: H, O; left out: C" in log
    assert "TRAINED PARAMETERS" in log and "Learning rate: 0.001" in log
    loaded = load_model(tmp_path / "tiny.model")
    assert loaded.model.plan.atomic_numbers == (1, 8)
    assert loaded.metadata.settings["foundation_model"] == str(foundation)
    assert len([r for r in read_records(tmp_path / "results" / "tiny_run-7_train.txt") if r["mode"] == "eval"]) >= 2
    capsys.readouterr()
    assert info.run([str(tmp_path / "tiny.model")]) == 0
    assert "foundation_model" in capsys.readouterr().out


def test_all_elements_can_be_kept(foundation: Path, tmp_path: Path) -> None:
    keep = ("--foundation_model_elements=True", "--E0s=foundation", "--multiheads_finetuning=False")
    train(tmp_path, f"--foundation_model={foundation}", *keep)
    plan = load_model(tmp_path / "tiny.model").model.plan
    assert plan.atomic_numbers == (1, 6, 8)
    assert plan.reference_energies == files.PLAN.reference_energies


def test_reference_energies_are_estimated(foundation: Path, tmp_path: Path) -> None:
    """The command of the guides to fine-tuning."""
    estimate = ("--E0s=estimated", "--multiheads_finetuning=False", "--lr=0.001", "--weight_decay=0.0", "--ema")
    write(tmp_path / "molecules.xyz", water(12), format="extxyz")
    train(tmp_path, f"--foundation_model={foundation}", *estimate, f"--train_file={tmp_path / 'molecules.xyz'}")
    log = (tmp_path / "logs" / "tiny_run-7.log").read_text(encoding="utf-8")
    assert "(E0s) from: estimates by the foundation model" in log and "misses the labels by" in log
    before, after = map(float, re.search(r"by (\S+) eV per atom \(rms\), (\S+) with these E0s", log).groups())  # type: ignore[union-attr]
    assert before > 100.0 > 1.0 > after
    plan = load_model(tmp_path / "tiny.model").model.plan
    assert plan.reference_energies != files.PLAN.reference_energies


def test_without_reference_energies_those_of_the_model_are_offered(foundation: Path, tmp_path: Path) -> None:
    write(tmp_path / "molecules.xyz", water(12), format="extxyz")
    flags = (f"--foundation_model={foundation}", "--multiheads_finetuning=False", "--dry_run")
    with pytest.raises(UserError, match=r"\(E0s\) of H, O are not in .*'foundation' .*'estimated' .*'average'"):
        train(tmp_path, *flags, f"--train_file={tmp_path / 'molecules.xyz'}")


def test_data_are_checked_for_a_fine_tuning(foundation: Path, tmp_path: Path) -> None:
    """The checks know the cutoff and the energies of the foundation model."""
    path = write_water(tmp_path / "train.xyz")
    flags = [f"--train_file={path}", f"--work_dir={tmp_path}", f"--foundation_model={foundation}", "--E0s=foundation"]
    check_data.run([*flags, "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["r_max"] == files.PLAN.r_max
    assert report["reference_energies"] == {"1": -13.6, "8": -2041.8}


def test_a_fine_tuning_is_resumed(foundation: Path, tmp_path: Path) -> None:
    flags = (f"--foundation_model={foundation}", "--multiheads_finetuning=False")
    train(tmp_path / "whole", *flags, "--max_num_epochs=4")
    train(tmp_path / "parts", *flags)
    train(tmp_path / "parts", *flags, "--max_num_epochs=4", "--restart_latest")
    whole, parts = (load_model(tmp_path / each / "tiny.model").model for each in ("whole", "parts"))
    assert whole.plan == parts.plan
    assert all(bool((value == parts.get_parameter(name)).all()) for name, value in whole.named_parameters())


def test_import_info_and_calculator(foundation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.model"
    import_model.run([str(foundation), str(new)])
    assert "constants and normalizations agree" in capsys.readouterr().out
    with pytest.raises(UserError, match="the file exists; .* --overwrite"):
        import_model.run([str(foundation), str(new)])
    with pytest.raises(UserError, match="--hed is not a setting; did you mean --head"):
        import_model.run([str(foundation), str(new), "--hed=x"])
    descriptions = []
    for path in (foundation, new):
        assert info.run([str(path), "--json"]) == 0
        descriptions.append(json.loads(capsys.readouterr().out))
    for key in ("elements", "plan", "parameters", "reference_energies", "checks"):
        assert descriptions[0][key] == descriptions[1][key]
    old, ours = (MACECalculator(model_paths=str(path)).models[0] for path in (foundation, new))
    assert old.plan == ours.plan
