"""Worker that measures the memory of training steps of the peer or of this package; see `memory` for what counts."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from importlib import import_module
from pathlib import Path

from workers import Settings, Task, serve

_BYTES_OF_MAXIMUM = 1 if sys.platform == "darwin" else 1024
"""Unit of ``ru_maxrss``."""


def prepare(settings: Settings) -> Task:
    """Let ``peer`` or ``ours``, whichever ``settings["side"]`` names, prepare; take steps; add memory to its facts."""
    task: Task = import_module(settings["side"]).prepare(settings)
    for _ in range(settings["warmup"]):
        task.step()
    _release()
    forgotten = _forget_maximum()
    before = _resident()
    for _ in range(settings["steps"]):
        task.step()
    task.facts.update(before_bytes=before, peak_bytes=_maximum() - before, maximum_forgotten=forgotten)
    return task


def _release() -> None:
    """Give memory that nobody uses back to the system, so that no step can live on what preparations left behind."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU library only
        if trim is not None:
            trim(0)


def _forget_maximum() -> bool:
    """Let the largest memory so far be forgotten; return whether the system can do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _maximum() -> int:
    """Return the largest resident memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_OF_MAXIMUM


def _resident() -> int:
    """Return the resident memory in bytes; where the system does not tell, the largest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _maximum()
    return pages * resource.getpagesize()


if __name__ == "__main__":
    serve(prepare)
