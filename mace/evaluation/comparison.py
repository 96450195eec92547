"""Comparison of predictions with labels, accumulated over batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from mace.properties import COMPARED, PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.set_names import table_row
from mace.structures.configuration import Configuration

_Pair = tuple[np.ndarray, np.ndarray]


class Comparison:
    """Compares labels with predictions, by ``config_type`` and, if there are several, by head.

    Args:
        keep: Whether to keep all values too, for plots.
        heads: Heads of the structures.
    """

    def __init__(self, keep: bool, heads: Collection[str] = ()) -> None:
        self._several = len(heads) > 1
        self._errors: dict[tuple[str, str], ErrorAccumulator] = {}
        self._kept: dict[tuple[str, str], dict[str, list[_Pair]]] | None = {} if keep else None

    def add(self, configurations: Iterable[Configuration], predictions: Iterable[dict[str, Any]]) -> None:
        """Add the structures of a batch to the comparison."""
        rows: dict[tuple[str, str, str], list[tuple[Any, Any, int]]] = defaultdict(list)
        for configuration, prediction in zip(configurations, predictions, strict=True):
            for name in COMPARED:
                label = getattr(configuration, name)
                if label is not None and name in prediction:
                    head = configuration.head if self._several else ""
                    row = (label, prediction[name], configuration.n_atoms)
                    rows[head, configuration.config_type, name].append(row)
        for (head, kind, name), found in rows.items():
            labels, predicted, counts = zip(*found, strict=True)
            join = np.concatenate if PROPERTIES[name].of_atoms else np.array
            pair, n_atoms = (join(labels), join(predicted)), np.array(counts)
            self._errors.setdefault((head, kind), ErrorAccumulator()).add(name, *pair, n_atoms)
            if self._kept is not None:
                if name == "energy":
                    pair = (pair[0] / n_atoms, pair[1] / n_atoms)
                self._kept.setdefault((head, kind), {}).setdefault(name, []).append(pair)

    def errors(self) -> dict[str, dict[str, float]]:
        """Return the metrics of every config_type, and of all structures as ``all``, for labeled properties only.

        With several heads, rows are called ``<config_type>_<head>``, and there is ``all_<head>`` too.
        """
        totals, rows = dict[str, ErrorAccumulator](), dict[str, dict[str, float]]()
        for (head, kind), accumulator in sorted(self._errors.items()):
            if metrics := accumulator.result():
                rows[_row(kind, head)] = metrics
            for whole in dict.fromkeys([_row("all", head), "all"]):
                totals.setdefault(whole, ErrorAccumulator()).merge(accumulator)
        every = totals.pop("all", None)
        if not rows or every is None:
            return {}
        return {**rows, **{name: total.result() for name, total in totals.items()}, "all": every.result()}

    def parity(self) -> dict[str, dict[str, _Pair]]:
        """Return the kept labels and predictions by rows as of `errors` and property; energies are per atom."""
        return {
            _row(kind, head): {
                name: (np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs]))
                for name, pairs in properties.items()
            }
            for (head, kind), properties in sorted((self._kept or {}).items())
        }


def _row(kind: str, head: str) -> str:
    return table_row(kind, head) if head else kind
