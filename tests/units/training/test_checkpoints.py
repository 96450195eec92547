"""Is a checkpoint complete or absent, and does a bad one say what is wrong with it?"""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from mace.errors import UserError
from mace.files import durable as durable_file
from mace.files.durable import temporary_beside, write_durably
from mace.model.plan import InteractionPlan, ModelPlan
from mace.training.checkpoints import (
    FORMAT,
    STRUCTURAL,
    CheckpointFolder,
    UnusableCheckpoint,
    differing_fields,
    encode,
    file_digests,
    load_safely,
)

PLAN = ModelPlan(
    model="MACE",
    r_max=5.0,
    n_channels=4,
    hidden_l=(0, 1),
    interactions=(InteractionPlan(residual=False), InteractionPlan(residual=True)),
    correlation=(3, 3),
    avg_num_neighbors=10.0,
    atomic_numbers=(1, 8),
    reference_energies=(0.0, 0.0),
)


STATE: dict[str, Any] = {"progression": {}}


def save(content: dict[str, Any], path: Path) -> None:
    write_durably(path, encode(content))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.pt"
    save({"weights": {"a": torch.arange(3)}, "epoch": 4, "text": "x"}, path)
    content = load_safely(path)
    assert content["format"] == FORMAT and content["epoch"] == 4 and content["text"] == "x"
    assert torch.equal(content["weights"]["a"], torch.arange(3))
    assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


def test_equal_content_gives_equal_bytes() -> None:
    assert encode({"weights": torch.arange(9)}) == encode({"weights": torch.arange(9)})


def test_torch_itself_can_read_it(tmp_path: Path) -> None:
    save({"epoch": 4}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["epoch"] == 4


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"weights": torch.arange(50)}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UnusableCheckpoint):
            load_safely(path)


def test_any_missing_end_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"weights": torch.arange(50)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableCheckpoint):
            load_safely(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    save({"epoch": 1}, path)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save({"epoch": 2}, path)
    monkeypatch.undo()
    assert load_safely(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_file_and_name_are_on_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, sync = durable_file.os.replace, durable_file.os.fsync
    kinds = {True: "sync folder", False: "sync file"}
    monkeypatch.setattr(
        durable_file.os, "fsync", lambda fd: (order.append(kinds[stat.S_ISDIR(os.fstat(fd).st_mode)]), sync(fd))[1]
    )
    monkeypatch.setattr(durable_file.os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    save({}, tmp_path / "a.pt")
    assert order == ["sync file", "replace", "sync folder"]


def test_the_state_before_is_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a_run-1")
    for number in (1, 2, 3):
        folder.save_last(STATE | {"number": number})
    state, path, problems = folder.load_last()
    assert (state["number"], path, problems) == (3, folder.last, {})
    folder.last.write_bytes(b"junk")
    state, path, problems = folder.load_last()
    assert (state["number"], path) == (2, folder.previous) and "a_run-1_last.pt" in problems[folder.last]
    folder.last.unlink()
    assert folder.load_last()[0]["number"] == 2


def test_without_hard_links_the_state_before_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(durable_file.os, "link", refuse)
    test_the_state_before_is_kept(tmp_path)


def _damaged(path: Path) -> None:
    save({"weights": torch.arange(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is not a checkpoint\n", encoding="utf-8")


class _Code:
    """What a hostile file would do on loading."""

    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def _code(path: Path) -> None:
    torch.save({"format": FORMAT, "weights": _Code()}, path)


def _bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Code()))


@pytest.mark.parametrize("spoil", [_damaged, _empty, _text, _code, _bare_pickle])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, spoil: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a_last.pt"
    spoil(path)
    with pytest.raises(UserError, match=r"a_last\.pt: the checkpoint cannot be read; it is damaged or no checkpoint"):
        load_safely(path)
    assert "never run" not in capsys.readouterr().out


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_last.pt"
    for content in ({"model": torch.ones(2)}, [1, 2], torch.ones(2)):
        torch.save(content, path)
        with pytest.raises(UserError, match="not a checkpoint of this program"):
            load_safely(path)


def test_a_later_format_asks_for_an_update(tmp_path: Path) -> None:
    save({"format": FORMAT + 1}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="later version of mace; update"):
        load_safely(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt: "):
        load_safely(tmp_path / "gone.pt")


@pytest.mark.parametrize("tag", ["run_run-1", "odd[1]*_run-1"])
def test_only_the_best_of_each_stage_is_kept(tmp_path: Path, tag: str) -> None:
    folder = CheckpointFolder(tmp_path, tag)
    other = CheckpointFolder(tmp_path, tag + "2")  # the tag of another run that begins with the same letters
    other.save_weights({}, PLAN, 0, "one")
    for epoch, stage in ((0, "one"), (3, "one"), (5, "two"), (8, "two")):
        folder.save_weights({"a": torch.ones(1)}, PLAN, epoch, stage)
    folder.remove_others([("one", 3), ("two", 8)])
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted([f"{tag}2_epoch-0.pt", f"{tag}_epoch-3.pt", f"{tag}_epoch-8_swa.pt"])
    assert [file.name for file in folder.files()] == [f"{tag}_epoch-3.pt", f"{tag}_epoch-8_swa.pt"]


def test_all_are_kept_where_that_is_wanted(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "a_run-1", keep_earlier=True)
    for epoch in (0, 3):
        folder.save_weights({}, PLAN, epoch, "one")
        folder.remove_others([("one", epoch)])
    assert len(folder.files()) == 2


@pytest.mark.parametrize("tag", ["run_run-1", "odd[1]*_run-1"])
def test_an_earlier_run_is_moved_as_a_whole_and_never_over_another(tmp_path: Path, tag: str) -> None:
    folder = CheckpointFolder(tmp_path, tag)
    assert folder.set_aside() is None
    for number in (1, 2):
        folder.save_weights({}, PLAN, number, "one")
        folder.save_last({})
        target = folder.set_aside()
        assert target == tmp_path / f"{tag}_earlier-{number}"
        assert sorted(file.name for file in target.iterdir()) == [f"{tag}_epoch-{number}.pt", f"{tag}_last.pt"]
        assert folder.files() == []


def test_plans_that_differ_are_told_field_by_field() -> None:
    assert differing_fields(PLAN, PLAN) == []
    changed = PLAN.model_copy(update={"r_max": 6.0, "n_channels": 8})
    assert differing_fields(PLAN, changed) == ["r_max 5.0 -> 6.0", "n_channels 4 -> 8"]


def test_constants_measured_on_the_data_may_differ() -> None:
    changed = PLAN.model_copy(
        update={"avg_num_neighbors": 11.0, "scale": 2.0, "shift": 1.0, "reference_energies": (1.0, 2.0)}
    )
    assert differing_fields(PLAN, changed) == []


def test_every_field_of_a_plan_is_either_structural_or_a_constant() -> None:
    constants = {"avg_num_neighbors", "reference_energies", "scale", "shift", "dipole_scale"}
    assert set(STRUCTURAL) | constants == set(ModelPlan.model_fields)


def test_each_file_has_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    digests = file_digests([tmp_path / "a", str(tmp_path / "b")])
    assert digests[str(tmp_path / "a")] == hashlib.sha256(b"first").hexdigest()
    assert digests[str(tmp_path / "b")] == hashlib.sha256(b"second").hexdigest()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "name_run-1")
    left = [folder.last, folder.previous, tmp_path / "name_run-1_epoch-3.pt"]
    unfinished = [
        temporary_beside(folder.last),
        temporary_beside(folder.previous),
        tmp_path / ".name_run-1_epoch-4.tmp",
    ]
    for file in (*left, *unfinished):
        file.write_bytes(b"x")
    folder.remove_unfinished()
    assert sorted(tmp_path.iterdir()) == sorted(left)
