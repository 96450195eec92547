"""An extended XYZ file of structures with predictions, in which nothing that was known before is lost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms
from ase.io.extxyz import per_atom_properties, write_xyz
from ase.stress import voigt_6_to_full_3x3_stress

from mace.errors import UserError


class AnnotatedFile:
    """Write structures one by one; the file appears under its name once the block is left without an error.

    Args:
        path: The file; its folder is created.

    Raises:
        UserError: If the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a temporary file beside the place of the final one."""
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        if self.path.is_dir():
            raise UserError(f"{self.path}: the output is a directory; name a file.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._temporary.open("w", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, atoms: Atoms, columns: Mapping[str, np.ndarray], entries: Mapping[str, Any], where: str) -> None:
        """Write a structure with what it has already and what is new; what has the key of a new value is replaced.

        Args:
            atoms: The structure as read; it is changed.
            columns: New arrays by key, one row per atom, ``[atoms, ...]``.
            entries: New values by key for the comment line.
            where: File and place of the structure, for messages.

        Raises:
            UserError: If the structure cannot be written.
        """
        keep_results(atoms)
        for key in (*columns, *entries):
            atoms.info.pop(key, None)
            atoms.arrays.pop(key, None)
        atoms.arrays.update(columns)
        atoms.info.update(entries)
        try:
            write_xyz(self._stream, [atoms], write_results=False)
        except OSError as error:
            raise self._failure(error) from error
        except (ValueError, TypeError, KeyError) as error:  # what ASE says to data the format cannot hold
            raise UserError(
                f"{where} cannot be written as extended XYZ ({error}); take the data out that the format cannot hold."
            ) from error

    def __enter__(self) -> AnnotatedFile:
        """Return the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the complete file in its place, or take an incomplete one away."""
        try:
            self._stream.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: the output cannot be written ({error.strerror or error}).")


def keep_results(atoms: Atoms) -> None:
    """Move what a calculator attached by ASE's readers knows into the structure, under the names it has in files.

    Where the name is taken by something else, the value goes under ``calculator_<name>``.

    Args:
        atoms: The structure; it has no calculator afterwards.
    """
    results = getattr(atoms.calc, "results", {})
    atoms.calc = None
    for name, value in results.items():
        if value is None:
            continue
        if name == "stress" and np.shape(value) == (6,):
            value = voigt_6_to_full_3x3_stress(value)
        place = atoms.arrays if name in per_atom_properties else atoms.info
        place[f"calculator_{name}" if name in place else name] = value
