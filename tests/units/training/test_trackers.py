"""Do trackers get what the JSON lines get, and can a failing one do no harm?"""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from mace.errors import UserError
from mace.reporting import tracking_services
from mace.reporting.records import RecordWriter, read_records
from mace.reporting.trackers import Trackers, scalars
from mace.reporting.tracking_services import CsvTables, require_trackers
from mace.settings import parse_training_settings

REQUIRED = ["--name=run", "--train_file=train.xyz"]


class Listener:
    """A tracker that keeps what it is told and fails from some update on."""

    name = "Listener"

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.begun, self.told, self.completed = fails_at, [], [], None

    def begin(self, history, update):
        self.begun.append((len(history), update))

    def take(self, record, update):
        if self.fails_at is not None and update >= self.fails_at:
            raise ConnectionError("the line is dead")
        self.told.append((record, update))

    def finish(self, completed):
        self.completed = completed


def write_steps(records: RecordWriter, count: int) -> None:
    for _ in range(count):
        records.step(loss=0.5, seconds=0.1, epoch=0, learning_rate=0.01)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_updates_are_counted_from_the_history(tmp_path):
    with RecordWriter(tmp_path / "r.txt") as records:
        write_steps(records, 3)
    listener = Listener()
    with RecordWriter(tmp_path / "r.txt") as records, Trackers([listener]) as followers:
        records.follow(followers)
        write_steps(records, 2)
        records.evaluation(loss=0.4, metrics={"rmse_f": 0.1}, seconds=0.2, epoch=0, head="Default")
    assert listener.begun == [(3, 3)]
    assert [update for _, update in listener.told] == [4, 5, 5]
    assert listener.told[-1][0] == list(read_records(tmp_path / "r.txt"))[-1]
    assert listener.completed is True


def test_a_failing_tracker_costs_one_warning_and_nothing_else(tmp_path, caplog):
    bad, good = Listener(fails_at=2), Listener()
    with caplog.at_level(logging.WARNING, logger="mace"):
        with RecordWriter(tmp_path / "r.txt") as records, Trackers([bad, good]) as followers:
            records.follow(followers)
            write_steps(records, 4)
    assert [
        message for message in caplog.messages if "Listener failed (the line is dead)" in message
    ] == caplog.messages
    assert len(caplog.messages) == 1
    assert (len(bad.told), len(good.told)) == (1, 4)
    assert len(list(read_records(tmp_path / "r.txt"))) == 4


def test_trackers_learn_that_the_run_did_not_end_well(tmp_path):
    listener = Listener()
    with pytest.raises(KeyError), Trackers([listener]):
        raise KeyError("x")
    assert listener.completed is False


def test_trackers_are_taken_back_with_the_records(tmp_path):
    listener = Listener()
    with RecordWriter(tmp_path / "r.txt") as records, Trackers([listener]) as followers:
        records.follow(followers)
        write_steps(records, 2)
        place = records.position
        write_steps(records, 3)
        records.go_back(place)
        write_steps(records, 1)
    assert listener.begun == [(0, 0), (2, 2)]
    assert listener.told[-1][1] == 3


def test_scalars_are_all_numbers_and_nothing_else():
    record = {"mode": "eval", "epoch": None, "head": "Default", "loss": 1.0, "rmse_e": None, "new": 3, "flag": True}
    assert scalars(record) == {"valid/loss": 1.0, "valid/new": 3}
    assert scalars({"mode": "eval", "epoch": 2, "head": "dft", "loss": 1.0}) == {"valid/dft/loss": 1.0, "epoch": 2}


def test_scalars_of_heads_have_their_names():
    record = {"mode": "eval", "head": "b", "epoch": 2, "loss": 1.0}
    assert scalars(record) == {"valid/b/loss": 1.0, "epoch": 2}
    for by in ("all", "b"):  # not in place of the loss of a head
        assert scalars({**record, "mode": "selection", "head": by}) == {"selection/loss": 1.0, "epoch": 2}


def test_csv_columns_grow_and_rows_are_taken_back(tmp_path):
    steps, evaluations = tmp_path / "s.csv", tmp_path / "e.csv"
    with RecordWriter(tmp_path / "r.txt") as records, Trackers([CsvTables(steps, evaluations)]) as followers:
        records.follow(followers)
        records.step(loss=0.5, seconds=0.1, epoch=0)
        write_steps(records, 1)
        place = records.position
        assert [(row["update"], row["lr"]) for row in rows(steps)] == [("1", ""), ("2", "0.01")]
        records.evaluation(loss=float("nan"), metrics={}, seconds=0.2, epoch=0, head="Default")
        assert rows(evaluations)[0]["loss"] == "" and rows(evaluations)[0]["update"] == "2"
        write_steps(records, 2)
        records.go_back(place)
        assert not evaluations.exists()
        write_steps(records, 1)
    assert [row["update"] for row in rows(steps)] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_one_sentence_with_the_way_out(name, monkeypatch):
    monkeypatch.setattr(tracking_services, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"--{name} needs the package {name}; .*pip install 'mace-train\[{name}\]'"):
        require_trackers(parse_training_settings([*REQUIRED, f"--{name}"]))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--wandb", "--wandb_log_hypers", "qqq"], "qqq is not a setting; --help lists all settings."),
        (["--wandb", "--wandb_log_hypers", "lr", "bach_size"], "bach_size is not a setting; did you mean batch_size?"),
    ],
)
def test_flags_without_meaning_are_refused(flags, sentence):
    with pytest.raises(UserError) as caught:
        require_trackers(parse_training_settings([*REQUIRED, *flags]))
    assert sentence in str(caught.value)
