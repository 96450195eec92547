"""Does a run go on, or say what is wrong, whatever happened to its files while it was stopped?"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Run, same, settings_of, train, untimed, write_water

from mace.errors import UserError
from mace.training import checkpoints as checkpoints_module
from mace.training.checkpoints import CheckpointFolder, encode, load_safely

FLAGS = ("--swa", "--start_swa=3", "--ema")
STOPPED, WHOLE = "--max_num_epochs=4", "--max_num_epochs=6"
RESUME = "--restart_latest"
TAG = "tiny_run-7"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, an uninterrupted run, one that was stopped, and one of another id."""
    place = tmp_path_factory.mktemp("place")
    data = write_water(place / "train.xyz")
    train(place / "whole", data, WHOLE, *FLAGS)
    for name in ("stopped", "other"):
        train(place / name, data, STOPPED, *FLAGS)
    return place


@pytest.fixture
def folder(place: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(place / "stopped", tmp_path / "run"))


def go_on(place: Path, folder: Path, *flags: str) -> Run:
    return train(folder, place / "train.xyz", WHOLE, *FLAGS, RESUME, *flags)


def assert_as_uninterrupted(place: Path, run: Run) -> None:
    straight = Run(settings_of(place / "whole", place / "train.xyz"), place / "whole", "")
    assert [untimed(record) for record in straight.records] == [untimed(record) for record in run.records]
    for ending in ("", "_stagetwo"):
        assert same(straight.weights(ending), run.weights(ending))
    beside = [
        {p.name for p in one.folder.glob("checkpoints/*") if not re.search("_rejected-|_earlier-", p.name)}
        for one in (straight, run)
    ]
    assert beside[0] == beside[1]


def best_of(folder: Path, stage: str) -> Path:
    state = load_safely(folder / "checkpoints" / f"{TAG}_last.pt")
    return CheckpointFolder(folder / "checkpoints", TAG).of_epoch(state["progression"]["best_epochs"][stage], stage)


def last_of(folder: Path) -> Path:
    return folder / "checkpoints" / f"{TAG}_last.pt"


def previous_of(folder: Path) -> Path:
    return folder / "checkpoints" / f"{TAG}_last_previous.pt"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _of_another_epoch(path: Path) -> None:
    content = load_safely(path)
    path.write_bytes(encode({**content, "epoch": content["epoch"] + 1}))


def _of_another_stage(path: Path) -> None:
    content = load_safely(path)
    path.write_bytes(encode({**content, "stage": {"one": "two", "two": "one"}[content["stage"]]}))


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (_flip, "do not have the checksum"),
    "gone": (Path.unlink, "cannot be opened .No such file"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read"),
    "a folder": (_into_folder, "cannot be opened .Is a directory"),
    "a state": (
        lambda path: shutil.copy(path.parent / f"{TAG}_last.pt", path),
        "this is a complete state, not",
    ),
    "another epoch": (_of_another_epoch, r"these are the weights of epoch \d of stage \w+, not of epoch \d"),
    "another stage": (_of_another_stage, r"these are the weights of epoch \d of stage \w+, not of epoch \d"),
    "of something else": (lambda path: torch.save([1], path), "not a checkpoint of this program"),
}


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("harm", HARM)
def test_no_harm_to_a_file_of_best_weights_costs_a_model(place: Path, folder: Path, harm: str, stage: str) -> None:
    act, words = HARM[harm]
    path = best_of(folder, stage)
    act(path)
    run = go_on(place, folder)
    assert run.said(rf"WARNING: .*{path.name}: .*{words}.* It is written anew from .*{TAG}_last.pt")
    assert_as_uninterrupted(place, run)
    assert (harm == "gone") == (not list(folder.rglob("*_rejected-1_epoch-*")))


def test_best_weights_of_a_finished_run_are_in_its_state(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "whole", tmp_path / "run"))
    for file in [*folder.glob("*.model"), *folder.glob("checkpoints/*.model"), *folder.glob("checkpoints/*_epoch-*")]:
        file.unlink()
    assert_as_uninterrupted(place, go_on(place, folder))


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{name: HARM[name] for name in ("flipped bit", "gone", "empty", "cut off", "a folder", "of something else")},
    "best weights": (
        lambda path: shutil.copy(best_of(path.parents[1], "one"), path),
        "no complete state of a run",
    ),
}


@pytest.mark.parametrize("harm", UNREADABLE)
def test_a_last_state_that_cannot_be_used_gives_way_and_is_never_rotated(
    place: Path, folder: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, words = UNREADABLE[harm]
    act(last_of(folder))
    good = previous_of(folder).read_bytes()
    saved: list[bytes] = []
    save_last = CheckpointFolder.save_last

    def watched(checkpoints: CheckpointFolder, state: Any) -> bytes:
        saved.append(checkpoints.previous.read_bytes())
        return save_last(checkpoints, state)

    monkeypatch.setattr(CheckpointFolder, "save_last", watched)
    run = go_on(place, folder)
    assert saved[0] == good and saved[1] == good  # the first save has nothing to rotate
    assert run.said(rf"WARNING: .*{TAG}_last.pt: .*{words}.* Going on from the state before, .*{TAG}_last_previous.pt")
    assert_as_uninterrupted(place, run)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_disk_that_does_not_give_the_last_state(
    place: Path, folder: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path == last_of(folder):
            raise OSError(code, os.strerror(code))
        return read(path)

    monkeypatch.setattr(checkpoints_module.Path, "read_bytes", failing)
    run = go_on(place, folder)
    monkeypatch.undo()
    assert run.said(rf"WARNING: .*last.pt: the checkpoint cannot be opened \({os.strerror(code)}\)\. Going on from")
    assert_as_uninterrupted(place, run)


def test_a_damaged_state_before_is_not_needed(place: Path, folder: Path) -> None:
    _flip(previous_of(folder))
    run = go_on(place, folder)
    assert run.said("WARNING: .*last_previous.pt: .* It is not needed")
    assert_as_uninterrupted(place, run)


def test_exchanged_states_are_told(place: Path, folder: Path) -> None:
    # the last save of a finished run makes both alike, so one of an earlier epoch is needed
    state = load_safely(last_of(folder))
    train(folder, place / "train.xyz", "--max_num_epochs=5", *FLAGS, RESUME)
    last_of(folder).write_bytes(encode(state))
    run = go_on(place, folder)
    assert run.said(r"WARNING: .*last.pt is older \(epoch 4\) than .*previous.pt \(epoch 5\)")
    assert_as_uninterrupted(place, run)


@pytest.mark.parametrize("kind", ["last", "last and the one before", "best of stage one", "best of stage two"])
def test_files_of_another_run_are_refused_before_training(place: Path, folder: Path, kind: str) -> None:
    files = {
        "last": [last_of],
        "last and the one before": [last_of, previous_of],
        "best of stage one": [lambda where: best_of(where, "one")],
        "best of stage two": [lambda where: best_of(where, "two")],
    }[kind]
    for find in files:
        shutil.copy(find(place / "other"), find(folder))
    before = {p: p.read_bytes() for p in folder.rglob("*.pt")}
    with pytest.raises(
        UserError, match=r"\.pt: this is of another run \(\S+, not \S+ as .*\.pt\); move away"
    ) as caught:
        go_on(place, folder)
    assert "\n" not in str(caught.value)
    assert before == {p: p.read_bytes() for p in folder.rglob("*.pt")}


def test_both_states_lost_leaves_the_best_weights_to_start_from(place: Path, folder: Path) -> None:
    _flip(last_of(folder))
    previous_of(folder).write_bytes(b"")
    with pytest.raises(
        UserError, match=r"_last.pt: .*; .*previous.pt: .*empty.*; start from the best weights \("
    ) as caught:
        go_on(place, folder)
    assert str(best_of(place / "stopped", "one").name) in str(caught.value) and "\n" not in str(caught.value)


# killed while the files of an earlier run are set aside


@pytest.mark.parametrize("count", range(1, 9))
def test_killed_while_setting_aside(place: Path, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that goes on has its best weights, or all begins anew and everything of the old run is still there."""

    class Killed(BaseException):
        pass

    calls: list[int] = []
    replace = os.replace

    def killed(*names: Any) -> None:
        calls.append(1)
        if len(calls) == count:
            raise Killed
        replace(*names)

    stopped = {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".pt", ".model")}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.os, "replace", killed)
        with pytest.raises(Killed):
            train(folder, place / "train.xyz", WHOLE, *FLAGS)
    run = go_on(place, folder)
    if run.said("Restarting from"):
        assert_as_uninterrupted(place, run)
        return
    assert run.epochs_trained == list(range(6)) and run.weights("_stagetwo")
    kept = {p.name: p.read_bytes() for p in folder.glob("checkpoints/*_earlier-*/*")}
    assert stopped.items() <= kept.items()


# folders of others


def test_a_folder_of_mace_torch_is_told_and_left(place: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / f"{TAG}_epoch-3.pt"
    weights = {"interactions.0.linear_up.weight": torch.ones(4)}
    torch.save({"model": weights, "optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {}}, file)
    with pytest.raises(UserError, match=rf"{TAG}_epoch-3.pt is a checkpoint of mace-torch, .*mace_import_model "):
        go_on(place, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [file.name]
    train(tmp_path, place / "train.xyz")  # without the flag
    assert (tmp_path / "checkpoints" / f"{TAG}_earlier-1" / file.name).exists()


@pytest.mark.parametrize("what", ["best weights of ours", "damaged best weights of ours", "something else"])
def test_what_is_not_of_mace_torch_is_not_called_so(place: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / f"{TAG}_epoch-3.pt"
    shutil.copy(best_of(place / "stopped", "one"), file)
    if what == "damaged best weights of ours":
        _flip(file)
    elif what == "something else":
        file.write_text("notes")
    run = train(tmp_path, place / "train.xyz", RESUME)
    assert run.said("there is no .*_last.pt yet; starting from the beginning")
    assert (tmp_path / "checkpoints" / f"{TAG}_earlier-1" / file.name).exists()
