"""Comparison of predictions with labels, accumulated over batches in memory that does not grow with their number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from mace.pages.plots import ParityPoints
from mace.properties import COMPARED, PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.set_errors import OTHER, VALUE, PropertyTally
from mace.reporting.set_names import table_row
from mace.structures.configuration import Configuration

_MOST_DRAWN = 24
"""Rows that are told apart in plots, for which some thousand values of each property are kept."""


class Comparison:
    """Compares labels with predictions, by ``config_type`` and, if there are several, by head.

    Args:
        keep: Whether to keep values for plots.
        heads: Heads of the structures.
    """

    def __init__(self, keep: bool, heads: Collection[str] = ()) -> None:
        self._several = len(heads) > 1
        self._errors: dict[tuple[str, str], ErrorAccumulator] = {}
        self._totals: dict[str, ErrorAccumulator] = {}
        self._kept: dict[tuple[str, str], dict[str, PropertyTally]] | None = {} if keep else None
        self._n_structures = 0

    def add(self, configurations: Iterable[Configuration], predictions: Iterable[dict[str, Any]]) -> None:
        """Add the structures of a batch to the comparison."""
        rows: dict[tuple[str, str, str], list[tuple[Any, Any, int, int]]] = defaultdict(list)
        for configuration, predicted in zip(configurations, predictions, strict=True):
            for name in COMPARED:
                label = getattr(configuration, name)
                if label is not None and name in predicted:
                    head = configuration.head if self._several else ""
                    row = (label, predicted[name], configuration.n_atoms, self._n_structures)
                    rows[head, configuration.config_type, name].append(row)
            self._n_structures += 1
        for (head, kind, name), found in rows.items():
            labels, guesses, counts, places = zip(*found, strict=True)
            join = np.concatenate if PROPERTIES[name].of_atoms else np.array
            reference, prediction, n_atoms = join(labels), join(guesses), np.array(counts)
            wholes = [self._totals.setdefault(row, ErrorAccumulator()) for row in {_row("all", head), "all"}]
            of_row = self._errors.setdefault((head, kind), ErrorAccumulator(percentiles=False))
            for errors in (of_row, *wholes):
                errors.add(name, reference, prediction, n_atoms)
            if self._kept is not None:
                each = np.array([np.size(label) for label in labels])
                if name == "energy":
                    reference, prediction = reference / n_atoms, prediction / n_atoms
                values = {"reference": reference.ravel(), "error": (prediction - reference).ravel()}
                self._tally(head, kind, name).add(
                    {**values, "whole": values["reference"]},
                    np.repeat(places, each),
                    np.concatenate([np.arange(count) for count in each]),
                    types=np.zeros(each.sum(), dtype=np.int64),
                    part=np.zeros(each.sum(), dtype=np.int64),  # elements are not told apart
                    parts=np.zeros((1, VALUE["part"].itemsize), dtype=np.uint8),
                )

    def _tally(self, head: str, kind: str, name: str) -> PropertyTally:
        """Return what keeps values of a property, which rows share where there are many."""
        assert self._kept is not None
        row = (head, kind) if (head, kind) in self._kept or len(self._kept) < _MOST_DRAWN else ("", OTHER)
        return self._kept.setdefault(row, {}).setdefault(name, PropertyTally())

    def errors(self) -> dict[str, dict[str, float]]:
        """Return the metrics of every config_type, and of all structures as ``all``, for labeled properties only.

        With several heads, rows are called ``<config_type>_<head>``, and there is ``all_<head>`` too. Percentiles are
        those of all structures only.
        """
        rows = {_row(kind, head): errors.result() for (head, kind), errors in sorted(self._errors.items())}
        totals = sorted(self._totals, key=lambda row: (row == "all", row))
        return {**rows, **{row: self._totals[row].result() for row in totals}}

    def parity(self) -> dict[str, dict[str, ParityPoints]]:
        """Return what is to be drawn, by rows as of `errors` and property; energies are per atom."""
        return {
            _row(kind, head): {name: ParityPoints.chosen([tally]) for name, tally in properties.items()}
            for (head, kind), properties in sorted((self._kept or {}).items())
        }


def _row(kind: str, head: str) -> str:
    return table_row(kind, head) if head else kind
