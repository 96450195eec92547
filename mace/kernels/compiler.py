"""Compile generated C on first use, keep the result, and load it.

The source needs nothing but a C compiler: no headers of torch, so no binary interface to match. Threads are those of
torch's own OpenMP runtime, reached through its entry point, so that there is one pool and not two.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

CACHE_VARIABLE = "MACE_KERNEL_CACHE"
"""Environment variable naming another folder for compiled kernels."""

TARGET_VARIABLE = "MACE_KERNEL_TARGET"
"""Environment variable with the compiler's ``-march``; ``native`` if unset."""

_FLAGS = (
    "-O2",
    "-fno-tree-vectorize",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-w",
)


class CompilationError(RuntimeError):
    """No compiler, or it failed."""


@lru_cache(maxsize=1)
def find_compiler() -> tuple[str, ...] | None:
    """Return the command of a C compiler: ``$CC``, cc, gcc, clang, or that of the wheel ziglang; None without one."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path is not None:
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def _cpu_facts() -> str:
    """Return what compiled code depends on beside source and flags."""
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


def cache_folder() -> Path:
    """Return a folder for compiled kernels that only this user can write to.

    A folder others can write to is not trusted, for whoever puts a library there has it run. Where there is no such
    folder at home, as with a read-only home, a private temporary one serves this process alone.
    """
    named = os.environ.get(CACHE_VARIABLE)
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mace" / "kernels"
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = base.stat()
        private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if private and os.access(base, os.W_OK):
            return base
        reason = "others can write to it" if not private else "it is not writable"
    except OSError as error:
        reason = str(error)
    temporary = _temporary_folder()
    _LOGGER.warning("Compiled kernels are not kept in %s (%s) but for this process in %s", base, reason, temporary)
    return temporary


@lru_cache(maxsize=1)
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mace-kernels-"))


@cache
def compile_and_load(source: str) -> ctypes.CDLL:
    """Compile C source unless that was done before, and load it.

    Several processes may do so at once: each compiles into a file of its own and renames it, which replaces equal by
    equal.

    Raises:
        CompilationError: If there is no compiler or it rejects the source.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilationError("no C compiler was found")
    flags = (*_FLAGS, *_target_flags(compiler))
    key = hashlib.sha256("\0".join((source, *compiler, *flags, _cpu_facts())).encode()).hexdigest()[:32]
    library = cache_folder() / f"kernel-{key}.so"
    if not library.exists():
        _compile(source, compiler, flags, library)
    return ctypes.CDLL(str(library))


@cache
def _target_flags(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags for this CPU, or none if the compiler does not know it."""
    target = os.environ.get(TARGET_VARIABLE, "native")
    if not target:
        return ()
    flags = [f"-march={target}"]
    if target == "native" and platform.machine() in ("x86_64", "AMD64"):
        flags.append("-mprefer-vector-width=512")
    for chosen in (tuple(flags), tuple(flags[:1]), (f"-mcpu={target}",), ()):
        probe = [*compiler, *chosen, "-x", "c", "-c", os.devnull, "-o", os.devnull]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return chosen
    raise CompilationError(f"the C compiler {' '.join(compiler)} does not work")


def _compile(source: str, compiler: tuple[str, ...], flags: tuple[str, ...], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        file, result = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        file.write_text(source)
        done = subprocess.run(
            [*compiler, *flags, str(file), "-o", str(result)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CompilationError(f"{' '.join(compiler)} failed: {done.stderr.strip()[:2000]}")
        os.replace(result, library)


@dataclass(frozen=True)
class ThreadPool:
    """Torch's OpenMP runtime, or none.

    Attributes:
        parallel: Address of ``GOMP_parallel``; zero runs everything in the calling thread.
        thread_number: Address of ``omp_get_thread_num``.
    """

    parallel: int
    thread_number: int


@lru_cache(maxsize=1)
def thread_pool() -> ThreadPool:
    """Find the runtime that torch has loaded into this process."""
    try:
        process = ctypes.CDLL(None)
        parallel = ctypes.cast(process.GOMP_parallel, ctypes.c_void_p).value
        number = ctypes.cast(process.omp_get_thread_num, ctypes.c_void_p).value
    except (AttributeError, OSError):
        _LOGGER.warning("torch's OpenMP runtime has no GNU entry point here; the C kernels run in one thread")
        return ThreadPool(0, 0)
    return ThreadPool(parallel or 0, number or 0)
