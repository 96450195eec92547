"""Databases of ASE: SQLite, JSON, and LMDB in the way of `ase-db-backends` and fairchem."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile, reason_of, with_columns

if TYPE_CHECKING:
    from ase.db.row import AtomsRow

_ROWS_AT_ONCE = 500
"""How many rows of an SQLite database are fetched together; ASE would fetch all."""

_OPEN: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Open databases of LMDB by path: no process may open one twice."""


class DatabaseFile(FrameFile):
    """A database of ASE, whose rows are read including their additional data, which ASE's file reader omits.

    Attributes:
        kind: ``"db"``, ``"json"`` or ``"aselmdb"``, ASE's names of its databases.
    """

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(path)
        self.kind = kind

    def count(self) -> int:
        """Return the number of rows.

        Raises:
            UserError: If the database cannot be opened.
        """
        with self._open() as database:
            return int(database.count())

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from ase.db import connect

        if self.kind != "aselmdb":
            with connect(self.path, type=self.kind, use_lock_file=False) as database:
                yield database
            return
        place = str(Path(self.path).resolve())
        try:
            if (database := _OPEN.get(place)) is None:
                _check_lmdb(self.path)
                database = _OPEN[place] = connect(place, type=self.kind, use_lock_file=False, readonly=True)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self.path}: databases of this kind are read by the package ase-db-backends; install it with "
                "pip install 'mace-train[lmdb]'."
            ) from error
        yield database  # which is closed when nobody uses it any more

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        with self._open() as database:
            for row in itertools.islice(self._rows(database, start), None if stop is None else stop - start):
                yield _frame_of(row)

    def _rows(self, database: Any, start: int) -> Iterator[AtomsRow]:
        """Yield the rows from an index on, by increasing id."""
        if self.kind == "aselmdb":
            yield from (database.get(id=place) for place in itertools.islice(database.ids, start, None))
        elif self.kind == "json":  # the whole file is in memory
            yield from itertools.islice(database.select(), start, None)
        else:
            rows = list(database.select(sort="id", limit=_ROWS_AT_ONCE, offset=start))
            while rows:
                yield from rows
                rows = list(database.select([("id", ">", rows[-1].id)], sort="id", limit=_ROWS_AT_ONCE))


def _check_lmdb(file: str) -> None:
    """Check that a file is an LMDB and whole, because touching what is missing would kill the process.

    Raises:
        UserError: If it is not.
    """
    import lmdb

    try:
        with lmdb.open(file, subdir=False, readonly=True, lock=False) as environment:
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise UserError(f"{file}: this is not a readable LMDB file ({reason_of(error)}).") from error
    if (size := Path(file).stat().st_size) < needed:
        raise UserError(f"{file}: the file ends after {size} of its {needed} bytes; copy it once more.")


def _frame_of(row: AtomsRow) -> Frame:
    atoms = row.toatoms()
    data = dict(row.data)
    # the names under which mace-torch writes what ASE's databases have no place for
    arrays, info = data.pop("__arrays__", {}), data.pop("__info__", {})
    atoms.info.update({**row.key_value_pairs, **data, **info, **arrays})
    return with_columns(Frame.of_atoms(atoms))
