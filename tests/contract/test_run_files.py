"""Are names, places and shapes of a run's files those that other programs rely on?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ase.io import read, write
from training_runs import Run, copper, isolated_atoms, train, water, write_water

from mace.model.model_file import load_model
from mace.runs import final_report

STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "
PNG = b"\x89PNG\r\n"
EVALUATION = {
    "loss", "mae_e", "mae_e_per_atom", "rmse_e", "rmse_e_per_atom", "q95_e", "mae_f", "rel_mae_f", "rmse_f",
    "rel_rmse_f", "q95_f", "time", "mode", "epoch", "head",
}  # fmt: skip
STEP_FIELDS = {
    "loss", "time", "mode", "epoch", "lr", "grad_norm", "atoms", "time_data", "time_forward", "time_backward",
    "time_optimizer",
}  # fmt: skip
STRESS = {"mae_stress", "rmse_stress", "q95_stress"}
VIRIALS = {"mae_virials", "mae_virials_per_atom", "rmse_virials", "rmse_virials_per_atom", "q95_virials"}


@pytest.fixture(scope="module")
def both_stages(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything that writes files."""
    folder = tmp_path_factory.mktemp("run")
    data = write_water(folder / "train.xyz")
    flags = ("--max_num_epochs=3", "--swa", "--start_swa=2", "--ema", "--plot=True", "--valid_fraction=0.25")
    return train(folder, data, *flags)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_a_run(both_stages: Run) -> None:
    best = {0, 1} & {int(path.stem.split("-")[-1]) for path in (both_stages.folder / "checkpoints").glob("*-?.pt")}
    assert len(best) == 1
    assert files_in(both_stages.folder) == {
        "train.xyz",
        "tiny.model",
        "tiny_stagetwo.model",
        "tiny_valid_indices_7.txt",
        "logs/tiny_run-7.log",
        "results/tiny_run-7_train.txt",
        "results/tiny_run-7.html",
        "results/tiny_run-7_data.html",
        "results/tiny_run-7_learning_curves.png",
        "results/tiny_run-7_parity_stage_one.png",
        "results/tiny_run-7_parity_stage_two.png",
        f"checkpoints/tiny_run-7_epoch-{best.pop()}.pt",
        "checkpoints/tiny_run-7_epoch-2_swa.pt",
        "checkpoints/tiny_run-7_last.pt",
        "checkpoints/tiny_run-7_last_previous.pt",
        "checkpoints/tiny_run-7.model",
        "checkpoints/tiny_run-7_stagetwo.model",
    }
    for ending in ("", "_stagetwo"):
        of_the_seed = both_stages.folder / "checkpoints" / f"tiny_run-7{ending}.model"
        assert of_the_seed.read_bytes() == (both_stages.folder / f"tiny{ending}.model").read_bytes()


def test_every_folder_can_be_chosen(tmp_path: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    kinds = ("log", "model", "checkpoints", "results")
    flags = [f"--{kind}_dir={tmp_path / 'deep' / kind}" for kind in kinds]
    train(tmp_path / "work", data, *flags, "--max_num_epochs=1")
    assert files_in(tmp_path / "work") == {"tiny_valid_indices_7.txt"}
    assert files_in(tmp_path / "deep") == {
        "log/tiny_run-7.log",
        "model/tiny.model",
        "checkpoints/tiny_run-7.model",
        "checkpoints/tiny_run-7_epoch-0.pt",
        "checkpoints/tiny_run-7_last.pt",
        "checkpoints/tiny_run-7_last_previous.pt",
        "results/tiny_run-7_train.txt",
        "results/tiny_run-7.html",
        "results/tiny_run-7_data.html",
    }


def test_without_folders_all_goes_to_where_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_water(tmp_path / "train.xyz")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train(Path("."), data, "--max_num_epochs=1")
    assert {"tiny.model", "logs/tiny_run-7.log"} < files_in(tmp_path / "here")


@pytest.mark.parametrize("flag", ["--keep_checkpoints", "--save_all_checkpoints"])
def test_checkpoints_of_earlier_epochs_can_be_kept(tmp_path: Path, flag: str) -> None:
    data = write_water(tmp_path / "train.xyz")
    run = train(tmp_path, data, "--max_num_epochs=4", "--eval_interval=1", "--lr=0.02", flag)
    losses = [record["loss"] for record in run.records if record["mode"] == "eval"][1:]
    gains = [epoch for epoch, loss in enumerate(losses) if loss == min(losses[: epoch + 1])]
    kept = list(range(4)) if flag == "--save_all_checkpoints" else gains
    names = {path.name for path in (tmp_path / "checkpoints").glob("*_epoch-*.pt")}
    assert names == {f"tiny_run-7_epoch-{epoch}.pt" for epoch in kept}


def test_the_indices_of_the_validation_structures(both_stages: Run) -> None:
    header, *lines = (both_stages.folder / "tiny_valid_indices_7.txt").read_text(encoding="utf-8").splitlines()
    assert header.startswith("#")
    frames = read(both_stages.folder / "train.xyz", ":")
    indices = [int(line.split()[0]) for line in lines]
    assert len(set(indices)) == 3
    assert all(len(frames[index]) == 3 for index in indices)  # places in the file, isolated atoms counted


def test_the_history_begins_with_the_untrained_model(both_stages: Run) -> None:
    first = both_stages.records[0]
    assert (first["mode"], first["epoch"], first["head"]) == ("eval", None, "Default")


def test_the_history_has_a_line_for_each_step_and_each_evaluation(both_stages: Run) -> None:
    order = [(record["mode"], record["epoch"]) for record in both_stages.records[1:]]
    # nine structures in batches of four
    assert order == [entry for epoch in range(3) for entry in [("opt", epoch)] * 3 + [("eval", epoch)]]


def test_the_fields_of_the_history(both_stages: Run) -> None:
    for record in both_stages.records:
        if record["mode"] == "opt":
            assert set(record) - {"stage"} == STEP_FIELDS
            assert record.get("stage") == ("two" if record["epoch"] >= 2 else None)
        else:
            assert set(record) == EVALUATION
        assert record["time"] > 0.0 and record["loss"] > 0.0


def test_stress_adds_its_fields(tmp_path: Path) -> None:
    write(tmp_path / "copper.xyz", isolated_atoms(["Cu"]) + copper(6), format="extxyz")  # type: ignore[arg-type]
    run = train(tmp_path, tmp_path / "copper.xyz", "--loss=stress", "--max_num_epochs=1")
    assert set(run.records[0]) == EVALUATION | STRESS | VIRIALS
    plain = train(tmp_path / "plain", tmp_path / "copper.xyz", "--compute_stress=True", "--max_num_epochs=1")
    assert set(plain.records[0]) == EVALUATION | STRESS | VIRIALS
    without = train(tmp_path / "without", tmp_path / "copper.xyz", "--max_num_epochs=1")
    assert set(without.records[0]) == EVALUATION


def test_every_line_of_the_log_has_time_and_level(both_stages: Run) -> None:
    lines = [line for line in both_stages.log.splitlines() if not line.startswith(("+", "|"))]
    assert len(lines) > 20
    assert all(re.match(STAMP + "(INFO|WARNING): ", line) for line in lines)


def test_the_line_after_an_epoch(both_stages: Run) -> None:
    number = r" *\d+\.\d\d"
    errors = rf"loss=\d+\.\d{{8}}, RMSE_E_per_atom={number} meV, RMSE_F={number} meV / A$"
    for start in ("Initial", "Epoch 0", "Epoch 1", "Epoch 2"):
        found = re.findall(STAMP + rf"INFO: {start}: head: Default, {errors}", both_stages.log, re.MULTILINE)
        assert len(found) == 1, start


def test_the_line_after_an_epoch_says_what_the_history_says(both_stages: Run) -> None:
    record = [record for record in both_stages.records if record["mode"] == "eval"][-1]
    text = (
        f"Epoch 2: head: Default, loss={record['loss']:.8f}, RMSE_E_per_atom={1e3 * record['rmse_e_per_atom']:8.2f} "
        f"meV, RMSE_F={1e3 * record['rmse_f']:8.2f} meV / A"
    )
    assert text in both_stages.log


def test_the_terminal_shows_what_the_log_holds(both_stages: Run) -> None:
    assert both_stages.shown == both_stages.log


TABLES = {
    "PerAtomRMSE": ("RMSE E / meV / atom", "RMSE F / meV / A", "relative F RMSE %"),
    "TotalRMSE": ("RMSE E / meV", "RMSE F / meV / A", "relative F RMSE %"),
    "PerAtomMAE": ("MAE E / meV / atom", "MAE F / meV / A", "relative F MAE %"),
    "TotalMAE": ("MAE E / meV", "MAE F / meV / A", "relative F MAE %"),
    "PerAtomRMSEstressvirials": ("RMSE E / meV / atom", "RMSE Stress (Virials) / meV / A (A^3)"),
    "PerAtomMAEstressvirials": ("MAE E / meV / atom", "MAE Stress (Virials) / meV / A (A^3)"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_final_table_of_every_kind(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "copper.xyz", isolated_atoms(["Cu"]) + copper(6), format="extxyz")  # type: ignore[arg-type]
    flags = (f"--error_table={kind}", "--compute_stress=True", "--max_num_epochs=1")
    run = train(tmp_path, tmp_path / "copper.xyz", *flags)
    table = run.log.split("Error-table on TRAIN and VALID:\n")[1].split("\n20")[0]
    header = table.splitlines()[1]
    assert all(f"| {title} " in header or f" {title} |" in header for title in TABLES[kind])
    rows = [line for line in table.splitlines() if "_Default" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["train_Default", "valid_Default"]
    assert not any(" - " in row for row in rows)


def test_the_numbers_of_the_table_are_in_the_model_file(both_stages: Run) -> None:
    loaded = load_model(both_stages.folder / "tiny_stagetwo.model")
    table = both_stages.log.split("Error-table on TRAIN and VALID:\n")[2]
    metrics = loaded.metadata.metrics
    assert loaded.metadata.stage == "two" and loaded.metadata.epoch == 2
    for name in ("train_Default", "valid_Default"):
        row = next(line for line in table.splitlines() if name in line)
        energy, forces = row.split("|")[2:4]
        assert float(energy) == pytest.approx(1e3 * float(metrics[name]["rmse_e_per_atom"] or 0), abs=0.051)
        assert float(forces) == pytest.approx(1e3 * float(metrics[name]["rmse_f"] or 0), abs=0.051)


def test_the_best_epoch_is_that_of_the_line_of_the_log(both_stages: Run) -> None:
    """Averaged weights are validated, kept and measured at the end: one number in three places."""
    metrics = load_model(both_stages.folder / "tiny_stagetwo.model").metadata.metrics["valid_Default"]
    record = [record for record in both_stages.records if record["mode"] == "eval"][-1]
    assert metrics["rmse_f"] == pytest.approx(record["rmse_f"], rel=1e-10)


def test_errors_of_every_config_type(tmp_path: Path) -> None:
    types: dict[str, Any] = {"near": water(8, seed=1, config_type="near"), "far": water(8, seed=2, config_type="far")}
    write(tmp_path / "train.xyz", isolated_atoms() + types["near"] + types["far"], format="extxyz")
    write(tmp_path / "test.xyz", water(2, seed=3, config_type="odd"), format="extxyz")
    flags = ("--valid_fraction=0.5", f"--test_file={tmp_path / 'test.xyz'}", "--max_num_epochs=1")
    run = train(tmp_path, tmp_path / "train.xyz", *flags)
    for measure in ("RMSE", "MAE"):
        table = run.log.split(f"{measure} by config_type:\n")[1].split("\n20")[0]
        names = re.findall(r"^\| (\w+/\w+) ", table, re.MULTILINE)
        assert names == ["train/far", "train/near", "valid/far", "valid/near", "test/odd"]
        assert f"{measure} E / meV / atom" in table


def test_tests_of_the_same_type_in_several_files_stay_apart(tmp_path: Path) -> None:
    data = write_water(tmp_path / "train.xyz")
    folder = tmp_path / "tests"
    folder.mkdir()
    write(folder / "cold.xyz", water(2, seed=3), format="extxyz")
    write(folder / "hot.xyz", water(2, seed=4), format="extxyz")
    run = train(tmp_path, data, f"--test_dir={folder}", "--max_num_epochs=1")
    table = run.log.split("RMSE by config_type:\n")[1].split("\n20")[0]
    assert "cold" in table and "hot" in table


def test_the_model_is_written_before_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_water(tmp_path / "train.xyz")

    def fail(*args: object, **keywords: object) -> None:
        raise MemoryError("the structures are too large to be evaluated")

    monkeypatch.setattr(final_report, "evaluate", fail)
    run = train(tmp_path, data, "--max_num_epochs=1")
    assert "too large to be evaluated" in run.log
    assert load_model(tmp_path / "tiny.model").metadata.metrics == {}


def test_both_models_are_written_before_one_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_water(tmp_path / "train.xyz")

    def fail(*args: object, **keywords: object) -> None:
        raise MemoryError("the structures are too large to be evaluated")

    monkeypatch.setattr(final_report, "evaluate", fail)
    run = train(tmp_path, data, "--max_num_epochs=2", "--swa", "--start_swa=1")
    assert run.log.count("too large to be evaluated") == 2
    assert (tmp_path / "tiny.model").exists() and (tmp_path / "tiny_stagetwo.model").exists()


def test_plots_are_pictures_and_none_are_drawn_without_wish(both_stages: Run, tmp_path: Path) -> None:
    pictures = list((both_stages.folder / "results").glob("*.png"))
    assert len(pictures) == 3
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000 for path in pictures)
    train(tmp_path, both_stages.folder / "train.xyz", "--max_num_epochs=1", "--plot=False")
    assert not list(tmp_path.rglob("*.png"))


def test_plots_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mace.runs import finishing, run

    data = write_water(tmp_path / "train.xyz")
    drawn: list[int] = []
    for module in (run, finishing):
        monkeypatch.setattr(module, "plot_curves", lambda *args: drawn.append(args[-1].progression.epoch))
    monkeypatch.setattr(final_report, "_plot", lambda *args: None)
    train(tmp_path, data, "--max_num_epochs=5", "--plot=True", "--plot_frequency=2")
    assert drawn == [3, 5, 5]  # after epochs 2 and 4, and at the end


def test_a_message_in_the_log_for_the_settings_that_were_given(both_stages: Run) -> None:
    assert both_stages.said(r"MACE version: \d+\.\d+")
    assert both_stages.said("Settings: .*'swa': True")
    assert both_stages.said("Total number of configurations: train=9, valid=3, tests=")
    assert both_stages.said("Number of parameters: 648")
