"""What all files of structures have in common: a number of structures, and ranges of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from mace.conditions import CONDITION_KEYS
from mace.errors import UserError
from mace.formats.frame import Frame
from mace.properties import PROPERTIES

_OF_STRUCTURES = ("virial", *CONDITION_KEYS, *(name for name, item in PROPERTIES.items() if not item.of_atoms))
"""What says something of a structure as a whole, and may have as many rows as it has atoms."""


class FrameFile(ABC):
    """A file of structures, of which any range can be read.

    An instance holds a name and perhaps an index, but nothing open: it can be sent to other processes, and several
    ranges can be read at the same time.

    Attributes:
        path: Name of the file, as the user gave it.
    """

    seeks = True
    """Whether a range is reached without reading all that stands before it."""

    may_be_empty = False
    """Whether a file without any structure is nothing unusual."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def count(self) -> int:
        """Return the number of structures, without reading them where the format allows.

        Raises:
            UserError: If the file is damaged so that it cannot be known.
        """

    def starting_at(self, index: int) -> FrameFile:
        """Return a reader of the same file that is small to send, and reaches structures from an index on at once."""
        return self

    @abstractmethod
    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        """Yield the structures of a range; ``start`` is zero unless the file `seeks`."""

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield the structures of a range, in order.

        Args:
            start: Index of the first structure, counted from zero.
            stop: Index behind the last one; without it, or beyond the end, all that there are.

        Raises:
            UserError: If a structure cannot be read; the message names its index in the file.
            ValueError: If an index is negative.
        """
        if start < 0 or (stop is not None and stop < 0):
            raise ValueError(f"indices of structures count from zero, and {start} to {stop} were asked for")
        if stop is not None and stop <= start:
            return
        index = start if self.seeks else 0
        try:
            for frame in self._read(index, stop):
                if index >= start:
                    yield frame
                index += 1
        except UserError:
            raise
        except Exception as error:  # there is a reader per format, and each fails in its own way
            raise unreadable(self.path, index, reason_of(error)) from error


def with_columns(frame: Frame) -> Frame:
    """Make columns of the entries with one row per atom, in a frame from a format that has no columns."""
    for key, value in list(frame.info.items()):
        with suppress(ValueError):  # rows of different lengths
            array = np.asarray(value)
            is_of_atoms = array.shape[:1] == (len(frame),) and array.ndim <= 2
            is_free = key.removeprefix("REF_") not in _OF_STRUCTURES
            if is_of_atoms and is_free and array.dtype.kind in "biuf":
                frame.arrays[key] = array
                del frame.info[key]
    return frame


def unreadable(file: str, index: int, reason: str) -> UserError:
    """Return the error that names a structure and says what is wrong with it."""
    return UserError(f"{file}: structure {index} cannot be read: {reason}; correct it or take it out.")


def reason_of(error: BaseException) -> str:
    """Describe an error in one line, with its type if the text alone would not be clear."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, KeyError):
        return f"{text} is not known"
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
