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
from mace.formats.frame_file import FrameFile, with_columns

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
        try:
            place = str(Path(self.path).resolve())
            if (database := _OPEN.get(place)) is None:
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


def _frame_of(row: AtomsRow) -> Frame:
    atoms = row.toatoms()
    data = dict(row.data)
    # the names under which mace-torch writes what ASE's databases have no place for
    arrays, info = data.pop("__arrays__", {}), data.pop("__info__", {})
    atoms.info.update({**row.key_value_pairs, **data, **info, **arrays})
    return with_columns(Frame.of_atoms(atoms))
