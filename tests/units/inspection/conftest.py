"""Data sets with and without a problem, and a way to inspect them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.io import write

from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.structures.reading import read_configurations


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataReport]:
    """Write structures to files, read them as a training does, and inspect them."""
    monkeypatch.chdir(tmp_path)

    def run(
        training: Sequence[Atoms],
        validation: Sequence[Atoms] = (),
        test: Sequence[Atoms] = (),
        **demands: Any,
    ) -> DataReport:
        sets = []
        for role, frames in {"training": training, "validation": validation, "test": test}.items():
            if frames:
                write(f"{role}.xyz", list(frames), format="extxyz")
                result = read_configurations(f"{role}.xyz", skip_non_finite=True)
                sets.append(StructureSet(role, result))
        return inspect_sets(sets, Demands(**{"r_max": 4.0, "E0s": "average", **demands}))

    return run
