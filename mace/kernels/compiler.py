"""Compile generated C on first use, keep the result, and load it.

The source needs only a C compiler and no headers of torch, so there is no binary interface to match. Threads are those
of torch's own OpenMP runtime, called through its entry point, so that there is only one thread pool.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from mace.kernels.c_source.target import TARGET_VARIABLE, target

try:
    import fcntl
except ImportError:  # not a POSIX system: each process then compiles the same source for itself
    fcntl = None  # type: ignore[assignment]  # a module otherwise

_LOGGER = logging.getLogger(__name__)

CACHE_VARIABLE = "MACE_KERNEL_CACHE"
"""Environment variable that sets another folder for compiled kernels."""

LOCK_SECONDS = 600.0
"""How long a process waits for another one that is compiling the same source."""

COMPILER_SECONDS = 600.0
"""How long a compiler may take for one source."""

# GCC 12.2 at -O3 vectorizes straight-line code (-ftree-slp-vectorize) incorrectly: lanes of the convolution's backward
# pass end up in wrong places. Results are correct at -O1, at -O2, and at -O3 -fno-tree-slp-vectorize. These sources use
# explicit vectors, so automatic vectorization is turned off.
_FLAGS = (
    "-O2",
    "-g0",
    "-fno-tree-vectorize",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-w",
)

_PROBE = """\
#include <stdint.h>
#include <string.h>
typedef float V __attribute__((vector_size(64), aligned(4)));
void probe(V *a, const V *b) { V c; memset(&c, 0, sizeof c); *a += *b * *b + c; }
"""
"""Features that all sources use; a compiler that cannot build a library from it is unusable."""


class CompilationError(RuntimeError):
    """Kernels cannot be compiled here."""


class NoCompilerError(CompilationError):
    """There is no working C compiler; installing one solves this."""


@dataclass(frozen=True)
class _Toolchain:
    """A compiler that was tested.

    Attributes:
        command: The command that runs it.
        flags: Compiler flags.
        problem: Why it cannot be used; empty if it can.
    """

    command: tuple[str, ...]
    flags: tuple[str, ...] = ()
    problem: str = ""


_SETUP = threading.RLock()
"""Held while compiler and folder are chosen: several threads may compile, but only one tests compilers."""


@cache
def _warn(text: str) -> None:
    """Log a warning, each only once per process."""
    _LOGGER.warning("%s", text)


def find_compiler() -> tuple[str, ...] | None:
    """Return the first working C compiler among ``$CC``, cc, gcc, clang and the ziglang wheel, or None."""
    return next((command for command in _candidates() if not _toolchain(command).problem), None)


def _candidates() -> list[tuple[str, ...]]:
    """List the commands of the compilers found, by preference; they may not all work."""
    commands = []
    named = os.environ.get("CC", "").strip()
    if named:
        try:
            words = shlex.split(named)
        except ValueError:  # an unfinished quotation
            words = [named]
        path = shutil.which(words[0])
        if path is None:
            _warn(f"The C compiler that CC names, {named}, is not there; another one is looked for")
        else:
            commands.append((path, *words[1:]))
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None and (path,) not in commands:
            commands.append((path,))
    if importlib.util.find_spec("ziglang") is not None:
        commands.append((sys.executable, "-m", "ziglang", "cc"))
    return commands


def _toolchain(command: tuple[str, ...]) -> _Toolchain:
    """Test, once per process, whether and with which flags a compiler can be used."""
    with _SETUP:
        return _examined(command, target())


@cache
def _examined(command: tuple[str, ...], wanted: str) -> _Toolchain:
    problem = ""
    for chosen in _target_choices(wanted):
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            try:
                ctypes.CDLL(str(_run_compiler(command, (*_FLAGS, *chosen), _PROBE, Path(folder))))
            except CompilationError as error:
                # problems without extra flags also occur with them, so the last, plainest attempt explains most
                problem = str(error)
            except OSError as error:
                problem = f"what {shlex.join(command)} makes cannot be loaded ({error}; does it lie where nothing may "
                problem += f"be executed? {CACHE_VARIABLE} names another folder)"
            else:
                if wanted == "native" and not chosen:
                    _warn(f"{shlex.join(command)} has no flag for this CPU; kernels are slower than they could be")
                return _Toolchain(command, (*_FLAGS, *chosen))
    if wanted not in ("", "native"):
        problem += f" (with {TARGET_VARIABLE}={wanted})"
    return _Toolchain(command, problem=problem)


def _target_choices(wanted: str) -> Iterator[tuple[str, ...]]:
    """Yield flags for a CPU, from the best to the plainest, as compilers spell them differently."""
    if wanted:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        for spelling in dict.fromkeys((wanted, wanted.replace("-", "_"))):  # zig uses underscores
            if x86:
                # for some CPUs, compilers use only half the register width by default
                yield f"-march={spelling}", "-mprefer-vector-width=512"
            yield (f"-march={spelling}",)
        if not x86:  # on x86, -mcpu means something else
            yield (f"-mcpu={wanted}",)
    if wanted in ("", "native"):
        yield ()


def _run_compiler(command: tuple[str, ...], flags: Sequence[str], source: str, folder: Path) -> Path:
    """Compile a source into a library inside a folder.

    Raises:
        CompilationError: If that fails.
    """
    file, result = folder / "kernel.c", folder / "kernel.so"
    # zig keeps a global cache, by default in the home directory, which may be read-only
    zig = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig"), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    try:
        file.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [*command, *flags, str(file), "-lm", "-o", str(result)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=zig | dict(os.environ),
            timeout=COMPILER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CompilationError(f"{shlex.join(command)} did not finish in {COMPILER_SECONDS:g} s") from error
    except OSError as error:
        raise CompilationError(f"{shlex.join(command)} cannot be run in {folder} ({error.strerror})") from error
    if done.returncode != 0 or not result.is_file():
        said = " / ".join(done.stderr.split("\n")[-8:]).strip(" /")[-500:]
        raise CompilationError(f"{shlex.join(command)} ends with status {done.returncode}: {said or 'no message'}")
    return result


def cache_folder() -> Path:
    """Return a folder for compiled kernels that only this user can write to.

    A folder that others can write to is not trusted, since libraries in it are executed. If there is no usable folder,
    for example because the home directory is read-only, a private temporary one is used for this process alone.
    """
    with _SETUP:
        return _usable_folder(os.environ.get(CACHE_VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", ""))


@cache
def _usable_folder(named: str, caches: str) -> Path:
    folder: Path | None = None
    try:
        home = Path(caches) if caches else Path.home() / ".cache"
        folder = (Path(named).expanduser() if named else home / "mace" / "kernels").absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(folder.stat()):
            reason = "others can write to it"
        else:
            with tempfile.TemporaryFile(dir=folder):  # detects read-only and full file systems
                return folder
    except OSError as error:
        reason = error.strerror or str(error)
    except RuntimeError as error:  # no home directory is known
        reason = str(error)
    temporary = Path(tempfile.mkdtemp(prefix="mace-kernels-"))
    owner = os.getpid()
    # a forked child must not remove it
    atexit.register(lambda: shutil.rmtree(temporary, ignore_errors=True) if os.getpid() == owner else None)
    _warn(
        f"Compiled kernels cannot be kept in {folder or 'the home directory'} ({reason}), so every process compiles "
        f"them again; {CACHE_VARIABLE} can name a folder that you alone can write to"
    )
    return temporary


def _is_private(status: os.stat_result) -> bool:
    """Return whether a file belongs to this user, and nobody else can write to it."""
    if not hasattr(os, "getuid"):  # no POSIX permissions
        return True
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def compile_and_load(source: str) -> ctypes.CDLL:
    """Load compiled C source, compiling it first if necessary.

    If several processes need the same library at the same time, one compiles it and the others wait.

    Raises:
        NoCompilerError: If there is no working compiler.
        CompilationError: If all compilers reject the source.
    """
    errors: list[CompilationError] = []
    for command in _candidates():
        try:
            library = _load_or_compile(source, command)
        except CompilationError as error:
            errors.append(error)
            continue
        except OSError as error:
            errors.append(CompilationError(f"{error}; {CACHE_VARIABLE} can name another folder than {cache_folder()}"))
            continue
        for failed in errors:
            _warn(f"{failed}; {shlex.join(command)} is used instead")
        return library
    if not errors:
        raise NoCompilerError("no C compiler was found")
    kind = NoCompilerError if all(isinstance(error, NoCompilerError) for error in errors) else CompilationError
    raise kind("; ".join(dict.fromkeys(map(str, errors))))


def _load_or_compile(source: str, command: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library that this compiler built from a source, building it first if necessary."""
    folder, key = cache_folder(), _key(source, command)
    library = _load_kept(folder, key, discard=False)
    if library is not None:
        return library
    toolchain = _toolchain(command)
    if toolchain.problem:
        raise NoCompilerError(toolchain.problem)
    with _locked(folder / f"kernel-{key}.lock"):
        # another process may have built it meanwhile
        library = _load_kept(folder, key, discard=True)
        if library is not None:
            return library
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            result = _run_compiler(toolchain.command, toolchain.flags, source, Path(aside))
            result.chmod(0o700)  # regardless of the umask, or it would not be trusted later
            # moved into place once it is complete
            file = result.replace(folder / f"kernel-{key}-{_digest(result)}.so")
        try:
            return ctypes.CDLL(str(file))
        except OSError as error:
            raise CompilationError(
                f"{file} was compiled but cannot be loaded ({error}); {CACHE_VARIABLE} can name another folder"
            ) from error


def _key(source: str, command: tuple[str, ...]) -> str:
    """Return a hash of everything that determines the compiled result, without running the compiler."""
    try:
        compiler = os.stat(command[0])
        version = f"{os.path.realpath(command[0])} {compiler.st_size} {compiler.st_mtime_ns}"
    except OSError:
        version = "unknown"
    facts = (source, *command, version, *_FLAGS, target(), _cpu_facts())
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _cpu_facts() -> str:
    """Return the properties of the machine that compiled code depends on."""
    facts = [platform.machine(), platform.system()]
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "model name")):
                facts.append(line)
                if len(facts) == 4:
                    break
    except OSError:
        facts.append(platform.processor())
    return "\n".join(facts)


def _load_kept(folder: Path, key: str, discard: bool) -> ctypes.CDLL | None:
    """Load a library from the cache; its name ends with a digest of its content.

    Args:
        folder: The cache folder.
        key: Key of its source and compiler, see `_key`.
        discard: Whether to delete unusable libraries; only allowed for the holder of the lock.

    Returns:
        The library, or None if there is no usable one.
    """
    for file in folder.glob(f"kernel-{key}-*.so"):
        try:
            reason = _reason_for_distrust(file)
            if not reason:
                return ctypes.CDLL(str(file))
        except OSError as error:
            reason = str(error)
        if discard:
            _LOGGER.warning("The compiled kernel %s is deleted and made again: %s", file, reason)
            file.unlink(missing_ok=True)
    return None


def _reason_for_distrust(file: Path) -> str:
    """Return why a library must not be loaded; an empty string if it may be.

    The digest is checked because the system's loader does not: an incomplete file would crash the process.
    """
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "it is not a plain file"
    if not _is_private(status):
        return "others can write to it"
    if not file.stem.endswith(f"-{_digest(file)}"):
        return "its content is damaged"
    return ""


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Allow only one process at a time inside the ``with`` block, if the file system supports locks.

    Without locks, or after `LOCK_SECONDS`, several may enter; they do the same work and write equal files.
    """
    if fcntl is None:
        yield
        return
    end = time.monotonic() + LOCK_SECONDS
    with file.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                _warn(f"Another process has been compiling for {LOCK_SECONDS:g} s; this one no longer waits for it")
                break
            except OSError as error:  # a file system without locks
                _LOGGER.debug("compiling without a lock: %s", error)
                break
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class ThreadPool:
    """Entry points of torch's OpenMP runtime, if it has any.

    Attributes:
        parallel: Address of ``GOMP_parallel``; zero to run everything in the calling thread.
        thread_number: Address of ``omp_get_thread_num``.
        team_size: Address of ``omp_get_num_threads``.
        barrier: Address of ``GOMP_barrier``.
    """

    parallel: int
    thread_number: int
    team_size: int
    barrier: int


@lru_cache(maxsize=1)
def thread_pool() -> ThreadPool:
    """Find the OpenMP runtime that torch has loaded into this process."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")
    try:
        process = ctypes.CDLL(None)
        addresses = [ctypes.cast(getattr(process, name), ctypes.c_void_p).value or 0 for name in names]
    except (AttributeError, OSError, TypeError):  # no such function, or no lookup on Windows
        addresses = [0]
    if not all(addresses):
        _warn("torch's OpenMP runtime has no GNU entry point here; the compiled kernels run in one thread")
        return ThreadPool(0, 0, 0, 0)
    return ThreadPool(*addresses)
