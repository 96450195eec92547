"""Loss functions: sums of errors over labels, each divided by the number of labels.

The same definition serves training and validation. A term consists of a weighted sum over labeled entries and their
number; a loss adds ``weight * sum / count`` over its terms. Sums and counts of several batches can be added before
dividing, so a validation loss does not depend on the batch size. A missing label adds to neither sum nor count; a label
with weight zero adds zero to the sum but is counted. Every term respects the weights of structures, properties and
atoms. If all labels are present and only weights that mace-torch uses are set, the values equal those of mace-torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mace.graphs.dataset import Dataset, Targets
from mace.model.prediction import Prediction
from mace.properties import PROPERTIES

UNDEFINED = ("stress",)
"""Properties that are NaN where they have no meaning."""

FORCE_STEPS = (100.0, 200.0, 300.0)
FORCE_FACTORS = (1.0, 0.7, 0.4, 0.1)
"""Factors on the threshold of the universal loss, by the size of the reference force in eV/Angstrom."""


Penalty = Callable[[Tensor, Tensor], tuple[Tensor, float]]
"""Maps errors and reference values to the slopes of the penalty by the errors, and a number c.

The penalty of each row is the sum of ``slope * (error - c * slope)``; it and its derivative take few operations so.
"""


@dataclass(frozen=True)
class Term:
    """The contribution of one property to a loss.

    Attributes:
        name: The property.
        per_atom: Whether to divide the error by the number of atoms first.
        penalty: The penalty.
        scales_error: Whether the property's weight multiplies error and reference before the penalty is computed,
            instead of the penalty itself.
        weight: Weight of the term in the loss.
        of_rows: Whether there is one penalty for each row, not one for each component; for example, if it is the length
            of a vector.
    """

    name: str
    per_atom: bool
    penalty: Penalty
    scales_error: bool = False
    weight: float = 1.0
    of_rows: bool = False

    def sum_and_count(self, prediction: Prediction, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum the penalties of labeled entries and count the entries.

        Args:
            prediction: Prediction that holds the property.
            targets: Labels and weights of the same batch.

        Returns:
            Sum, in the precision of the labels, and count, both scalar tensors.
        """
        total, _ = self.weighed(self.predicted(prediction), targets)
        count = targets.rows[self.name].count
        return total, count if self.entries == 1 else count * self.entries

    def predicted(self, prediction: Prediction) -> Tensor:
        """Return the predicted property as numbers, of which nothing is differentiated."""
        found = getattr(prediction, self.name)
        assert found is not None, f"{self.name} was not predicted"
        return cast(Tensor, found.detach())

    def weighed(self, predicted: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the sum of the penalties, and its derivative by the prediction."""
        reference, rows, shape = (
            targets.values[self.name],
            targets.rows[self.name],
            (-1,) + (1,) * (predicted.dim() - 1),
        )
        n_atoms = targets.atoms_per_structure.view(shape)
        error = predicted - reference
        if self.name in UNDEFINED:  # where there is no label, errors weigh nothing, but what they weigh may be NaN
            error.masked_fill_(rows.missing.view(shape), 0.0)
        weight, scale = rows.weight.view(shape), None
        if self.per_atom:
            error = error / n_atoms
        if self.scales_error:
            scale, weight = rows.property_weight.view(shape), rows.other_weight.view(shape)
            error, reference = error * scale, reference * scale
        slope, c = self.penalty(error, reference)
        weighed = slope * weight
        total = (weighed * (error.sub(slope, alpha=c) if c else error)).sum()
        weighed = weighed if scale is None else weighed * scale
        return total, weighed / n_atoms if self.per_atom else weighed

    @property
    def entries(self) -> int:
        """Number of entries of a row."""
        return 1 if self.of_rows else prod(PROPERTIES[self.name].shape)

    def counts(self, labeled: Tensor, n_atoms: Tensor) -> Tensor:
        """Count the labeled entries of each of some structures, given which are labeled and their numbers of atoms."""
        entries = labeled * self.entries
        return entries * n_atoms if PROPERTIES[self.name].of_atoms else entries


@dataclass(frozen=True)
class Loss:
    """A weighted sum of terms.

    Attributes:
        name: Name of the loss on the command line.
        terms: Its terms; `make_loss` leaves out those of weight zero.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def needs_forces(self) -> bool:
        """Whether any term differentiates with respect to positions."""
        return any(term.name == "forces" for term in self.terms)

    @property
    def needs_stress(self) -> bool:
        """Whether any term differentiates with respect to strain."""
        return any(term.name in ("stress", "virials") for term in self.terms)

    def sums_and_counts(self, prediction: Prediction, targets: Targets) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the sum and count of every term, by property."""
        return {term.name: term.sum_and_count(prediction, targets) for term in self.terms}

    def counts(self, dataset: Dataset, structures: np.ndarray) -> dict[str, Tensor]:
        """Return the count of every term for some structures, by property, without reading their labels."""
        return {name: counts.sum() for name, counts in self.counts_of_each(dataset, structures).items()}

    def counts_of_each(self, dataset: Dataset, structures: np.ndarray) -> dict[str, Tensor]:
        """Return the count of every term for each of some structures, by property, each ``[structures]``."""
        n_atoms = torch.from_numpy(dataset.atoms_of(structures))
        labeled = {term.name: torch.from_numpy(dataset.labeled(term.name)[structures]) for term in self.terms}
        return {term.name: term.counts(labeled[term.name], n_atoms) for term in self.terms}

    def combine(self, sums_and_counts: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Add ``weight * sum / count``; a term without any label is zero."""
        totals, counts = (
            torch.stack(every) for every in zip(*(sums_and_counts[t.name] for t in self.terms), strict=True)
        )
        # weights as a tensor would be copied to the device, which the program waits for
        means = (totals / counts.clamp(min=1)).unbind(0)
        return torch.stack([mean * term.weight for mean, term in zip(means, self.terms, strict=True)]).sum()

    def value_and_slopes(
        self, prediction: Prediction, targets: Targets, counts: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch and its derivatives by the predicted properties.

        Both in one pass take few operations.

        Args:
            prediction: Prediction for the batch.
            targets: Labels of the batch.
            counts: Counts to divide by if the batch is part of a larger one; the losses of all parts, each divided by
                the counts of the whole, add up to the loss of the whole.
        """
        value, slopes = None, {}
        for term in self.terms:
            predicted = term.predicted(prediction)
            total, slope = term.weighed(predicted, targets)
            if counts is None:
                factor = targets.rows[term.name].per_row * (term.weight / term.entries)
            else:
                factor = term.weight / counts[term.name].clamp(min=1).to(total.dtype)
            value = total * factor if value is None else torch.addcmul(value, total, factor)
            # rounded to the precision of the prediction where it is computed
            slopes[term.name] = torch.mul(slope, factor, out=torch.empty_like(predicted))
        assert value is not None, "a loss has terms"
        return value, slopes

    def __call__(self, prediction: Prediction, targets: Targets, counts: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the loss of one batch; see `value_and_slopes`."""
        return self.value_and_slopes(prediction, targets, counts)[0]

    def __str__(self) -> str:
        """Format the loss as shown in the log."""
        return f"{self.name}(" + ", ".join(f"{t.name}_weight={t.weight:.3f}" for t in self.terms) + ")"


def _square(error: Tensor, reference: Tensor) -> tuple[Tensor, float]:
    return 2.0 * error, 0.25


def _size(error: Tensor, reference: Tensor) -> tuple[Tensor, float]:
    return error.sign(), 0.0


def _length(error: Tensor, reference: Tensor) -> tuple[Tensor, float]:
    """The length of a vector has a kink at zero, where its slope is taken to be zero."""
    return torch.nn.functional.normalize(error, dim=-1, eps=torch.finfo(error.dtype).tiny), 0.0


def huber(delta: float) -> Penalty:
    """Return the Huber penalty: quadratic below a threshold and linear above it."""
    return lambda error, reference: (error.clamp(-delta, delta), 0.5)


def _stepped_huber(delta: float) -> Penalty:
    """Return a Huber penalty whose threshold decreases as the reference force grows."""

    def penalty(error: Tensor, reference: Tensor) -> tuple[Tensor, float]:
        size = reference.norm(dim=-1, keepdim=True)
        first, *others = FORCE_FACTORS
        threshold = torch.full_like(size, delta * first)
        for step, factor in zip(FORCE_STEPS, others, strict=True):
            threshold.masked_fill_(size >= step, delta * factor)
        return error.clamp(-threshold, threshold), 0.5

    return penalty


def make_loss(name: str, weights: Mapping[str, float], huber_delta: float = 0.01) -> Loss:
    """Build a loss by name.

    Args:
        name: ``weighted``, ``ef``, ``forces_only``, ``stress``, ``virials``, ``huber``, ``universal``,
            ``l1l2energyforces``, ``dipole`` or ``energy_forces_dipole``.
        weights: Weight of each property; those that the loss does not use are ignored.
        huber_delta: Threshold for ``huber`` and ``universal``.

    Returns:
        The loss, without the terms whose weight is zero.

    Raises:
        KeyError: If the name is unknown or a weight is missing.
    """
    # dipole errors are multiplied by a hundred, as in mace-torch: they are small compared to energies
    square = {
        "energy": Term("energy", True, _square),
        "forces": Term("forces", False, _square),
        "stress": Term("stress", False, _square),
        "virials": Term("virials", True, _square),
        "dipole": Term("dipole", True, lambda error, _: (200.0 * error, 0.0025)),
    }
    robust = {p: Term(p, p == "energy", huber(huber_delta)) for p in ("energy", "forces", "stress")}
    universal = {p: replace(term, scales_error=True) for p, term in robust.items()}
    universal["forces"] = Term("forces", False, _stepped_huber(huber_delta), scales_error=True)
    kinds = {
        "weighted": [square["energy"], square["forces"]],
        "ef": [square["energy"], square["forces"]],
        "forces_only": [square["forces"]],
        "stress": [square["energy"], square["forces"], square["stress"]],
        "virials": [square["energy"], square["forces"], square["virials"]],
        "huber": list(robust.values()),
        "universal": list(universal.values()),
        # the length of the force error is penalized: one entry per atom instead of three
        "l1l2energyforces": [
            Term("energy", True, _size),
            Term("forces", False, _length, of_rows=True),
        ],
        "dipole": [square["dipole"]],
        "energy_forces_dipole": [square["energy"], square["forces"], square["dipole"]],
    }
    terms = [replace(term, weight=float(weights[term.name])) for term in kinds[name] if weights[term.name] > 0.0]
    return Loss(name, tuple(terms))
