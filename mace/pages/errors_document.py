"""Errors of predictions and worst structures as data for the scripts of a page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mace.elements import chemical_symbol, covalent_radii
from mace.pages.run_facts import MeasuredStage
from mace.properties import PROPERTIES
from mace.reporting.predictions import BINS, PropertyErrors
from mace.reporting.worst import Suspect

_POINT_TYPES = {"reference": "f4", "error": "f4", "set": "u2", "type": "u1", "part": "u1", "file": "u2", "index": "u4"}


def short_names(files: Sequence[str]) -> list[str]:
    """Name files without their folders, where they can still be told apart."""
    short = [file.rpartition("/")[2] for file in files]
    return short if len(set(short)) == len(set(files)) else list(files)


def errors_document(stages: Sequence[MeasuredStage]) -> dict[str, Any]:
    """Write what was measured as numbers a browser can draw; binary arrays in base64, little-endian."""
    from ase.data.colors import jmol_colors

    suspects = [suspect for stage in stages for found in stage.worst.values() for suspect in found if suspect.drawn]
    numbers = sorted({z for suspect in suspects for z in suspect.configuration.atomic_numbers.tolist()})
    elements = {
        str(z): {
            "symbol": chemical_symbol(z),
            "radius": round(float(covalent_radii([z])[0]), 2),
            "color": "#" + "".join(f"{round(255 * part):02x}" for part in jmol_colors[z]),
        }
        for z in numbers
    }
    documents = []
    for stage in stages:
        predictions = stage.predictions
        found_worst: dict[int, Suspect] = {id(s): s for found in stage.worst.values() for s in found}
        names = dict(zip(predictions.files, short_names(predictions.files), strict=True))
        order = {key: place for place, key in enumerate(found_worst)}
        present = {symbol for p in predictions.properties for part in p.parts for symbol in part.split()}
        documents.append(
            {
                "stage": stage.stage,
                "epoch": stage.epoch,
                "sets": [list(entry) for entry in predictions.sets],
                "heads": list(predictions.heads),
                "types": list(predictions.types),
                "files": short_names(predictions.files),
                "elements": sorted(present),
                "properties": [_property(errors) for errors in predictions.properties],
                "worst": {name: [order[id(s)] for s in found] for name, found in stage.worst.items()},
                "suspects": [_suspect(suspect, names) for suspect in found_worst.values()],
            }
        )
    return {"bins": BINS, "elements": elements, "stages": documents}


def _property(errors: PropertyErrors) -> dict[str, Any]:
    row = PROPERTIES[errors.name]
    title, cells = f"{row.title} per atom" if row.extensive else row.title, []
    for cell in errors.cells:
        filled = np.flatnonzero(cell.histogram)
        found = {name: getattr(cell, name) for name in ("set", "type", "part", "count")}
        found |= {name: _rounded(getattr(cell, name)) for name in ("absolute", "squared", "largest")}
        cells.append({**found, "bins": np.stack([filled, cell.histogram[filled]], axis=1).ravel().tolist()})
    return {
        "name": errors.name,
        "short": row.symbol,
        "title": f"{title}, E0s subtracted" if row.name == "energy" else title,
        "unit": row.shown_unit,
        "errorUnit": f"m{row.shown_unit}",
        "parts": list(errors.parts),
        "limit": _rounded(errors.limit),
        "cells": cells,
        "points": {name: packed(getattr(errors.points, name), kind) for name, kind in _POINT_TYPES.items()},
    }


def _suspect(suspect: Suspect, names: Mapping[str, str]) -> dict[str, Any]:
    configuration, numbers = suspect.configuration, suspect.configuration.atomic_numbers
    counts: Mapping[int, int] = Counter(numbers.tolist())
    found: dict[str, Any] = {
        "where": replace(configuration, file=names.get(configuration.file, configuration.file)).where(),
        "set": suspect.set,
        "role": suspect.role,
        "head": suspect.head,
        "type": configuration.config_type,
        "formula": "".join(f"{chemical_symbol(z)}{counts[z] if counts[z] > 1 else ''}" for z in sorted(counts)),
        "atoms": configuration.n_atoms,
        "errors": {name: _rounded(error) for name, error in suspect.errors.items()},
    }
    if suspect.drawn:
        found["numbers"] = packed(numbers, "u1")
        found["positions"] = packed(configuration.positions, "f4")
        has_cell = bool(np.any(configuration.cell)) and any(configuration.pbc)
        found["cell"] = [round(x, 4) for x in configuration.cell.ravel().tolist()] if has_cell else None
        if suspect.force_errors is not None:
            found["forces"] = packed(suspect.force_errors, "f4")
    return found


def packed(values: np.ndarray, kind: str) -> str:
    """Write an array as little-endian numbers of a kind such as ``f4`` in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(f"<{kind}").tobytes()).decode()


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
