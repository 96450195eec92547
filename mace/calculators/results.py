"""What models predict becomes the results ASE knows, for one structure or many, one model or a committee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mace.graphs.graph import Graph
from mace.model.mace import MACE
from mace.model.prediction import Prediction
from mace.properties import COMPARED, PROPERTIES

ATOMIC_STRESSES = ("stresses", "virials")
"""Results of single atoms that are computed only if one of them is asked for."""

_WITH = {"energy": ("free_energy", "energies", "node_energy"), "stress": ATOMIC_STRESSES}
"""Results that come with another one."""

_SHARES = {
    "energy": (("energies", "atomic_energies", "energy"),),
    "stress": (("virials", "atomic_virials", "virials"),),
}
"""What single atoms add: name of the result, attribute of the prediction, property of the same dimension."""

_STATISTICS = ("comm", "var", "std")
_OF_MEMBERS = ("energy", "energies", *COMPARED[1:])
_PER_ATOM = ("energies", "node_energy", "virials", *(name for name in COMPARED if PROPERTIES[name].of_atoms))


@dataclass(frozen=True)
class Units:
    """The model's units in eV and Angstrom."""

    energy: float
    length: float


def result_names(outputs: Sequence[str], committee: bool) -> list[str]:
    """List the results of models that predict some of `mace.properties.PROPERTIES`."""
    names = [result for name in COMPARED if name in outputs for result in (name, *_WITH.get(name, ()))]
    members = [name for name in _OF_MEMBERS if name in names]
    return [*names, *(f"{name}_{what}" for name in members for what in _STATISTICS if committee)]


def collect_results(
    models: Sequence[MACE],
    predictions: Sequence[Prediction],
    graphs: Sequence[Graph],
    volumes: Sequence[float | None],
    units: Units,
) -> list[dict[str, Any]]:
    """Turn predictions into ASE's results, means over the models.

    Args:
        models: The models.
        predictions: Of every model, for the same structures.
        graphs: What each model has seen of them.
        volumes: Of the cell of each structure in Angstrom^3; None where there is none.
        units: What energies and lengths are multiplied by.

    Returns:
        The results of each structure by name: energies in float64, because they hold reference energies of many keV,
        everything else in the precision of the (first) model.
    """
    values = _members(models, predictions, graphs, units)
    counts = graphs[0].atoms_per_structure().tolist()
    ends = np.cumsum(counts)
    results = []
    for index, (count, volume) in enumerate(zip(counts, volumes, strict=True)):
        atoms = slice(ends[index] - count, ends[index])
        picked = {name: rows[:, atoms] if name in _PER_ATOM else rows[:, index] for name, rows in values.items()}
        if volume is None:
            picked.pop("stress", None)
        results.append(_in_precision(_results(picked, volume, len(models) > 1), models[0].dtype))
    return results


def _members(
    models: Sequence[MACE], predictions: Sequence[Prediction], graphs: Sequence[Graph], units: Units
) -> dict[str, np.ndarray]:
    """Collect what each model says, in eV and Angstrom, ``[models, ...]``."""
    values = {}
    for name, attribute, dimension in (source for of in COMPARED for source in ((of, of, of), *_SHARES.get(of, ()))):
        tensors = [getattr(prediction, attribute) for prediction in predictions]
        if tensors[0] is not None:
            values[name] = _stack(tensors) * PROPERTIES[dimension].factor(units.energy, units.length)
    if "energies" in values:
        references = [model.reference_of_atoms(graph) for model, graph in zip(models, graphs, strict=True)]
        values["node_energy"] = values["energies"] - _stack(references) * units.energy
    return values


def _results(members: dict[str, np.ndarray], volume: float | None, committee: bool) -> dict[str, Any]:
    """Take means and statistics of one structure, with ASE's names and shapes."""
    results: dict[str, Any] = {name: rows.mean(0) for name, rows in members.items()}
    results = {name: value if np.ndim(value) else float(value) for name, value in results.items()}
    if "energy" in results:
        results["free_energy"] = results["energy"]
    if "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    if "virials" in results and volume is not None:
        results["stresses"] = full_3x3_to_voigt_6_stress(-results["virials"] / volume)
    for name in _OF_MEMBERS if committee else ():
        if name in members:
            variance = members[name].var(0)
            results[f"{name}_comm"] = members[name].copy()
            results[f"{name}_var"] = variance if variance.ndim else float(variance)
            results[f"{name}_std"] = np.sqrt(variance) if variance.ndim else float(np.sqrt(variance))
    return results


def _in_precision(results: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Give arrays the precision they were computed in, but for energies."""
    precision = np.float32 if dtype == torch.float32 else np.float64
    return {
        name: value if "energ" in name or not isinstance(value, np.ndarray) else value.astype(precision, copy=False)
        for name, value in results.items()
    }


def _stack(tensors: Sequence[Tensor]) -> np.ndarray:
    """Collect what each model says, ``[models, ...]``, float64."""
    rows: np.ndarray = torch.stack([tensor.detach().cpu().double() for tensor in tensors]).numpy()
    return rows
