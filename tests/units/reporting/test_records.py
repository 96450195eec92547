"""Is the history of a run valid JSON lines with the fields that other programs read?"""

import json

import numpy as np
import pytest
import torch

from mace.reporting.records import RecordWriter, read_records, results_path


def _lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_results_path_is_the_one_other_programs_look_for(tmp_path):
    assert results_path(tmp_path, "acac", 123) == tmp_path / "acac_run-123_train.txt"


def test_fields_and_their_order(tmp_path):
    path = tmp_path / "results" / "run.txt"
    with RecordWriter(path) as writer:
        writer.evaluation(loss=2.0, metrics={"mae_e": 0.5, "rmse_f": 0.25}, seconds=1.5, epoch=None, head="Default")
        writer.step(loss=3.0, seconds=0.5, epoch=0)
        writer.step(loss=3.0, seconds=0.5, epoch=0, learning_rate=0.01)
    assert _lines(path) == [
        '{"loss": 2.0, "mae_e": 0.5, "rmse_f": 0.25, "time": 1.5, "mode": "eval", "epoch": null, "head": "Default"}',
        '{"loss": 3.0, "time": 0.5, "mode": "opt", "epoch": 0}',
        '{"loss": 3.0, "time": 0.5, "mode": "opt", "epoch": 0, "lr": 0.01}',
    ]


def test_a_line_can_be_read_before_the_file_is_closed_and_later_runs_append(tmp_path):
    path = tmp_path / "run.txt"
    first = RecordWriter(path)
    first.step(loss=1.0, seconds=0.1, epoch=0)
    assert len(_lines(path)) == 1
    first.close()
    with RecordWriter(path) as second:
        second.step(loss=0.5, seconds=0.1, epoch=1)
    assert [record["epoch"] for record in read_records(path)] == [0, 1]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), torch.tensor(float("nan")), np.float32("-inf")])
def test_what_is_not_finite_becomes_null(tmp_path, loss):
    path = tmp_path / "run.txt"
    with RecordWriter(path) as writer:
        writer.evaluation(loss=loss, metrics={"rmse_e": loss}, seconds=0.0, epoch=1, head="Default")

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    record = json.loads(_lines(path)[0], parse_constant=refuse)
    assert record["loss"] is None
    assert record["rmse_e"] is None


def test_numpy_and_torch_scalars_become_plain_numbers(tmp_path):
    path = tmp_path / "run.txt"
    with RecordWriter(path) as writer:
        writer.step(loss=torch.tensor(0.5, requires_grad=True), seconds=np.float64(0.25), epoch=np.int64(7))
    assert _lines(path) == ['{"loss": 0.5, "time": 0.25, "mode": "opt", "epoch": 7}']


def test_a_step_has_its_atoms_and_the_seconds_of_its_phases(tmp_path):
    path = tmp_path / "run.txt"
    with RecordWriter(path) as writer:
        writer.step(loss=0.5, seconds=0.25, epoch=7, n_atoms=45, phases={"forward": 0.125})
    assert json.loads(_lines(path)[0]) | {"atoms": 45, "time_forward": 0.125} == json.loads(_lines(path)[0])


def test_a_line_cut_short_is_closed_and_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "run.txt"
    path.write_text('{"loss": 1.0, "epoch": 0}\n{"loss": 0.9, "ep', encoding="utf-8")
    with RecordWriter(path) as writer:
        writer.step(loss=0.8, seconds=0.1, epoch=1)
    with caplog.at_level("WARNING", logger="mace"):
        records = list(read_records(path))
    assert [record["loss"] for record in records] == [1.0, 0.8]
    assert "line 2 is not a complete record" in caplog.text
