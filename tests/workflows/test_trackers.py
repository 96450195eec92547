"""Does a run show up in trackers, and go on there when it is resumed?"""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any

import pytest
from training_runs import train, write_water


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_and_tensorboard_say_what_the_json_lines_say(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = write_water(tmp_path / "train.xyz")
    flags = ("--csv", "--tensorboard")
    train(tmp_path, data, *flags)
    run = train(tmp_path, data, *flags, "--max_num_epochs=4", "--restart_latest")
    results = tmp_path / "results"
    steps = [record for record in run.records if record["mode"] == "opt"]
    evaluations = [record for record in run.records if record["mode"] == "eval"]
    assert [float(row["loss"]) for row in table(results / f"{run.tag}_steps.csv")] == [r["loss"] for r in steps]
    rows = table(results / f"{run.tag}_evaluations.csv")
    assert [float(row["rmse_f"]) for row in rows] == [r["rmse_f"] for r in evaluations]
    assert rows[0].keys() - {"update"} == evaluations[0].keys() - {"mode"}
    (folder,) = (results / f"{run.tag}_tensorboard").iterdir()  # of one run, because it was resumed
    shown = events.EventAccumulator(str(folder))
    shown.Reload()
    losses = shown.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, len(steps) + 1))
    assert [event.value for event in losses] == pytest.approx([record["loss"] for record in steps])
    numbers = {f"valid/{key}" for key, value in evaluations[-1].items() if isinstance(value, float)}
    assert numbers <= set(shown.Tags()["scalars"])


def test_a_new_run_has_a_folder_of_its_own_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    data = write_water(tmp_path / "train.xyz")
    for _ in range(2):
        run = train(tmp_path, data, "--tensorboard", "--max_num_epochs=1")
    assert len(list((tmp_path / "results" / f"{run.tag}_tensorboard").iterdir())) == 2


def history(file: Path) -> list[dict[str, Any]]:
    """Read what was logged from a short file of an offline run: a log of LevelDB whose entries are messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, logged = file.read_bytes(), 7, list[dict[str, Any]]()
    assert len(data) < 32768, "longer files are in several blocks"
    while place + 7 <= len(data):
        size, kind = struct.unpack_from("<HB", data, place + 4)
        assert kind == 1, "an entry in parts"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + size])
        place += 7 + size
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            logged.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return logged


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = write_water(tmp_path / "train.xyz")
    flags = ("--wandb", "--wandb_project=water", "--wandb_name=first", f"--wandb_dir={tmp_path / 'w'}")
    run = train(tmp_path, data, *flags, "--wandb_log_hypers", "lr", "batch_size")
    (file,) = (tmp_path / "w").rglob("run-*.wandb")
    logged = history(file)
    steps = [record for record in run.records if record["mode"] == "opt"]
    losses = [float(entry["train/loss"]) for entry in logged if "train/loss" in entry]
    assert losses == [record["loss"] for record in steps]
    assert [float(entry["valid/rmse_f"]) for entry in logged if "valid/rmse_f" in entry] == [
        record["rmse_f"] for record in run.records if record["mode"] == "eval"
    ]
    assert run.said("Weights & Biases: run ")


def test_weights_and_biases_that_cannot_start_stops_before_training(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from mace.errors import UserError

    def refuse(**arguments: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    data = write_water(tmp_path / "train.xyz")
    with pytest.raises(UserError, match="cannot start .api_key not configured.*WANDB_MODE=offline"):
        train(tmp_path, data, "--wandb")
    assert (
        not list((tmp_path / "results").glob("*_train.txt"))
        or not (tmp_path / "results" / "tiny_run-7_train.txt").read_text()
    )


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = write_water(tmp_path / "train.xyz")
    train(tmp_path, data, "--wandb", "--max_num_epochs=1")
    run = train(tmp_path, data, "--wandb", "--max_num_epochs=2", "--restart_latest")
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1, "one id"
    updates = [int(entry["update"]) for file in files for entry in history(file) if "train/loss" in entry]
    assert updates[-1] == sum(record["mode"] == "opt" for record in run.records)
