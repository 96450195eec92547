"""Ownership of a run's files: lock files beside them name the process that writes them.

Two runs of the same name and seed in one folder would overwrite each other's files. So a run takes a lock in each
folder it writes to, ``.<tag>.lock``: a small JSON file with the machine, the process, its start time and the id of the
run. Locks of the operating system are not trusted, since network file systems may lack them or grant them to everybody;
all that is required is that a name can be created only once.

A lock whose process has ended is taken over. On the same machine, this can be checked directly; on another one, the
owner is taken to be alive as long as it touches its lock, which it does every `BEAT` seconds.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from mace.errors import UserError

_LOGGER = logging.getLogger(__name__)

BEAT = 15.0
"""Seconds from one sign of life to the next."""

SILENCE = 120.0
"""Seconds without a sign of life after which a process that cannot be looked at is taken for dead."""


@dataclass(frozen=True)
class Owner:
    """A process that writes the files of a run.

    Attributes:
        host: Name of its machine.
        boot: Id of the machine's current boot; empty where there is none.
        namespace: The namespace in which the process id is valid; containers have their own.
        process: The process id.
        began: When it was started, in a machine-dependent unit; empty if unknown.
        run: Id of the run.
        since: When it took ownership of the files.
    """

    host: str
    boot: str
    namespace: str
    process: int
    began: str
    run: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.since}, run {self.run})"

    def lives(self) -> bool | None:
        """Return whether the process is still running; None if that cannot be seen from here."""
        here = this_process(self.run)
        if (self.boot or self.host, self.namespace) != (here.boot or here.host, here.namespace):
            return None
        began = _start_of(self.process)
        if not began or not self.began:
            return None if began is not None else False
        return began == self.began


def this_process(run: str) -> Owner:
    """Describe this process as the owner of a run's files."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        boot = namespace = ""
    since = datetime.now().isoformat(" ", "seconds")
    return Owner(socket.gethostname(), boot, namespace, os.getpid(), _start_of(os.getpid()) or "", run, since)


def _start_of(process: int) -> str | None:
    """Return when a process of this machine was started, empty if unknown; None if there is no such process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):  # the process exists, but belongs to another user
        pass
    try:
        # after the name, which may contain blanks and parentheses: state, ..., and the start time as the 20th word
        words = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return None if words[0] in "ZX" else words[19]  # a zombie: it has ended but was not yet reaped


def _parse(content: bytes) -> Owner | None:
    """Parse the content of a lock file; None if it is not valid, as after a crash of the machine."""
    try:
        found = json.loads(content)
        owner = Owner(**{name: found[name] for name in Owner.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None
    return owner if isinstance(owner.process, int) else None


def _name(content: bytes) -> str:
    """Describe the owner of a lock in words."""
    return str(_parse(content) or "another process")


class _Lock:
    """The lock in one folder.

    Args:
        path: The lock file.
        content: What this process writes into it; no other process ever writes the same content.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self._content = path, content
        self._descriptor: int | None = None

    def take(self, take_over: bool) -> bytes | None:
        """Create the lock, or take over the lock of an owner that is dead.

        Args:
            take_over: Take over the lock without waiting to see whether its owner is alive.

        Returns:
            The content of the lock that was taken over, if any.

        Raises:
            OwnedByAnother: If its owner is alive.
            OSError: If it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(self._content)
            while (seen := self._try(temporary, take_over)) is None:
                pass  # something changed meanwhile
        finally:
            temporary.unlink(missing_ok=True)
        # the file itself, whatever happens to its name
        self._descriptor = os.open(self.path, os.O_RDWR)
        # left behind by processes that were killed while taking the lock
        for file in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):
            owner = _parse(_read(file) or b"")
            if owner is not None and owner.lives() is False:
                file.unlink(missing_ok=True)
        return seen[0] if seen else None

    def _try(self, temporary: Path, take_over: bool) -> list[bytes] | None:
        """Try to take the lock once.

        If several processes find the same dead owner, only one of them may replace its lock: the one that first creates
        the claim file named after that lock's content. If the owner of a claim has died too, its claim is taken over in
        the same way.

        Returns:
            The contents of the abandoned lock and claims, an empty list if there was no lock; None if one of them
            changed meanwhile, so that the attempt must be repeated.
        """
        place, seen = self.path, dict[Path, bytes]()
        while not _create(place, temporary, self._content):
            content = _read(place)
            if content is None:
                return None
            owner = _parse(content)
            alive = None if owner is None else owner.lives()
            if alive is None and not take_over:
                alive = _gives_sign(place, content, temporary, owner)
                if _read(place) != content:
                    return None
            if alive:
                raise OwnedByAnother(f"{place}: {_name(content)} writes the files of this run")
            seen[place] = content
            place = self.path.with_name(f"{self.path.name}.{hashlib.sha256(content).hexdigest()[:12]}")
        if not seen:
            return []
        if any(_read(where) != content for where, content in seen.items()):
            place.unlink(missing_ok=True)
            return None
        os.replace(temporary, self.path)
        for claim in [*list(seen)[1:], place]:
            claim.unlink(missing_ok=True)
        return list(seen.values())

    def touch(self) -> None:
        """Show that this process is alive by touching the lock, with the clock of the file server."""
        if self._descriptor is None:
            return
        try:
            os.utime(self._descriptor)
        except OSError:  # a file system on which times cannot be set
            os.pwrite(self._descriptor, self._content[-1:], len(self._content) - 1)
            os.fsync(self._descriptor)

    def other_content(self) -> bytes | None:
        """Return the content of the lock if it belongs to another process; None if it is ours or gone."""
        content = _read(self.path)
        return None if content == self._content else content

    def renew(self) -> bool:
        """Create the lock again if it is gone, and return whether it was gone."""
        if _read(self.path) is not None:
            return False
        self.free()
        self.take(take_over=False)
        return True

    def free(self) -> None:
        """Remove the lock if it is still ours."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if _read(self.path) == self._content:
            self.path.unlink(missing_ok=True)


def _create(path: Path, temporary: Path, content: bytes) -> bool:
    """Create a file under a name that must not exist yet, and return whether that succeeded."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return _read(path) == content  # a network file system may have created it and lost the reply
    except OSError:
        if not temporary.exists():
            raise
    # a file system without hard links: readers may see the file before it has its content, and wait
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return _read(path) == content
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


def _read(path: Path) -> bytes | None:
    """Return the content of a file; None if it does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _gives_sign(place: Path, content: bytes, temporary: Path, owner: Owner | None) -> bool:
    """Wait to see whether a lock is touched within `SILENCE`, measured with the clock of the file server."""
    try:
        os.utime(temporary)
        first = place.stat().st_mtime
        left = min(SILENCE, SILENCE - (temporary.stat().st_mtime - first))
        if left > 0.0:
            _LOGGER.warning(
                "%s: %s had the files of this run, which cannot be looked at from here; waiting %.0f s at most for a "
                "sign of life (--take_over does not wait)",
                place,
                owner or "another process",
                left,
            )
        while left > 0.0:
            time.sleep(min(1.0, left))
            left -= 1.0
            if _read(place) != content or place.stat().st_mtime != first:
                return True
    except FileNotFoundError:
        return True
    return False


class OwnedByAnother(UserError):
    """The files of a run belong to another process that is alive."""


class Ownership:
    """Ownership of the files of a run by this process, inside a ``with`` block.

    Args:
        tag: The beginning of the files' names.
        folders: The folders the files are in; empty if this process writes no files.
        run: Id of the run, in case it is a new one.
        take_over: Take over locks whose owner cannot be checked, without waiting to see whether it is alive.
        advice: A further way out, added to the message if the files belong to another process.
    """

    def __init__(
        self, tag: str, folders: Sequence[Path] = (), run: str = "", take_over: bool = False, advice: str = ""
    ) -> None:
        owner = asdict(this_process(run)) | {"token": secrets.token_hex(8)}
        content = json.dumps(owner).encode() + b"\n"
        places = {folder.resolve(): folder for folder in folders}  # the same folder may have several names
        self._locks = [_Lock(folder / f".{tag}.lock", content) for folder in places.values()]
        self.run, self._tag, self._take_over, self._advice = run, tag, take_over, advice
        self._process, self._ended, self._mutex = os.getpid(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="ownership", daemon=True)
        self.usurper = ""
        """Who has taken the files from this process, in words; empty as long as they are its own."""
        self.notes: list[str] = []

    def __enter__(self) -> Ownership:
        """Take all locks, or none.

        Raises:
            UserError: If another process owns the files, or a lock cannot be written.
        """
        try:
            for lock in self._locks:
                try:
                    before = lock.take(self._take_over)
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise UserError(f"{lock.path}: the lock of the run cannot be written ({reason}).") from error
                if before is not None:
                    owner = _parse(before) or "a process that left an incomplete lock"
                    self.notes.append(
                        f"{lock.path}: {owner} has ended without freeing the files of this run; taken over"
                    )
        except OwnedByAnother as error:
            self.__exit__()
            raise OwnedByAnother(
                f"{error}; let it end, or choose another --name, --seed or --work_dir{self._advice}."
            ) from None
        except BaseException:
            self.__exit__()
            raise
        if self._locks:
            self._thread.start()
        return self

    def look(self) -> bool:
        """Check whether this process still owns the files; a lock that is gone is created again, with a warning.

        Returns:
            Whether it does.
        """
        with self._mutex:
            for lock in self._locks:
                try:
                    if lock.renew():
                        _LOGGER.warning("%s was gone; it is written anew", lock.path)
                    self._compare(lock)
                except OwnedByAnother as error:
                    self.usurper = str(error)
                except OSError as error:  # saving the state of the run will fail for the same reason, and say so
                    _LOGGER.debug("%s cannot be looked at (%s)", lock.path, error)
        return not self.usurper

    def _compare(self, lock: _Lock) -> None:
        other = lock.other_content()
        if other is not None:
            self.usurper = f"{lock.path}: {_name(other)} writes the files of this run"

    def _beat(self) -> None:
        """Touch the locks regularly until ownership ends."""
        while not self._ended.wait(BEAT):
            with self._mutex:
                for lock in self._locks:
                    try:
                        lock.touch()
                        self._compare(lock)
                    except OSError as error:
                        _LOGGER.debug("%s: no sign of life could be given (%s)", lock.path, error)

    def __exit__(self, *_: object) -> None:
        """Remove all locks that are still ours."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if os.getpid() != self._process:  # a fork of this process, which never owned the files
            return
        for lock in self._locks:
            try:
                try:
                    lock.free()
                except OSError:  # the network may have recovered
                    lock.free()
            except OSError as error:
                _LOGGER.warning("%s: the lock cannot be removed (%s)", lock.path, error.strerror or error)
