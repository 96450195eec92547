"""Comparison of predictions with labels, accumulated over batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from mace.properties import COMPARED, PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.structures.configuration import Configuration

_Pair = tuple[np.ndarray, np.ndarray]


class Comparison:
    """Compares labels with predictions, by ``config_type``.

    Args:
        keep: Whether to keep all values too, for plots.
    """

    def __init__(self, keep: bool) -> None:
        self._errors: dict[str, ErrorAccumulator] = {}
        self._kept: dict[str, dict[str, list[_Pair]]] | None = {} if keep else None

    def add(self, configurations: Iterable[Configuration], predictions: Iterable[dict[str, Any]]) -> None:
        """Add the structures of a batch to the comparison."""
        rows: dict[tuple[str, str], list[tuple[Any, Any, int]]] = defaultdict(list)
        for configuration, prediction in zip(configurations, predictions, strict=True):
            for name in COMPARED:
                label = getattr(configuration, name)
                if label is not None and name in prediction:
                    rows[configuration.config_type, name].append((label, prediction[name], configuration.n_atoms))
        for (kind, name), found in rows.items():
            labels, predicted, counts = zip(*found, strict=True)
            join = np.concatenate if PROPERTIES[name].of_atoms else np.array
            pair, n_atoms = (join(labels), join(predicted)), np.array(counts)
            self._errors.setdefault(kind, ErrorAccumulator()).add(name, *pair, n_atoms)
            if self._kept is not None:
                if name == "energy":
                    pair = (pair[0] / n_atoms, pair[1] / n_atoms)
                self._kept.setdefault(kind, {}).setdefault(name, []).append(pair)

    def errors(self) -> dict[str, dict[str, float]]:
        """Return the metrics of every config_type, and of all structures as ``all``, for labeled properties only."""
        total = ErrorAccumulator()
        for accumulator in self._errors.values():
            total.merge(accumulator)
        rows = {kind: accumulator.result() for kind, accumulator in sorted(self._errors.items())}
        rows = {kind: metrics for kind, metrics in rows.items() if metrics}
        return {**rows, "all": total.result()} if rows else {}

    def parity(self) -> dict[str, dict[str, _Pair]]:
        """Return the kept labels and predictions by config_type and property; energies are per atom."""
        return {
            kind: {
                name: (np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))
                for name, pairs in properties.items()
            }
            for kind, properties in sorted((self._kept or {}).items())
        }
