"""Python's search for circles of garbage, kept away from where there are many objects and no circles.

It looks at all objects again and again while they become more, which takes a tenth of the time of reading a file.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Do not search inside a ``with`` block; for work that makes many objects and keeps them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            with objects_frozen():  # counts as looked at what was made meanwhile
                pass
            gc.enable()


@contextmanager
def objects_frozen() -> Iterator[None]:
    """Search inside a ``with`` block only among objects made there; for work next to many others that stay."""
    if gc.get_freeze_count():  # somebody else has done so already, and may not want it undone
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
