"""Conversion of predictions to ASE's results, for one or many structures and one model or a committee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress

from mace.model.prediction import Prediction
from mace.potential.potential import divide_by_structure, stack_members
from mace.properties import COMPARED, PROPERTIES

ATOMIC_STRESSES = ("stresses", "virials")
"""Results of atoms that are computed only if one of them is requested."""

_WITH = {"energy": ("free_energy", "energies", "node_energy"), "stress": ATOMIC_STRESSES}
"""Results that are given along with another one."""

_SOURCES = {
    **{name: (name, name) for name in COMPARED},
    "energies": ("atomic_energies", "energy"),
    "node_energy": ("reference_energies", "energy"),  # to be subtracted from the energies
    "virials": ("atomic_virials", "virials"),
}
"""For each result: the attribute of the prediction it comes from, and a property of the same dimension."""

_STATISTICS = ("comm", "var", "std")
_OF_MEMBERS = ("energy", "energies", *COMPARED[1:])
_PER_ATOM = ("energies", "node_energy", "virials", *(name for name in COMPARED if PROPERTIES[name].of_atoms))


def result_names(outputs: Sequence[str], committee: bool) -> list[str]:
    """List the names of results of models with the given outputs, from `mace.properties.PROPERTIES`."""
    names = [result for name in COMPARED if name in outputs for result in (name, *_WITH.get(name, ()))]
    members = [name for name in _OF_MEMBERS if name in names]
    return [*names, *(f"{name}_{what}" for name in members for what in _STATISTICS if committee)]


def collect_results(
    predictions: Sequence[Prediction],
    n_atoms: Sequence[int],
    volumes: Sequence[float | None],
    units: tuple[float, float],
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Convert predictions to ASE's results, averaged over the models.

    Args:
        predictions: Predictions of every model for the same structures.
        n_atoms: Number of atoms of each structure.
        volumes: Volume of the cell of each structure in Angstrom^3; None if it has no volume.
        units: The models' units of energy and length, in eV and Angstrom.
        dtype: Precision of results other than energies.

    Returns:
        Results by name for each structure. Energies are float64, as they include reference energies of many keV.
    """
    found = {name: [getattr(each, attribute) for each in predictions] for name, (attribute, _) in _SOURCES.items()}
    values = stack_members({name: tensors for name, tensors in found.items() if tensors[0] is not None})
    if units != (1.0, 1.0):
        values = {name: rows * PROPERTIES[_SOURCES[name][1]].factor(*units) for name, rows in values.items()}
    if "energies" in values:
        values["node_energy"] = values["energies"] - values["node_energy"]
    precision = np.float32 if dtype == torch.float32 else np.float64
    results = []
    for members, volume in zip(divide_by_structure(values, _PER_ATOM, n_atoms), volumes, strict=True):
        if volume is None:
            members.pop("stress", None)
        result: dict[str, Any] = {
            name: rows.mean(0) if len(rows) > 1 else rows[0].copy() for name, rows in members.items()
        }
        for name in _OF_MEMBERS if len(predictions) > 1 else ():
            if name in members:
                variance = members[name].var(0)
                result |= {f"{name}_comm": members[name].copy(), f"{name}_var": variance}
                result[f"{name}_std"] = np.sqrt(variance)
        result = {name: value if np.ndim(value) else float(value) for name, value in result.items()}
        if "energy" in result:
            result["free_energy"] = result["energy"]
        if "stress" in result:
            result["stress"] = full_3x3_to_voigt_6_stress(result["stress"])
        if "virials" in result and volume is not None:
            result["stresses"] = full_3x3_to_voigt_6_stress(-result["virials"] / volume)
        narrowed = {name for name, value in result.items() if isinstance(value, np.ndarray) and "energ" not in name}
        results.append(result | {name: result[name].astype(precision, copy=False) for name in narrowed})
    return results
