"""HDF5 files that ``mace_prepare_data`` of mace-torch wrote, with their labels by property.

A file has groups ``config_batch_<i>`` of groups ``config_<j>``, one per structure, with a data set for each of its
arrays. The labels are in a group ``properties`` and their weights in ``property_weights``; the text ``None`` says that
something is missing. In files of earlier versions labels stand beside the arrays, and a missing one is zero, with a
weight of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile, reason_of, with_columns

if TYPE_CHECKING:
    from h5py import Group

_BATCH, _STRUCTURE = "config_batch_", "config_"
_HEAD, _DEFAULT = "head", "Default"
_WEIGHED_BEFORE = ("energy", "forces", "stress", "virials")
"""Labels that files of earlier versions have weights of, without which zeros cannot be told from labels."""


class HDF5File(FrameFile):
    """An HDF5 file that mace-torch prepared, perhaps one of several parts of a set."""

    may_be_empty = True  # the part of a process that got no structure

    def count(self) -> int:
        """Return the number of structures.

        Raises:
            UserError: If this is not such a file.
        """
        with self._open() as batches:
            return sum(map(len, batches))

    @contextmanager
    def _open(self) -> Iterator[list[Group]]:
        """Open the file and list its batches in order."""
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self.path}: HDF5 files are read by the package h5py; install it with pip install 'mace-train[hdf5]'."
            ) from error
        try:
            # nobody writes it any more, and network file systems may have no locks
            file = h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise UserError(f"{self.path}: this is not a readable HDF5 file ({reason_of(error)}).") from error
        with file:
            names = [name for name in file if name.startswith(_BATCH) and name.removeprefix(_BATCH).isdecimal()]
            if not names:
                raise UserError(
                    f"{self.path}: this HDF5 file is not one of mace_prepare_data of mace-torch, which has a group "
                    f"{_BATCH}0; give the structures in another format."
                )
            yield [file[name] for name in sorted(names, key=lambda name: int(name.removeprefix(_BATCH)))]

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        with self._open() as batches:
            first = 0
            for batch in batches:
                last = len(batch) if stop is None else min(len(batch), stop - first)
                for place in range(max(start - first, 0), last):
                    yield _frame_of(batch[f"{_STRUCTURE}{place}"])
                first += len(batch)


def _frame_of(group: Group) -> Frame:
    """Read one structure."""
    info: dict[str, Any] = {}
    if "properties" in group:
        labels, weights = group["properties"], group["property_weights"]
        head = _text(labels, _HEAD)
        for name in labels:
            if (value := _value(labels, name)) is not None:
                info[name] = value
                weight = _value(weights, name) if name in weights else None
                if weight is not None and weight != 1:
                    info[f"config_{name}_weight"] = weight
    else:
        head = _text(group, _HEAD).replace(_DEFAULT, "")  # written where a structure named none
        for name in _WEIGHED_BEFORE:
            if weight := _value(group, f"{name}_weight"):
                info[name], info[f"config_{name}_weight"] = _value(group, name), weight
    if head:
        info[_HEAD] = head
    if (weight := _value(group, "weight")) is not None and weight != 1:
        info["config_weight"] = weight
    info["config_type"] = _text(group, "config_type") or _DEFAULT
    cell, pbc = _value(group, "cell"), _value(group, "pbc")
    frame = Frame(
        numbers=np.asarray(_value(group, "atomic_numbers"), dtype=np.int64),
        positions=np.asarray(_value(group, "positions"), dtype=np.float64).reshape(-1, 3),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64).reshape(3, 3),
        pbc=(False,) * 3 if pbc is None else (bool(pbc[0]), bool(pbc[1]), bool(pbc[2])),
        info=info,
    )
    return with_columns(frame)


def _text(group: Group, name: str) -> str:
    """Return a text; nothing for ``None`` and for what is not there."""
    text = group[name][()] if name in group else "None"
    text = text.decode() if isinstance(text, bytes) else str(text)
    return "" if text == "None" else text


def _value(group: Group, name: str) -> Any:
    """Return a number or an array; None for a text, which says None."""
    import h5py

    # several times as fast as the plain group[name][()], of which a structure needs up to twenty
    dataset = h5py.h5d.open(group.id, name.encode())
    if dataset.get_type().get_class() == h5py.h5t.STRING:
        return None
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values[()]
