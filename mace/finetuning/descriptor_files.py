"""Files with the descriptors of structures, so that these need not be computed again."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mace.elements import atomic_number
from mace.errors import UserError
from mace.files.durable import temporary_beside
from mace.files.pickles import Machine, Name, PickleError, Record
from mace.finetuning.farthest_points import ElementRows
from mace.structures.configuration import Configuration

_MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where NumPy before and since version 2 has what its pickles name."""


def write_descriptors(path: Path, rows: Mapping[int, ElementRows], places: Sequence[int], n_structures: int) -> None:
    """Write descriptors as an archive of NumPy arrays, whole or not at all.

    Args:
        path: The file.
        rows: Descriptors by atomic number.
        places: The place of each described structure among all in the files it was read from.
        n_structures: Number of all structures.

    Raises:
        UserError: If it cannot be written.
    """
    numbers = [np.full(len(of_element.structures), element) for element, of_element in rows.items()]
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                n_structures=np.array(n_structures),
                atomic_numbers=np.concatenate(numbers),
                structures=np.asarray(places)[np.concatenate([each.structures for each in rows.values()])],
                descriptors=np.concatenate([each.values for each in rows.values()]),
            )
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: the descriptors cannot be written ({error.strerror or error}).") from error


class StoredDescriptors:
    """Descriptors that were written by `write_descriptors` or by the selection of mace-torch.

    A file of mace-torch is a pickle; it is read without running anything in it.

    Args:
        path: The file.

    Raises:
        UserError: If it is neither, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as stream:
                is_archive = stream.read(2) == b"PK"
            self._n_structures, self._rows = _read_archive(path) if is_archive else _read_pickled(path)
        except OSError as error:
            raise UserError(f"{path}: the descriptors cannot be read ({error.strerror or error}).") from error
        except (ValueError, KeyError, TypeError, IndexError, EOFError, PickleError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: this is no file of descriptors ({' '.join(str(error).split())[:120]}); leave it out, to have "
                "them computed."
            ) from error

    def __call__(
        self, places: Sequence[int], n_structures: int, structures: Iterable[Configuration]
    ) -> dict[int, ElementRows]:
        """Find the descriptors of some structures; see `mace.finetuning.selection.Describe`.

        Raises:
            UserError: If they are not those of these structures.
        """
        way_out = "leave the file out, to have descriptors computed"
        if n_structures != self._n_structures:
            raise UserError(
                f"{self._path}: the descriptors are those of {self._n_structures} structures, not of these "
                f"{n_structures}; {way_out}."
            )
        having: dict[int, list[int]] = {}  # by element, which of the given structures have it
        for place, structure in enumerate(structures):
            for element in np.unique(structure.atomic_numbers).tolist():
                having.setdefault(element, []).append(place)
        everything = np.asarray(places)
        found = {}
        n_stored = sum(int(np.isin(everything, each.structures).sum()) for each in self._rows.values())
        for element, of_element in sorted(having.items()):
            wanted = everything[of_element]
            stored = self._rows.get(element, ElementRows(np.empty(0, dtype=np.int64), np.empty((0, 1))))
            rows = np.searchsorted(stored.structures, wanted)
            if not np.isin(wanted, stored.structures).all():
                raise UserError(f"{self._path}: the descriptors are those of other structures; {way_out}.")
            found[element] = ElementRows(np.asarray(of_element), stored.values[rows])
        if n_stored != sum(map(len, having.values())):
            raise UserError(f"{self._path}: the descriptors are those of structures with more elements; {way_out}.")
        return found


def _read_archive(path: Path) -> tuple[int, dict[int, ElementRows]]:
    with np.load(path, allow_pickle=False) as stored:
        n_structures, numbers = int(stored["n_structures"]), stored["atomic_numbers"]
        structures, values = stored["structures"], stored["descriptors"].astype(np.float32, copy=False)
    return n_structures, _by_element(numbers, structures, values)


def _by_element(numbers: np.ndarray, structures: np.ndarray, values: np.ndarray) -> dict[int, ElementRows]:
    """Sort rows by element and structure.

    Raises:
        ValueError: If they are not finite rows of numbers.
    """
    if not (values.ndim == 2 and len(numbers) == len(structures) == len(values) and np.isfinite(values).all()):
        raise ValueError("it holds no rows of finite numbers")
    rows = {}
    for element in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == element)
        chosen = chosen[np.argsort(structures[chosen], kind="stable")]
        rows[element] = ElementRows(structures[chosen], values[chosen])
    return rows


def _read_pickled(path: Path) -> tuple[int, dict[int, ElementRows]]:
    """Read the file of mace-torch: for each structure a dictionary of vectors by symbol."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, kind = read_header(stream)
    if kind != np.dtype(object):
        raise ValueError(f"it is an array of {kind}")
    known = {Name(module, "scalar"): _text for module in _MULTIARRAYS}  # symbols are scalars of NumPy
    array = Machine(data, stream.tell(), known, most_instructions=len(data)).read()
    structures, numbers, values = [], [], []
    table = _state(array)[4]
    for place, of_structure in enumerate(table):
        for symbol, vector in of_structure.items():
            structures.append(place)
            numbers.append(atomic_number(symbol))
            values.append(_vector(vector))
    return len(table), _by_element(np.array(numbers), np.array(structures), np.stack(values))


def _state(record: Any) -> tuple[Any, ...]:
    """Return what NumPy would give to an array: version, shape, type, order, content."""
    if not isinstance(record, Record) or not record.states or len(record.states[0]) != 5:
        raise ValueError("it holds something that is no array")
    return tuple(record.states[0])


def _text(kind: Record, content: bytes) -> str:
    """Make a scalar of NumPy that is text."""
    if not str(kind.arguments[0]).startswith("U"):
        raise ValueError("a symbol is no text")
    return content.decode("utf-32-le").rstrip("\0")


def _vector(record: Any) -> np.ndarray:
    """Make a vector of numbers."""
    _, shape, kind, _, content = _state(record)
    if kind.arguments[0] not in ("f4", "f8") or len(shape) != 1:
        raise ValueError("a descriptor is no vector of real numbers")
    return np.frombuffer(content, dtype=f"<{kind.arguments[0]}").astype(np.float32)
