"""Does ``mace_check_data`` take what a training takes, leave with the right status, and write where it is told?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import write
from training_runs import isolated_atoms, train, water, write_water

from mace.cli import check_data
from mace.errors import UserError
from mace.inspection.findings import KINDS
from mace.settings import TrainingSettings
from mace.settings.other_commands import CheckSettings

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "mace" / "cli" / "check_data.py"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_water(tmp_path / "train.xyz")


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    frames = [*isolated_atoms(), *water(12)]
    frames[4].positions[1] = frames[4].positions[0]
    frames[6].info["REF_energy"] = np.nan
    write(tmp_path / "bad.xyz", frames, format="extxyz")
    return tmp_path / "bad.xyz"


def test_good_data_leave_with_zero(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.run(["--train_file=train.xyz"]) == 0
    assert "Nothing was found that deserves attention." in capsys.readouterr().out
    assert Path("train_data.html").exists()


def test_errors_leave_with_two(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.run(["--train_file=bad.xyz", "--html=deep/report.html", "--json=report.json"]) == 2
    shown = capsys.readouterr().out
    assert "bad.xyz: structure 4 has atoms closer than 0.3 Angstrom" in shown
    assert "bad.xyz: structure 6: the label 'energy' (key 'REF_energy') is NaN or infinite" in shown
    assert Path("deep/report.html").exists()
    assert json.loads(Path("report.json").read_text())["errors"] == 2


def test_allowed_errors_leave_with_zero(bad: Path) -> None:
    flags = ["--train_file=bad.xyz", "--allow", "close-atoms"]
    assert check_data.run(flags) == 2
    assert check_data.run([*flags, "--allow", "non-finite-label"]) == 0
    assert check_data.run(["--train_file=bad.xyz", "--allow", "close-atoms", "non-finite-label"]) == 0
    Path("run.yaml").write_text("train_file: bad.xyz\nallow: [close-atoms, non-finite-label]\n")
    assert check_data.run(["--config=run.yaml"]) == 0


def test_as_a_program(bad: Path) -> None:
    command = [sys.executable, PROGRAM, "--train_file=bad.xyz"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_a_file_that_is_not_there_leaves_with_two(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mace_check_data", "--train_file=nowhere.xyz"])
    with pytest.raises(SystemExit) as left:
        check_data.main()
    output = capsys.readouterr()
    assert (left.value.code, output.out) == (2, "") and "there is no such file" in output.err


def test_every_flag_of_a_training_is_taken(data: Path) -> None:
    assert set(TrainingSettings.model_fields) < set(CheckSettings.model_fields)
    flags = ["--name=mine", "--r_max=3", "--hidden_irreps=8x0e", "--max_num_epochs=3", "--swa", "--E0s=average"]
    assert check_data.run(["--train_file=train.xyz", *flags]) == 0
    assert Path("mine_data.html").exists()


def test_a_wrong_name_or_place_is_one_sentence(data: Path) -> None:
    with pytest.raises(UserError, match="--allow close-atom: there is no such finding; did you mean close-atoms?"):
        check_data.run(["--train_file=train.xyz", "--allow=close-atom"])
    with pytest.raises(UserError, match="choose another --html"):
        check_data.run(["--train_file=train.xyz", "--html=train.xyz/page.html"])


def test_training_refuses_what_the_check_refuses(bad: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(tmp_path, bad)
    assert len(str(caught.value).splitlines()) == 2
    assert (tmp_path / "results" / "tiny_run-7_data.html").exists()
    assert not (tmp_path / "tiny.model").exists()


def test_training_goes_on_with_what_is_allowed(bad: Path, tmp_path: Path) -> None:
    frames = [*isolated_atoms(), *water(12)]
    frames[6].info["REF_energy"] = np.nan
    write(bad, frames, format="extxyz")
    run = train(tmp_path, bad, "--allow=non-finite-label", "--max_num_epochs=1")
    assert run.said(r"WARNING: \[non-finite-label, allowed\] .*bad.xyz: structure 6")
    assert run.said("energy 11 of 12")
    assert run.said("The report on the data is in .*tiny_run-7_data.html")


def test_the_report_of_a_training_says_what_the_check_says(data: Path, tmp_path: Path) -> None:
    run = train(tmp_path, data, "--max_num_epochs=1")
    check_data.run(["--train_file=train.xyz", "--r_max=3", "--html=check.html"])
    page = (tmp_path / "results" / f"{run.tag}_data.html").read_text()
    # all but the name of the file, which was given in another way
    assert page.count("<rect") == Path("check.html").read_text().count("<rect") > 20
    assert run.said(r"train.xyz \(training\): 12 structures, 36 atoms, H O, energy ")


def test_the_page_on_checks_lists_every_finding() -> None:
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): row[1:] for row in rows}
    assert list(listed) == list(KINDS)
    for name, kind in KINDS.items():
        level, meaning, way_out = listed[name]
        assert level == kind.level + ("" if kind.level != "error" or kind.allowable else " (always)")
        assert meaning == kind.meaning and way_out.rstrip(" |") == kind.way_out
