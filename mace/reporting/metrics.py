"""Errors of predictions against labels, gathered batch by batch and named as users' scripts expect them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch

from mace.properties import PROPERTIES
from mace.reporting.spread import Spread, percentile

_MEASURED = {name: row for name, row in PROPERTIES.items() if row.suffix}

_TINY = 1.0e-9
"""Added to the size of the labels, so that labels which are all zero give a huge relative error and not a crash."""


_DIGITS, _EXACT = 12, 1 << 18
"""Percentiles are exact up to so many values; beyond, they are right to one part in four thousand or better."""


@dataclass
class _Sums:
    """Running sums over the components of one property, and how the absolute errors are spread."""

    count: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    absolute_per_atom: float = 0.0
    squared_per_atom: float = 0.0
    absolute_reference: float = 0.0
    squared_reference: float = 0.0
    absolute_errors: Spread = field(default_factory=lambda: Spread(_DIGITS, _EXACT))

    def merge(self, other: _Sums) -> None:
        for item in fields(self):
            if item.name != "absolute_errors":
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        self.absolute_errors.merge(other.absolute_errors)


class ErrorAccumulator:
    """Gather errors over batches and return them as one flat dictionary of metrics.

    Every component counts once: forces average over atoms and directions, stress and virials over all nine components.
    Sums are kept in float64 whatever the model's precision. Nothing stays on the accelerator between batches. Of any
    number of structures it takes a few megabytes.

    Args:
        percentiles: Whether to find percentiles too, which takes most of the memory.

    Example:
        >>> import numpy as np
        >>> errors = ErrorAccumulator()
        >>> errors.add("energy", np.array([1.0, 2.0]), np.array([1.5, 2.5]), n_atoms=np.array([5, 5]))
        >>> errors.result()["rmse_e"], errors.result()["rmse_e_per_atom"]
        (0.5, 0.1)
    """

    def __init__(self, percentiles: bool = True) -> None:
        self._percentiles = percentiles
        self._sums: dict[str, _Sums] = {}

    def add(
        self,
        property: str,
        reference: np.ndarray | torch.Tensor,
        prediction: np.ndarray | torch.Tensor,
        n_atoms: np.ndarray | torch.Tensor | None = None,
    ) -> None:
        """Count the labeled part of a batch; what is unlabeled or has zero weight must be left out already.

        Args:
            property: ``energy``, ``forces``, ``stress``, ``virials``, ``dipole`` or ``polarizability``.
            reference: Labels, ``[structures, ...]``, or ``[atoms, 3]`` for forces. It may be empty.
            prediction: Predictions of the same shape and unit.
            n_atoms: Atoms of each structure, ``[structures]``; needed for properties with errors per atom (all except
                forces and stress) and not read for the others.

        Raises:
            ValueError: If the property is unknown, shapes differ, or ``n_atoms`` is needed and does not fit.
        """
        if property not in _MEASURED:
            raise ValueError(f"No metrics are defined for '{property}'; choose from {', '.join(_MEASURED)}.")
        label, guess = _to_numpy(reference), _to_numpy(prediction)
        if label.shape != guess.shape:
            raise ValueError(f"{property}: labels have shape {label.shape}, predictions {guess.shape}.")
        if label.size == 0:
            return
        row = _MEASURED[property]
        error = guess.astype(np.float64) - label.astype(np.float64)
        absolute = np.abs(error)
        # Everything that can be refused comes before the first sum changes.
        per_atom = None
        if row.extensive:
            if n_atoms is None:
                raise ValueError(f"{property}: the number of atoms is needed for errors per atom.")
            atoms = _to_numpy(n_atoms)
            if atoms.shape != error.shape[:1]:
                raise ValueError(
                    f"{property}: {atoms.shape} numbers of atoms do not fit errors of shape {error.shape}."
                )
            per_atom = error / atoms.astype(np.float64).reshape(-1, *([1] * (error.ndim - 1)))
        sums = self._sums.setdefault(property, _Sums())
        sums.count += error.size
        sums.absolute += float(absolute.sum())
        sums.squared += float(np.square(error).sum())
        if self._percentiles:
            # they need no more digits than the prediction has
            sums.absolute_errors.add(absolute.astype(guess.dtype, copy=False))
        if per_atom is not None:
            sums.absolute_per_atom += float(np.abs(per_atom).sum())
            sums.squared_per_atom += float(np.square(per_atom).sum())
        if row.relative:
            sums.absolute_reference += float(np.abs(label).sum(dtype=np.float64))
            sums.squared_reference += float(np.square(label, dtype=np.float64).sum())

    def merge(self, other: ErrorAccumulator) -> None:
        """Count what another accumulator has seen, for example that of another process."""
        for name, sums in other._sums.items():
            self._sums.setdefault(name, _Sums()).merge(sums)

    def result(self) -> dict[str, float]:
        """Return the metrics of everything seen so far, in the units of what was added.

        Returns:
            Mean absolute (``mae_``), root-mean-square (``rmse_``) and 95th-percentile absolute (``q95_``) errors, with
            ``_per_atom`` and ``rel_`` (percent) variants where they make sense, for example ``rmse_e_per_atom`` and
            ``rel_rmse_f``. A property with nothing labeled has no entries.
        """
        metrics: dict[str, float] = {}
        for name, row in _MEASURED.items():
            if name not in self._sums:
                continue
            sums, suffix = self._sums[name], row.suffix
            count = sums.count
            mae, rmse = sums.absolute / count, float(np.sqrt(sums.squared / count))
            metrics[f"mae_{suffix}"] = mae
            if row.extensive:
                metrics[f"mae_{suffix}_per_atom"] = sums.absolute_per_atom / count
            if row.relative:
                metrics[f"rel_mae_{suffix}"] = 100.0 * mae / (sums.absolute_reference / count + _TINY)
            metrics[f"rmse_{suffix}"] = rmse
            if row.extensive:
                metrics[f"rmse_{suffix}_per_atom"] = float(np.sqrt(sums.squared_per_atom / count))
            if row.relative:
                size = float(np.sqrt(sums.squared_reference / count))
                metrics[f"rel_rmse_{suffix}"] = 100.0 * rmse / (size + _TINY)
            if self._percentiles:
                metrics[f"q95_{suffix}"] = percentile([sums.absolute_errors], 95.0)
        return metrics


def _to_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)
