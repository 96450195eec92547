"""Errors of a model on a set of structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batch_size import BatchSize
from mace.graphs.dataset import Batch, Dataset
from mace.graphs.feeding import Feeding
from mace.model.captured import CapturedPredictions
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict
from mace.processes.team import Team, own_part
from mace.properties import PREDICTED, PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.predictions import frequent_types
from mace.reporting.set_errors import Compared, SetErrors
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit

MOST_TYPES = 100
"""Errors are told apart by so many config_types, the most frequent ones."""


@dataclass
class Evaluation:
    """Result of an evaluation.

    Attributes:
        loss: The loss over all structures.
        metrics: Errors by name.
        by_type: Errors of each config_type.
        details: Errors in every part of the set, if they were asked for.
        waited: Seconds that this process waited for its batches.
    """

    loss: float
    metrics: dict[str, float]
    by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    details: SetErrors | None = None
    waited: float = 0.0


def evaluate(
    model: MACE | CapturedPredictions,
    dataset: Dataset,
    loss: Loss,
    batch_size: BatchSize | int,
    stress: bool = False,
    forces: bool = True,
    keep_details: bool = False,
    progress: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter,
    limit: EdgeLimit | None = None,
    team: Team | None = None,
    feeding: Feeding | None = None,
) -> Evaluation:
    """Predict every structure and measure the errors for labels with nonzero weight.

    Args:
        model: The model, or what captures its predictions of batches, which `feeding` has to pad then.
        dataset: The structures.
        loss: The loss to evaluate; its value does not depend on the batch size.
        batch_size: How much goes into a batch; a number is one of structures.
        stress: Whether to predict stress and virials where they are labeled, even if the loss does not need them.
        forces: Whether to predict forces where they are labeled, even if the loss does not need them.
        keep_details: Whether to find out the errors in every part of the set, and those of each config_type.
        progress: Wraps the iteration over batches, each given by its structures.
        limit: Limit on the edges computed at a time, in addition to the batch size.
        team: The processes that share the work; all of them get the full result.
        feeding: How the batches are gathered.

    Returns:
        Loss and errors.
    """
    captured, model = (model, model.model) if isinstance(model, CapturedPredictions) else (None, model)
    team, limit, device = team or Team(), limit or EdgeLimit(None, "evaluation"), model.embedding.device
    forces = loss.needs_forces or (forces and bool(dataset.labeled("forces").any()))
    labeled_stress = bool((dataset.labeled("stress") | dataset.labeled("virials")).any())
    stress = loss.needs_stress or (stress and labeled_stress)

    feeding = feeding or Feeding()
    n_atoms = dataset.atoms_of(np.arange(len(dataset)))
    types = frequent_types(dataset.structures.config_types, MOST_TYPES)
    energies = np.array([[*of_head.values()] for of_head in model.plan.energies_of_heads()])

    def nothing() -> _Found:
        return _Found(details=SetErrors(types.names, model.plan.atomic_numbers, energies) if keep_details else None)

    size = BatchSize(batch_size) if isinstance(batch_size, int) else batch_size
    found, batches = nothing(), _batches(dataset, size, team)
    with feeding.open(dataset, batches, lambda structures: limit.split(dataset, structures)) as feed:
        for structures in progress(feed):
            for part in limit.parts(dataset, structures):
                with part:
                    batch = feed.batch(part.structures)
                    pinned = feeding.device is not None
                    if captured is None:
                        prediction = predict(model, batch.graph.to(device, pinned), forces, stress)
                    else:
                        prediction = captured.predict(batch.graph, forces=forces, stress=stress)
                    with torch.no_grad():
                        of_batch = loss.sums_and_counts(prediction, batch.targets.to(device, pinned))
                    rows = _labeled_rows(prediction, batch)
                if part.fits:
                    found.add(batch, of_batch, rows, n_atoms, types.codes)
    if found.details is not None:
        found.details.settle()
    if team.size > 1:  # every process gets the full result, divided by the common counts
        found.sums = {name: (s.cpu().double(), c.cpu().double()) for name, (s, c) in found.sums.items()}
        of_all, found = team.gather(found), nothing()
        for other in of_all:
            found.merge(other)
    zero = torch.zeros(())
    return Evaluation(
        float(loss.combine({term.name: found.sums.get(term.name, (zero, zero)) for term in loss.terms})),
        found.total.result(),
        found.details.errors_by_type() if found.details is not None else {},
        found.details,
        feed.waited,
    )


def _batches(dataset: Dataset, size: BatchSize, team: Team) -> list[np.ndarray]:
    """Divide the structures of a set into the batches of this process; all processes have about the same work."""
    everything = np.arange(len(dataset))
    if size.unit == "structures":
        return size.divide(dataset, own_part(everything, team))
    return size.divide(dataset, everything)[team.rank :: team.size]


@dataclass
class _Found:
    """Sums and counts of the loss and errors, in every part of the set if asked for, of one or all processes."""

    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    total: ErrorAccumulator = field(default_factory=ErrorAccumulator)
    details: SetErrors | None = None

    def add(
        self,
        batch: Batch,
        sums: Mapping[str, tuple[Tensor, Tensor]],
        rows: Mapping[str, Compared],
        n_atoms: np.ndarray,
        types: np.ndarray,
    ) -> None:
        """Add the results of a batch.

        Args:
            batch: The structures.
            sums: Sum and count of every term of the loss.
            rows: What was compared, by property.
            n_atoms: Number of atoms of each structure of the set.
            types: Number of the config_type of each structure of the set.
        """
        self._add_sums(sums)
        for name, row in rows.items():
            self.total.add(name, row.reference, row.prediction, n_atoms[row.structure])
        if self.details is not None:
            self.details.add(batch, types[batch.structures], rows)

    def merge(self, other: _Found) -> None:
        """Add the results of another process."""
        self._add_sums(other.sums)
        self.total.merge(other.total)
        if self.details is not None and other.details is not None:
            self.details.merge(other.details)

    def _add_sums(self, sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in sums.items():
            known = self.sums.get(name)
            self.sums[name] = (total, count) if known is None else (known[0] + total, known[1] + count)


def _labeled_rows(prediction: Prediction, batch: Batch) -> dict[str, Compared]:
    """Select, for each property, the values that are labeled, have nonzero weight and were predicted."""
    rows = {}
    targets = batch.targets
    count = len(batch.structures)  # the others are padding
    n_atoms = targets.atoms_per_structure.numpy()[:count]
    for name in PREDICTED:
        predicted = getattr(prediction, name)
        if predicted is None:
            continue
        chosen = (targets.labeled[name] & (targets.weight * targets.property_weights[name] > 0.0)).numpy()[:count]
        structure, atom = np.arange(len(n_atoms)), None
        if PROPERTIES[name].of_atoms:
            structure = structure.repeat(n_atoms)
            atom = np.arange(len(structure)) - (np.cumsum(n_atoms) - n_atoms)[structure]
        mask = chosen[structure]
        if PROPERTIES[name].of_atoms:
            mask = mask & (targets.atom_weights[name] > 0.0).numpy()[: len(mask)]
        if not mask.any():
            continue
        values = predicted.detach().cpu().double().numpy()[: len(mask)][mask]
        usable = np.isfinite(values).reshape(len(values), -1).all(1) if name == "stress" else np.ones(len(values), bool)
        reference = targets.values[name].numpy()[: len(mask)][mask]
        structure = structure[mask][usable]
        atom = None if atom is None else atom[mask][usable]
        rows[name] = Compared(reference[usable], values[usable], batch.structures[structure], atom)
    return rows
