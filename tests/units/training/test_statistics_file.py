"""Statistics from a file: what was typed wins, and what cannot be used is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mace.errors import UserError
from mace.planning.statistics_file import with_statistics
from mace.settings import TrainingSettings

ENTRIES = {
    "atomic_energies": "{1: -13.5, 8: -430.25}",
    "avg_num_neighbors": 17.5,
    "mean": -3.25,
    "std": 0.75,
    "atomic_numbers": "[1, 8]",
    "r_max": 5.0,
}


def written(folder: Path, **changes: Any) -> str:
    file = folder / "statistics.json"
    file.write_text(json.dumps(ENTRIES | changes))
    return str(file)


def settings_of(file: str | None, **given: Any) -> TrainingSettings:
    known = {"name": "a", "train_file": "a.xyz", "r_max": 5.0}
    return TrainingSettings.model_validate(known | ({} if file is None else {"statistics_file": file}) | given)


def test_everything_is_taken_that_was_not_typed(tmp_path: Path) -> None:
    settings, notes = with_statistics(settings_of(written(tmp_path)))
    assert settings.E0s == {1: -13.5, 8: -430.25} and settings.atomic_numbers == [1, 8]
    assert (settings.mean, settings.std, settings.avg_num_neighbors) == (-3.25, 0.75, 17.5)
    assert settings.compute_avg_num_neighbors is False
    assert "E0s" in notes[0] and len(notes) == 1


def test_what_was_typed_stays(tmp_path: Path) -> None:
    given = settings_of(written(tmp_path), E0s="average", mean=1.5, compute_avg_num_neighbors=True)
    settings, notes = with_statistics(given)
    assert (settings.E0s, settings.mean, settings.std) == ("average", 1.5, 0.75)
    assert settings.compute_avg_num_neighbors and "avg_num_neighbors" not in notes[0]
    assert "E0s, mean typed" in notes[1]


def test_neighbors_within_another_cutoff_are_counted_anew(tmp_path: Path) -> None:
    settings, _ = with_statistics(settings_of(written(tmp_path), r_max=4.0))
    assert settings.compute_avg_num_neighbors and settings.std == 0.75


def test_a_head_has_its_own(tmp_path: Path) -> None:
    heads = {"low": {"train_file": "l.xyz", "statistics_file": written(tmp_path)}, "high": {"train_file": "h.xyz"}}
    given = TrainingSettings.model_validate({"name": "a", "heads": heads})
    settings, notes = with_statistics(given)
    assert settings.heads is not None
    assert settings.heads["low"].E0s == {1: -13.5, 8: -430.25} and settings.heads["low"].mean == -3.25
    assert settings.heads["high"].E0s is None and "head low" in notes[0]


@pytest.mark.parametrize("changes", [{"mean": "much"}, {"atomic_energies": "[1]"}, {"std": float("nan")}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"statistics.json: this is no file of statistics"):
        with_statistics(settings_of(written(tmp_path, **changes)))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"missing.json: this file, given as --statistics_file, cannot be opened"):
        with_statistics(settings_of("missing.json"))


def test_without_one_nothing_changes() -> None:
    given = settings_of(None)
    assert with_statistics(given) == (given, [])
