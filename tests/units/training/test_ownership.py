"""Does a run own its files alone, and is a dead owner told from one that lives?"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mace.errors import UserError
from mace.files import ownership
from mace.files.ownership import OwnedByAnother, Ownership, this_process

NAME = ".a_run-1.lock"


def own(folder: Path, **more: Any) -> Ownership:
    return Ownership("a_run-1", [folder], "run-id", **more)


def written(folder: Path, age: float = 0.0, **changes: Any) -> Path:
    """Write a lock as another process would have it, touched some seconds ago."""
    path = folder / NAME
    path.write_text(json.dumps(vars(this_process("other-id")) | changes | {"token": "other"}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


DEAD: dict[str, Callable[[], dict[str, Any]]] = {
    "a process that has ended": lambda: {"process": ended_process()},
    "a process whose number has another one now": lambda: {"began": "12345"},
}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds pass faster."""
    monkeypatch.setattr(ownership, "BEAT", 0.02)
    monkeypatch.setattr(ownership, "SILENCE", 4.0)
    sleep = time.sleep
    monkeypatch.setattr(ownership.time, "sleep", lambda seconds: sleep(seconds / 20.0))


def test_the_second_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with own(tmp_path):
        with pytest.raises(OwnedByAnother) as caught:
            own(tmp_path, advice=", or add --distributed").__enter__()
    words = str(caught.value)
    assert NAME in words and f"process {os.getpid()} on " in words and "run run-id" in words and "since 20" in words
    assert words.endswith("choose another --name, --seed or --work_dir, or add --distributed.")
    assert list(tmp_path.iterdir()) == []
    with own(tmp_path):
        pass


def test_all_folders_or_none_are_taken(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with own(two), pytest.raises(OwnedByAnother):
        Ownership("a_run-1", [one, two]).__enter__()
    assert list(one.iterdir()) == [] and list(two.iterdir()) == []
    with Ownership("a_run-1", [one, one / ".." / "one"]):  # two names of a folder
        assert [file.name for file in one.iterdir()] == [NAME]


@pytest.mark.parametrize("kind", DEAD)
def test_the_files_of_a_dead_process_are_taken_over(tmp_path: Path, kind: str) -> None:
    written(tmp_path, **DEAD[kind]())
    with own(tmp_path) as owner:
        assert len(owner.notes) == 1 and "run other-id" in owner.notes[0] and "taken over" in owner.notes[0]
        assert owner.look()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("elsewhere", [{"boot": "other", "host": "n7"}, {"namespace": "pid:[1]"}, {"began": ""}])
def test_who_cannot_be_looked_at_is_dead_after_a_silence(tmp_path: Path, hasty: None, elsewhere: Any) -> None:
    written(tmp_path, age=1000.0, **elsewhere)
    begin = time.monotonic()
    with own(tmp_path) as owner:
        assert owner.notes and time.monotonic() - begin < 0.1
    written(tmp_path, **elsewhere)
    with own(tmp_path) as owner:  # after waiting
        assert owner.notes


def test_who_gives_signs_of_life_is_not(tmp_path: Path, hasty: None) -> None:
    path, done = written(tmp_path, boot="other", host="n7"), threading.Event()

    def beat() -> None:
        while not done.wait(0.01):
            with suppress(FileNotFoundError):  # it is taken over in the end
                os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OwnedByAnother, match="on n7"):
            own(tmp_path).__enter__()
        with own(tmp_path, take_over=True) as owner:
            assert owner.notes
    finally:
        done.set()
        thread.join()


def test_the_owner_gives_signs_of_life(tmp_path: Path, hasty: None) -> None:
    with own(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        threading.Event().wait(0.3)
        assert (tmp_path / NAME).stat().st_mtime > 1e9


def test_a_certain_life_is_not_taken_over(tmp_path: Path) -> None:
    with own(tmp_path), pytest.raises(OwnedByAnother):
        own(tmp_path, take_over=True).__enter__()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', b"\0" * 200])
def test_an_incomplete_lock_counts_as_one_after_a_silence(tmp_path: Path, hasty: None, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with own(tmp_path) as owner:
        assert "incomplete" in owner.notes[0]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*names: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ownership.os, "link", refuse)
    test_the_second_is_refused_and_told_of_the_first(tmp_path)
    test_the_files_of_a_dead_process_are_taken_over(tmp_path, "a process that has ended")


def test_of_many_who_find_a_dead_owner_one_alone_takes_over(tmp_path: Path) -> None:
    """Threads with instances of their own do what processes do: nothing but files is between them."""
    dead = ended_process()
    for attempt in range(30):
        written(tmp_path, process=dead)
        start, owners = threading.Barrier(6), []

        def take(start: threading.Barrier = start, owners: list[Ownership] = owners) -> None:
            one = own(tmp_path)
            start.wait()
            try:
                owners.append(one.__enter__())
            except OwnedByAnother:
                pass

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(owners) == 1 and owners[0].look(), attempt
        owners[0].__exit__(None, None, None)
        assert list(tmp_path.iterdir()) == []


def test_who_died_while_taking_over_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*names: Any) -> None:
        raise Killed

    dead = ended_process()
    written(tmp_path, process=dead)
    with monkeypatch.context() as patch:
        patch.setattr(ownership.os, "replace", killed)
        patch.setattr(ownership, "this_process", lambda run: replace(this_process(run), process=dead))
        patch.setattr(ownership.Path, "unlink", lambda *arguments, **keywords: None)
        with pytest.raises(Killed):
            own(tmp_path).__enter__()
    assert len(list(tmp_path.iterdir())) == 3  # the lock, the claim, what was to become the lock
    with own(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_lock_that_is_gone_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with own(tmp_path / "folder") as owner:
        (tmp_path / "folder" / NAME).unlink()
        (tmp_path / "folder").rmdir()
        assert owner.look() and f"{NAME} was gone" in caplog.text
        with pytest.raises(OwnedByAnother):
            own(tmp_path / "folder").__enter__()


def test_a_lock_of_another_is_noticed_and_left(tmp_path: Path, hasty: None) -> None:
    with own(tmp_path) as owner:
        (tmp_path / NAME).unlink()
        with own(tmp_path) as other:
            threading.Event().wait(0.3)
            assert "run run-id" in owner.usurper  # by the thread, without being asked
            assert not owner.look() and other.look()
            owner.__exit__(None, None, None)
            assert (tmp_path / NAME).exists()


def test_a_copy_of_the_process_does_not_free_the_files(tmp_path: Path) -> None:
    with own(tmp_path) as owner:
        child = os.fork()
        if child == 0:
            owner.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert owner.look() and (tmp_path / NAME).exists()


def test_a_lock_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=rf"{NAME}: the lock of the run cannot be written \(Is a directory\)\.$"):
        own(tmp_path).__enter__()


def test_who_writes_nothing_owns_nothing(tmp_path: Path) -> None:
    with Ownership("a_run-1") as owner:
        assert owner.look()
