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

import numpy as np
import torch
from torch import Tensor

from mace.graphs.dataset import Dataset, Targets
from mace.model.prediction import Prediction
from mace.properties import PROPERTIES

FORCE_STEPS = (100.0, 200.0, 300.0)
FORCE_FACTORS = (1.0, 0.7, 0.4, 0.1)
"""Factors on the threshold of the universal loss, by the size of the reference force in eV/Angstrom."""


@dataclass(frozen=True)
class Term:
    """The contribution of one property to a loss.

    Attributes:
        name: The property.
        per_atom: Whether to divide the error by the number of atoms first.
        penalty: Maps errors and reference values to the penalty of each entry; there may be fewer entries than
            components, for example if the length of a vector is penalized.
        scales_error: Whether the property's weight multiplies error and reference before the penalty is computed,
            instead of the penalty itself.
        weight: Weight of the term in the loss.
    """

    name: str
    per_atom: bool
    penalty: Callable[[Tensor, Tensor], Tensor]
    scales_error: bool = False
    weight: float = 1.0

    def sum_and_count(self, prediction: Prediction, targets: Targets) -> tuple[Tensor, Tensor]:
        """Sum the penalties of labeled entries and count the entries.

        Args:
            prediction: Prediction that holds the property.
            targets: Labels and weights of the same batch.

        Returns:
            Sum and count, both scalar tensors.
        """
        predicted = getattr(prediction, self.name)
        assert predicted is not None, f"{self.name} was not predicted"
        reference = targets.values[self.name].to(predicted.dtype)
        labeled, property_weight = targets.labeled[self.name], targets.property_weights[self.name]
        weight, n_atoms = targets.weight, targets.atoms_per_structure
        if PROPERTIES[self.name].of_atoms:
            labeled, property_weight, weight = (
                x.repeat_interleave(n_atoms, output_size=len(reference)) for x in (labeled, property_weight, weight)
            )
            weight = weight * targets.atom_weights[self.name]
        shape = (-1,) + (1,) * (reference.dim() - 1)
        mask = labeled.view(shape)
        error = torch.where(mask, predicted - reference, 0.0)
        reference = torch.where(mask, reference, 0.0)
        if self.per_atom:
            error = error / n_atoms.view(shape)
        property_weight = property_weight.to(predicted.dtype).view(shape)
        if self.scales_error:
            penalty = self.penalty(error * property_weight, reference * property_weight)
        else:
            penalty = self.penalty(error, reference) * property_weight
        total = (penalty * weight.to(predicted.dtype).view(shape)).sum()
        return total, self.counts(targets.labeled[self.name], targets.atoms_per_structure).sum()

    def counts(self, labeled: Tensor, n_atoms: Tensor) -> Tensor:
        """Count the labeled entries of each of some structures, given which are labeled and their numbers of atoms."""
        row = torch.zeros(1, *PROPERTIES[self.name].shape, dtype=torch.float64)
        entries = labeled * self.penalty(row, row).numel()
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
        parts = []
        for term in self.terms:
            total, count = sums_and_counts[term.name]
            parts.append(term.weight * total / count.clamp(min=1))
        return torch.stack([part.to(torch.promote_types(part.dtype, parts[0].dtype)) for part in parts]).sum()

    def __call__(self, prediction: Prediction, targets: Targets, counts: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the loss of one batch.

        Args:
            prediction: Prediction for the batch.
            targets: Labels of the batch.
            counts: Counts to divide by if the batch is part of a larger one; the losses of all parts, each divided by
                the counts of the whole, add up to the loss of the whole.
        """
        sums = self.sums_and_counts(prediction, targets)
        return self.combine(sums if counts is None else {name: (sums[name][0], counts[name]) for name in sums})

    def __str__(self) -> str:
        """Format the loss as shown in the log."""
        return f"{self.name}(" + ", ".join(f"{t.name}_weight={t.weight:.3f}" for t in self.terms) + ")"


def _square(error: Tensor, reference: Tensor) -> Tensor:
    return error * error


def huber(error: Tensor, delta: float | Tensor) -> Tensor:
    """Return the Huber penalty: quadratic below the threshold `delta` and linear above it."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * error * error, delta * (size - 0.5 * delta))


def _stepped_huber(delta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a Huber penalty whose threshold decreases as the reference force grows."""

    def penalty(error: Tensor, reference: Tensor) -> Tensor:
        norm = reference.norm(dim=-1, keepdim=True)
        factor = torch.full_like(norm, FORCE_FACTORS[0])
        for step, value in zip(FORCE_STEPS, FORCE_FACTORS[1:], strict=True):
            factor = torch.where(norm < step, factor, value)
        return huber(error, delta * factor)

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
        "dipole": Term("dipole", True, lambda error, _: 100.0 * error * error),
    }
    clipped = lambda error, _: huber(error, huber_delta)  # noqa: E731
    robust = {p: Term(p, p == "energy", clipped) for p in ("energy", "forces", "stress")}
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
            Term("energy", True, lambda error, _: error.abs()),
            Term("forces", False, lambda error, _: torch.linalg.vector_norm(error, dim=-1, keepdim=True)),
        ],
        "dipole": [square["dipole"]],
        "energy_forces_dipole": [square["energy"], square["forces"], square["dipole"]],
    }
    terms = [replace(term, weight=float(weights[term.name])) for term in kinds[name] if weights[term.name] > 0.0]
    return Loss(name, tuple(terms))
