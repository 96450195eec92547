"""Which code is looked at, and which tests may notice its faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Area:
    """Code with one purpose.

    Attributes:
        modules: Its files and folders.
        tests: Files and folders of tests that may notice a fault; of these are run those that reach the faulty line.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "loss": Area(
        ("mace/training/loss.py",), ("tests/units/training/test_loss.py", "tests/parity/test_training_step.py")
    ),
    "metrics": Area(
        ("mace/reporting/metrics.py", "mace/training/evaluation.py", "mace/training/step.py"),
        (
            "tests/units/reporting/test_metrics.py",
            "tests/units/training",
            "tests/parity/test_training_step.py",
        ),
    ),
    "dynamics": Area(("mace/dynamics",), ("tests/units/dynamics", "tests/workflows/test_dynamics.py")),
    "structures": Area(
        ("mace/formats", "mace/structures"),
        ("tests/units/structures", "tests/contract/test_malformed_inputs.py", "tests/contract/test_bad_input.py"),
    ),
    "foreign files": Area(
        ("mace/files/archives.py", "mace/files/pickles.py", "mace/compat/reader.py"),
        ("tests/units/compat", "tests/contract/test_hostile_files.py", "tests/parity/test_original_files.py"),
    ),
    "saving": Area(
        (
            "mace/training/saving.py",
            "mace/training/checkpoints.py",
            "mace/training/state.py",
            "mace/files/ownership.py",
            "mace/runs/resuming.py",
            "mace/reporting/records.py",
            "mace/files/durable.py",
            "mace/model/model_file.py",
        ),
        (
            "tests/units/training",
            "tests/units/reporting/test_records.py",
            "tests/contract/test_model_file.py",
            "tests/workflows/test_training_restarts.py",
            "tests/workflows/test_training_schedules.py",
            "tests/workflows/test_training_starts.py",
            "tests/workflows/test_training_stops.py",
            "tests/workflows/test_training_faults.py",
            "tests/workflows/test_damaged_checkpoints.py",
            "tests/workflows/test_two_runs.py",
            "tests/regression",
        ),
    ),
    "units": Area(
        ("mace/units.py", "mace/properties.py"),
        ("tests/units/structures", "tests/units/reporting", "tests/parity/test_dipoles.py"),
    ),
    "calculators": Area(
        ("mace/calculators", "mace/graphs/skin.py", "mace/potential/radial_tables.py"),
        (
            "tests/units/deployment",
            "tests/units/graphs/test_skin.py",
            "tests/units/graphs/test_neighbors.py",
            "tests/workflows/test_evaluate.py",
            "tests/contract/test_public_uses.py",
            "tests/parity/test_dipoles.py",
        ),
    ),
}


def modules_of(area: str, root: Path) -> list[str]:
    """List the files of an area."""
    return _files(AREAS[area].modules, root, "*.py")


def files_with_tests(area: str, root: Path) -> list[str]:
    """List the files of tests of an area, and those of its modules, whose docstrings are tests too."""
    return modules_of(area, root) + _files(AREAS[area].tests, root, "test_*.py")


def modules_guarded_by(file: str, root: Path) -> list[str]:
    """List the files of the areas whose faults a file of tests may notice."""
    areas = [area for area in AREAS if file in files_with_tests(area, root)]
    return sorted({module for area in areas for module in modules_of(area, root)})


def _files(paths: Sequence[str], root: Path, pattern: str) -> list[str]:
    found = [
        file
        for path in paths
        for file in (sorted((root / path).rglob(pattern)) if (root / path).is_dir() else [root / path])
    ]
    return [str(file.relative_to(root)) for file in found if file.name != "__init__.py" or "calculators" in file.parts]
