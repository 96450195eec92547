"""Does everything that shows a run of several heads say which numbers are of which head?"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from rich.console import Console
from training_runs import Run, isolated_atoms, settings_of, train, water

from mace.cli import check_data, eval_configs, info, plot_train
from mace.errors import UserError
from mace.model.model_file import load_model
from mace.runs.run import run_training

EVALUATION = (
    "loss mae_e mae_e_per_atom rmse_e rmse_e_per_atom q95_e mae_f rel_mae_f rmse_f rel_rmse_f q95_f time mode epoch "
    "head"
).split()
"""Keys of the record of an evaluation as mace-torch 0.3.16 writes it, in its order."""

SHIFT = {"H": 0.25, "O": -1.5}
"""By how much the energies of atoms differ between the two levels of theory, in eV."""


def at_another_level(frames: list[Atoms]) -> list[Atoms]:
    """The same structures with other energies."""
    found = []
    for atoms in frames:
        atoms = atoms.copy()
        atoms.info["REF_energy"] += sum(SHIFT[symbol] for symbol in atoms.get_chemical_symbols())
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two heads: twelve molecules, and eight of the same at another level of theory."""
    folder = tmp_path_factory.mktemp("heads")
    first, second = isolated_atoms() + water(12), at_another_level(isolated_atoms() + water(8))
    tests = water(5, 9, config_type="warm")
    for name, frames in {"a": first, "b": second, "ta": tests, "tb": at_another_level(tests)[:3]}.items():
        write(folder / f"{name}.xyz", frames, format="extxyz")
    return folder


def heads_in(folder: Path, **of_b: Any) -> str:
    a = {"train_file": str(folder / "a.xyz"), "test_file": str(folder / "ta.xyz"), "valid_fraction": 0.25}
    b = {"train_file": str(folder / "b.xyz"), "test_file": str(folder / "tb.xyz"), "valid_fraction": 0.25, "weight": 2}
    return f"--heads={ {'a': a, 'b': {**b, **of_b}}!r}"


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return train(folder, None, heads_in(folder), "--max_num_epochs=3", "--plot=True", "--csv")


def page_of(run: Run, ending: str = "") -> str:
    return (run.folder / "results" / f"{run.tag}{ending}.html").read_text(encoding="utf-8")


def embedded_in(page: str, name: str) -> Any:
    return json.loads(re.search(f'id="{name}">(.*?)</script>', page)[1])  # type: ignore[index]


def rows_of(table: str) -> list[str]:
    """First cells of a table in a log."""
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][1:]


def test_the_log_has_a_line_of_every_head_and_of_what_chooses_the_best(run: Run) -> None:
    number = r"\d+\.\d{8}"
    for epoch in range(3):
        for head in "ab":
            assert run.said(
                rf"INFO: Epoch {epoch}: head: {head}, loss={number}, RMSE_E_per_atom= *\d+\.\d\d meV, RMSE_F="
            )
    assert run.said(r"INFO: Initial: head: b, loss=")
    assert run.said(rf"INFO: Epoch 0: --select_by=all: loss={number}, the lowest so far")
    assert run.said(
        r"best model has the lowest mean of the validation losses of the heads .* a 0.6, b 0.4 \(--select_by=all"
    )


def test_the_loss_that_chooses_the_best_model_is_that_of_all_heads(run: Run) -> None:
    """The mean over the heads with nine and six structures of an epoch."""
    found = {(r["mode"], r["epoch"], r["head"]): r["loss"] for r in run.records if r["mode"] != "opt"}
    for epoch in (None, 0, 1, 2):
        mean = 0.6 * found["eval", epoch, "a"] + 0.4 * found["eval", epoch, "b"]
        assert found["selection", epoch, "all"] == pytest.approx(mean, rel=1e-12)
    losses = [found["selection", epoch, "all"] for epoch in range(3)]
    assert load_model(run.folder / "tiny.model").metadata.epoch == int(np.argmin(losses))


def test_records_of_evaluations_are_those_of_the_original(run: Run) -> None:
    records = [record for record in run.records if record["mode"] == "eval"]
    assert [(record["epoch"], record["head"]) for record in records] == [(e, h) for e in (None, 0, 1, 2) for h in "ab"]
    assert all(list(record) == EVALUATION for record in records)


def test_tables_have_a_row_of_every_set_of_every_head(run: Run) -> None:
    tables = dict(re.findall(r"INFO: ([^\n]*):\n((?:[|+].*\n)+)", run.log))
    assert rows_of(tables["Error-table on TRAIN and VALID"]) == ["train_a", "train_b", "valid_a", "valid_b"]
    assert rows_of(tables["Error-table on TEST"]) == ["warm_a", "warm_b"]
    by_type = [f"{group}_{head}/Default" for group in ("train", "valid") for head in "ab"]
    assert rows_of(tables["RMSE by config_type"]) == [*by_type, "test_a/warm", "test_b/warm"]


def test_pictures_and_pages_have_the_heads_in_their_names(run: Run) -> None:
    results = {path.name for path in (run.folder / "results").iterdir()}
    for head in "ab":
        assert {f"tiny_run-7_{head}_parity_stage_one.png", f"tiny_run-7_{head}_data.html"} <= results
    assert not {"tiny_run-7_parity_stage_one.png", "tiny_run-7_data.html"} & results


def test_trackers_tell_the_head(run: Run) -> None:
    with (run.folder / "results" / "tiny_run-7_evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["head"] for row in rows] == ["a", "b"] * 4
    records = [record for record in run.records if record["mode"] == "eval"]
    assert [float(row["rmse_f"]) for row in rows] == [record["rmse_f"] for record in records]


def test_the_page_has_a_choice_of_head(run: Run) -> None:
    page = page_of(run)
    assert embedded_in(page, "heads") == ["a", "b"]
    (stage,) = embedded_in(page, "errors-data")["stages"]
    names = ["train_a", "train_b", "valid_a", "valid_b", "warm_a", "warm_b"]
    assert [name for name, _ in stage["sets"]] == names and stage["heads"] == ["a", "b"] * 3
    assert {suspect["head"] for suspect in stage["suspects"]} == {"a", "b"}
    of_test = [stage["suspects"][k] for k in stage["worst"]["forces"]]
    assert [sum(s["role"] == "test" and s["head"] == head for s in of_test) for head in "ab"] == [5, 3]


def test_curves_of_heads_have_their_own_colors(run: Run) -> None:
    panels = {panel["title"]: panel["series"] for panel in embedded_in(page_of(run), "curves-data")["panels"]}
    losses = {series["label"]: series for series in panels["Loss"]}
    assert list(losses) == ["training, as it went", "validation a", "validation b", "validation, all heads"]
    assert len({series["color"] for series in losses.values()}) == 4
    assert [losses[f"validation {head}"]["head"] for head in "ab"] == ["a", "b"]
    assert [series["head"] for series in panels["RMSE of forces, validation"]] == ["a", "b"]


def test_the_page_shows_the_constants_of_every_head(run: Run) -> None:
    page = page_of(run)
    rows = dict(re.findall(r'<tr data-head="(.)"><td class="left">H</td><td class="left">.</td><td>([^<]*)</td>', page))
    energies = load_model(run.folder / "tiny.model").model.plan.energies_of_heads()
    assert {head: float(energy) for head, energy in rows.items()} == pytest.approx(
        {"a": energies[0][1], "b": energies[1][1]}, rel=1e-7
    )
    assert float(rows["b"]) - float(rows["a"]) == pytest.approx(SHIFT["H"], abs=1e-6)
    heads = re.search('<section id="heads".*?</section>', page, re.S)[0]  # type: ignore[index]
    words = re.sub("<[^>]*>", " ", heads)
    assert re.search(r"\ba +1 +9 +9 +3 ", words) and re.search(r"\bb +2 +6 +6 +2 ", words)
    assert words.count("IsolatedAtom frames") == 2 and "--select_by=all" in words and "--head_sampling=all" in words
    assert "HeadSettings" not in page
    assert page.count("--head=a") == 2 and "head=&#x27;a&#x27;)" in page


def test_structures_of_one_head_are_no_duplicates_of_another(run: Run) -> None:
    for head, other in ("ab", "ba"):
        page = page_of(run, f"_{head}_data")
        assert f"<title>Data of tiny_run-7, head {head}</title>" in page
        assert f"<b>{head}</b>" in page and f'<a href="tiny_run-7_{other}_data.html">{other}</a>' in page
        assert "uplicates" not in page and "leakage" not in page
        assert f'href="tiny_run-7_{head}_data.html"' in page_of(run)


def test_runs_are_compared_by_head(run: Run, folder: Path, tmp_path: Path) -> None:
    records = str(folder / "results" / "tiny_run-7_train.txt")
    plot_train.run([records, f"--output={tmp_path / 'x'}", "--output_format=none"])
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert embedded_in(page, "heads") == ["a", "b"]
    best = load_model(run.folder / "tiny.model").metadata.epoch
    for head in "ab":
        (record,) = (r for r in run.records if r["mode"] == "eval" and (r["epoch"], r["head"]) == (best, head))
        cells = re.search(rf'<tr data-head="{head}">(.*?)</tr>', page)[1]  # type: ignore[index]
        assert f"<td>{best}</td><td>{record['loss']:.5g}</td>" in cells
    plot_train.run([records, "--heads=b", f"--output={tmp_path / 'b'}", "--output_format=none"])
    only = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert [p["series"][-1]["label"] for p in embedded_in(only, "curves-data")["panels"]][1] == "validation"
    with pytest.raises(UserError, match="has no evaluation of a head 'c'; it has a, b"):
        plot_train.run([records, "--heads=c", f"--output={tmp_path / 'c'}"])


def test_a_dry_run_plans_every_head(folder: Path) -> None:
    output = io.StringIO()
    flags = (heads_in(folder), "--dry_run", "--head_sampling=balanced", "--select_by=b")
    run_training(settings_of(folder, None, *flags), Console(file=output, width=300))
    shown = output.getvalue()
    assert re.search(
        r"head a +\| 9 training, 8 of them in an epoch, 3 validation, 5 test; weight in loss 1; scale", shown
    )
    assert re.search(
        r"head b +\| 6 training, 7 of them in an epoch, 2 validation, 3 test; weight in loss 2; scale", shown
    )
    assert re.search(r"best model +\| the lowest validation loss of head b \(--select_by=b\)", shown)
    assert re.search(r"head sampling +\| balanced", shown)


def test_a_model_is_described_by_head(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.run([str(run.folder / "tiny.model"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert list(described["heads"]) == ["a", "b"] and set(described["metrics"]) >= {"train_a", "valid_b", "warm_b"}
    assert described["training"]["heads"]["b"]["weight"] == 2.0
    assert set(described["training"]["heads"]["a"]) == {"train_file", "test_file", "valid_fraction"}


def test_an_evaluation_has_a_table_by_head(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = []
    for head in "ab":
        for atoms in read(run.folder / f"t{head}.xyz", ":"):
            atoms.info["head"] = head
            frames.append(atoms)
    write(tmp_path / "mixed.xyz", frames, format="extxyz")
    output = tmp_path / "predicted.xyz"
    eval_configs.run(
        [f"--configs={tmp_path / 'mixed.xyz'}", f"--model={run.folder / 'tiny.model'}", f"--output={output}"]
    )
    shown = capsys.readouterr().out
    assert rows_of(shown) == ["all", "all_a", "all_b", "warm_a", "warm_b"]
    errors = {head: [] for head in ("a", "b", "all")}
    for atoms in read(output, ":"):
        for name in (atoms.info["head"], "all"):
            errors[name].append((atoms.arrays["MACE_forces"] - atoms.arrays["REF_forces"]).ravel())
    for name, of_name in errors.items():
        rmse = 1000.0 * np.sqrt(np.mean(np.concatenate(of_name) ** 2))
        row = next(
            line
            for line in shown.splitlines()
            if line.split("|")[1:2] == [f" {name if name == 'all' else f'all_{name}'}".ljust(13)]
        )
        assert float(row.split("|")[3]) == pytest.approx(rmse, abs=0.06)


def test_data_are_checked_by_head(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_data.run([heads_in(folder), "--json=all.json"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"all.json", "a_a_data.html", "b_b_data.html"}
    assert 'href="b_b_data.html"' in Path("a_a_data.html").read_text()
    document = json.loads(Path("all.json").read_text())
    assert list(document) == ["format", "program", "heads", "errors"] and document["errors"] == 0
    energies = {head: of["reference_energies"]["1"] for head, of in document["heads"].items()}
    assert energies["b"] - energies["a"] == pytest.approx(SHIFT["H"])


def test_an_error_in_one_head_is_one_of_the_check(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = water(4)
    broken[2].positions[1] = broken[2].positions[0]
    write("broken.xyz", isolated_atoms() + broken, format="extxyz")
    assert (
        check_data.run([heads_in(folder, train_file="broken.xyz"), "--html=said.html", "--json=x.json", "--quiet"]) == 2
    )
    shown = capsys.readouterr().out
    assert "Head b" in shown and "Head a" not in shown and "broken.xyz: structure 4 has atoms closer" in shown
    assert Path("said_a.html").exists() and "close-atoms" in Path("said_b.html").read_text()
    document = json.loads(Path("x.json").read_text())
    assert (document["errors"], document["heads"]["a"]["errors"], document["heads"]["b"]["errors"]) == (1, 0, 1)


def test_replay_of_the_own_structures_has_a_page_too(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    replay = ["--multiheads_finetuning=True", "--pseudolabel_replay=True", "--foundation_head=a"]
    flags = [f"--train_file={folder / 'b.xyz'}", f"--foundation_model={run.folder / 'tiny.model'}", *replay]
    assert check_data.run([*flags, "--json=x.json"]) == 0
    assert {path.name for path in tmp_path.glob("*.html")} == {"b_pt_head_data.html", "b_Default_data.html"}
    assert list(json.loads(Path("x.json").read_text())["heads"]) == ["pt_head", "Default"]
