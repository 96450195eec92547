"""Pauses Python's cyclic garbage collection where there are many objects and no reference cycles.

The collector examines all objects again and again as their number grows, which takes a tenth of the time of reading a
file.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Disable collection inside a ``with`` block; for work that creates many objects and keeps them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            with objects_frozen():  # marks the objects created meanwhile as already examined
                pass
            gc.enable()


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Limit collection inside a ``with`` block to objects created there; for work beside many long-lived objects."""
    if gc.get_freeze_count():  # other code has frozen objects already, and may rely on it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
