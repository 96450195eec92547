"""Errors of a model on a set of structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mace.graphs.batch_size import BatchSize
from mace.graphs.dataset import Batch, Dataset
from mace.model.mace import MACE
from mace.model.prediction import Prediction, predict
from mace.processes.team import Team, own_part
from mace.properties import PREDICTED, PROPERTIES
from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.predictions import Compared
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit


@dataclass
class Evaluation:
    """Result of an evaluation.

    Attributes:
        loss: The loss over all structures.
        metrics: Errors by name.
        by_type: Errors of each config_type.
        compared: References and predictions of all labeled values, by property.
    """

    loss: float
    metrics: dict[str, float]
    by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)


def evaluate(
    model: MACE,
    dataset: Dataset,
    loss: Loss,
    batch_size: BatchSize | int,
    stress: bool = False,
    forces: bool = True,
    keep_details: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    limit: EdgeLimit | None = None,
    team: Team | None = None,
) -> Evaluation:
    """Predict every structure and measure the errors for labels with nonzero weight.

    Args:
        model: The model.
        dataset: The structures.
        loss: The loss to evaluate; its value does not depend on the batch size.
        batch_size: How much goes into a batch; a number is one of structures.
        stress: Whether to predict stress and virials where they are labeled, even if the loss does not need them.
        forces: Whether to predict forces where they are labeled, even if the loss does not need them.
        keep_details: Whether to keep all predictions, and the errors of each config_type.
        progress: Wraps the iteration over the numbers of batches.
        limit: Limit on the edges computed at a time, in addition to the batch size.
        team: The processes that share the work; all of them get the full result.

    Returns:
        Loss and errors.
    """
    team, limit, device = team or Team(), limit or EdgeLimit(None, "evaluation"), model.embedding.device
    forces = loss.needs_forces or (forces and bool(dataset.labeled("forces").any()))
    labeled_stress = bool((dataset.labeled("stress") | dataset.labeled("virials")).any())
    stress = loss.needs_stress or (stress and labeled_stress)
    sums = {term.name: list[tuple[Tensor, Tensor]]() for term in loss.terms}
    found = _Found()

    batches = _batches(dataset, BatchSize(batch_size) if isinstance(batch_size, int) else batch_size, team)
    types, n_atoms = dataset.config_types, dataset.atoms_of(np.arange(len(dataset)))
    for number in progress(range(len(batches))):
        for part in limit.parts(dataset, batches[number]):
            with part:
                batch = dataset.batch(part.structures)
                moved = batch.to(device)
                prediction = predict(model, moved.graph, forces, stress)
                with torch.no_grad():
                    of_batch = loss.sums_and_counts(prediction, moved.targets)
                rows = _labeled_rows(prediction, batch)
            if not part.fits:
                continue
            for name, pair in of_batch.items():
                sums[name].append(pair)
            present = np.unique(types[part.structures]).tolist() if keep_details else []
            kinds = {kind: found.by_type.setdefault(kind, ErrorAccumulator()) for kind in present}
            for name, row in rows.items():
                atoms_of, kind_of = n_atoms[row.structure], types[row.structure]
                found.total.add(name, row.reference, row.prediction, atoms_of)
                for kind, accumulator in kinds.items():
                    mask = kind_of == kind
                    accumulator.add(name, row.reference[mask], row.prediction[mask], atoms_of[mask])
                if keep_details:
                    found.compared.setdefault(name, []).append(row)
    combined = {
        name: (sum(s for s, _ in parts), sum(c for _, c in parts)) if parts else (torch.zeros(()), torch.zeros(()))
        for name, parts in sums.items()
    }
    if team.size > 1:  # every process gets the full result, divided by the common counts
        gathered = team.gather(({name: (float(s), float(c)) for name, (s, c) in combined.items()}, found))
        for name in combined:
            numbers = torch.tensor([of_one[name] for of_one, _ in gathered], dtype=torch.float64).sum(0)
            combined[name] = (numbers[0], numbers[1])
        found = _Found()
        for _, other in gathered:
            found.merge(other)
    return Evaluation(
        float(loss.combine(combined)),  # type: ignore[arg-type]  # sums of tensors
        found.total.result(),
        {kind: accumulator.result() for kind, accumulator in found.by_type.items()},
        {name: _joined(parts) for name, parts in found.compared.items()},
    )


def _batches(dataset: Dataset, size: BatchSize, team: Team) -> list[np.ndarray]:
    """Divide the structures of a set into the batches of this process; all processes have about the same work."""
    everything = np.arange(len(dataset))
    if size.unit == "structures":
        return size.divide(dataset, own_part(everything, team))
    return size.divide(dataset, everything)[team.rank :: team.size]


@dataclass
class _Found:
    """Total errors, errors by config_type, and predictions with their references, of one or all processes."""

    total: ErrorAccumulator = field(default_factory=ErrorAccumulator)
    by_type: dict[str, ErrorAccumulator] = field(default_factory=dict)
    compared: dict[str, list[Compared]] = field(default_factory=dict)

    def merge(self, other: _Found) -> None:
        """Add the results of another process."""
        self.total.merge(other.total)
        for kind, accumulator in other.by_type.items():
            self.by_type.setdefault(kind, ErrorAccumulator()).merge(accumulator)
        for name, parts in other.compared.items():
            self.compared.setdefault(name, []).extend(parts)


def _labeled_rows(prediction: Prediction, batch: Batch) -> dict[str, Compared]:
    """Select, for each property, the values that are labeled, have nonzero weight and were predicted."""
    rows = {}
    targets = batch.targets
    n_atoms = targets.atoms_per_structure.numpy()
    for name in PREDICTED:
        predicted = getattr(prediction, name)
        if predicted is None:
            continue
        chosen = (targets.labeled[name] & (targets.weight * targets.property_weights[name] > 0.0)).numpy()
        structure, atom = np.arange(len(n_atoms)), None
        if PROPERTIES[name].of_atoms:
            structure = structure.repeat(n_atoms)
            atom = np.arange(len(structure)) - (np.cumsum(n_atoms) - n_atoms)[structure]
        mask = chosen[structure]
        if PROPERTIES[name].of_atoms:
            mask = mask & (targets.atom_weights[name] > 0.0).numpy()
        if not mask.any():
            continue
        values = predicted.detach().cpu().double().numpy()[mask]
        usable = np.isfinite(values).reshape(len(values), -1).all(1) if name == "stress" else np.ones(len(values), bool)
        reference = targets.values[name].numpy()[mask]
        structure = structure[mask][usable]
        atom = None if atom is None else atom[mask][usable]
        rows[name] = Compared(reference[usable], values[usable], batch.structures[structure], atom)
    return rows


def _joined(parts: list[Compared]) -> Compared:
    """Concatenate the comparisons of several batches."""
    atoms = [part.atom for part in parts if part.atom is not None]
    return Compared(
        np.concatenate([part.reference for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([part.structure for part in parts]),
        np.concatenate(atoms) if atoms else None,
    )
