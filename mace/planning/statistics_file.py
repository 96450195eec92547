"""Statistics of prepared data in a file, ``--statistics_file``, in place of computing them again."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

from mace.errors import UserError
from mace.settings import TrainingSettings, provided
from mace.settings.heads import HeadSettings

_TAKEN = ("E0s", "mean", "std", "atomic_numbers", "avg_num_neighbors")


def with_statistics(settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Take what was not typed from the statistics files of a run and of its heads.

    Args:
        settings: The given settings.

    Returns:
        The settings with E0s, scale and shift, elements and the mean number of neighbors, and sentences for the log.

    Raises:
        UserError: If a file cannot be read.
    """
    notes, changes = list[str](), dict[str, Any]()
    if settings.statistics_file is not None:
        file = settings.statistics_file
        found, typed = _read(file), provided(settings)
        changes = {name: value for name, value in found.items() if name in _TAKEN and name not in typed}
        if "avg_num_neighbors" in changes:
            if found["r_max"] == settings.r_max and "compute_avg_num_neighbors" not in typed:
                changes["compute_avg_num_neighbors"] = False
            else:  # those within another cutoff say nothing
                del changes["avg_num_neighbors"]
        if settings.foundation_model is not None:
            changes = {name: value for name, value in changes.items() if name == "E0s"}
        notes.append(f"{file}: {', '.join(changes) or 'nothing'} taken from there")
        if kept := sorted(typed & set(_TAKEN)):
            notes.append(f"{file}: {', '.join(kept)} typed, so not taken from there")
    heads = {}
    for name, head in (settings.heads or {}).items():
        if head.statistics_file is not None:
            found = _read(head.statistics_file)
            own = {word: found[word] for word in ("E0s", "mean", "std") if getattr(head, word) is None}
            heads[name] = HeadSettings.model_validate({**head.given(), **own, "statistics_file": None})
            notes.append(f"{head.statistics_file}: {', '.join(own) or 'nothing'} of the head {name} taken from there")
    if heads:
        changes["heads"] = {**(settings.heads or {}), **heads}
    if not changes:
        return settings, notes
    changed = settings.model_copy(update=changes)
    changed.model_fields_set.update(changes)
    return changed, notes


def _read(file: str) -> dict[str, Any]:
    """Read the entries of a file, by the names of the settings they are for, and its cutoff."""
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))
        energies = entries["atomic_energies"]
        if isinstance(energies, str) and not energies.endswith(".json"):
            energies = {int(number): float(energy) for number, energy in ast.literal_eval(energies).items()}
        numbers = entries["atomic_numbers"]
        numbers = ast.literal_eval(numbers) if isinstance(numbers, str) else numbers
        found = {name: float(entries[name]) for name in ("mean", "std", "avg_num_neighbors", "r_max")}
        if not all(map(math.isfinite, found.values())):
            raise ValueError("a number is not finite")
        return {**found, "E0s": energies, "atomic_numbers": sorted(int(number) for number in numbers)}
    except OSError as error:
        raise UserError(
            f"{file}: this file, given as --statistics_file, cannot be opened ({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError, SyntaxError, AttributeError) as error:
        raise UserError(
            f"{file}: this is no file of statistics as mace_prepare_data writes it ({error}); leave out "
            "--statistics_file to have them computed."
        ) from error
