"""Errors of a model on a set of structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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
    """What came out of an evaluation.

    Attributes:
        loss: The loss over all structures.
        metrics: Errors by name.
        by_type: Errors of each config_type.
        compared: Reference and prediction of everything labeled by property.
    """

    loss: float
    metrics: dict[str, float]
    by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)


def evaluate(
    model: MACE,
    dataset: Dataset,
    loss: Loss,
    batch_size: int,
    stress: bool = False,
    forces: bool = True,
    keep_details: bool = False,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda batches, total: batches,
    limit: EdgeLimit | None = None,
    team: Team | None = None,
) -> Evaluation:
    """Predict every structure and measure the errors of what is labeled and has weight.

    Args:
        model: The model.
        dataset: The structures.
        loss: Evaluated too; independent of the batch size.
        batch_size: Structures at a time.
        stress: Whether stress and virials are wanted beyond what the loss needs, where they are labeled.
        forces: Whether forces are wanted beyond what the loss needs, where they are labeled.
        keep_details: Whether to keep predictions and errors by config_type.
        progress: Wraps the iteration over batches, counted by their first structure; gets how many there are.
        limit: How much is computed at a time, besides the batch size.
        team: The processes that share the work; all get everything.

    Returns:
        Loss and errors.
    """
    team, limit, device = team or Team(), limit or EdgeLimit(None, "evaluation"), model.embedding.device
    total, sums = ErrorAccumulator(), {term.name: list[tuple[Tensor, Tensor]]() for term in loss.terms}
    details = _Details(dataset.config_types)
    forces = loss.needs_forces or (forces and bool(dataset.labeled("forces").any()))
    labeled_stress = bool((dataset.labeled("stress") | dataset.labeled("virials")).any())
    stress = loss.needs_stress or (stress and labeled_stress)

    def predicted(structures: np.ndarray) -> tuple[Batch, dict[str, _Rows]]:
        batch = dataset.batch(structures)
        moved = batch.to(device)
        prediction = predict(model, moved.graph, forces, stress)
        with torch.no_grad():
            found = loss.sums_and_counts(prediction, moved.targets)
        rows = _labeled_rows(prediction, batch)
        for name, pair in found.items():
            sums[name].append(pair)
        return batch, rows

    own = own_part(np.arange(len(dataset)), team)
    n_batches = -(-len(own) // batch_size)
    starts = range(0, len(own), batch_size)
    for start in progress(starts, n_batches):
        for batch, labeled in limit.work(dataset, own[start : start + batch_size], predicted):
            _accumulate(total, labeled, np.ones(len(batch.structures), dtype=bool))
            if keep_details:
                details.add(batch, labeled)
    value, metrics = _combined(loss, sums, total, team)
    if keep_details:
        details.gather(team)
    return Evaluation(value, metrics, details.errors_by_type(), details.compared())


class _Details:
    """Errors by config_type, and all predictions beside their references.

    Args:
        types: Of every structure of the dataset.
    """

    def __init__(self, types: np.ndarray) -> None:
        self._types = types
        self._by_type: dict[str, ErrorAccumulator] = {}
        self._compared: dict[str, list[Compared]] = {}

    def add(self, batch: Batch, labeled: dict[str, _Rows]) -> None:
        """Take in a batch."""
        of_structure = self._types[batch.structures]
        for kind in np.unique(of_structure):
            _accumulate(self._by_type.setdefault(str(kind), ErrorAccumulator()), labeled, of_structure == kind)
        for name, rows in labeled.items():
            self._compared.setdefault(name, []).append(rows.compared(batch.structures))

    def gather(self, team: Team) -> None:
        """Take in what the other processes have."""
        own = team.rank
        for rank, (by_type, compared) in enumerate(team.gather((self._by_type, self._compared))):
            if rank == own:
                continue
            for kind, accumulator in by_type.items():
                self._by_type.setdefault(kind, ErrorAccumulator()).merge(accumulator)
            for name, parts in compared.items():
                self._compared.setdefault(name, []).extend(parts)

    def errors_by_type(self) -> dict[str, dict[str, float]]:
        """Return the errors of each config_type."""
        return {kind: accumulator.result() for kind, accumulator in self._by_type.items()}

    def compared(self) -> dict[str, Compared]:
        """Return references and predictions by property."""
        return {name: _joined(parts) for name, parts in self._compared.items()}


def _combined(
    loss: Loss, sums: dict[str, list[tuple[Tensor, Tensor]]], total: ErrorAccumulator, team: Team
) -> tuple[float, dict[str, float]]:
    """Add up what all processes have found, and divide by their common counts."""
    combined = {
        name: (sum(s for s, _ in parts), sum(c for _, c in parts)) if parts else (torch.zeros(()), torch.zeros(()))
        for name, parts in sums.items()
    }
    if team.size == 1:
        return float(loss.combine(combined)), total.result()  # type: ignore[arg-type]  # sums of tensors
    own = {name: (float(s), float(c)) for name, (s, c) in combined.items()}
    everything, errors = ErrorAccumulator(), dict[str, tuple[Tensor, Tensor]]()
    gathered = team.gather((own, total))
    for name in own:
        numbers = torch.tensor([found[name] for found, _ in gathered], dtype=torch.float64).sum(0)
        errors[name] = (numbers[0], numbers[1])
    for _, accumulator in gathered:
        everything.merge(accumulator)
    return float(loss.combine(errors)), everything.result()


@dataclass(frozen=True)
class _Rows:
    """Labeled rows of one property: reference, prediction, number of atoms, structure and atom of each row."""

    name: str
    reference: np.ndarray
    prediction: np.ndarray
    n_atoms: np.ndarray
    structure: np.ndarray
    atom: np.ndarray | None

    def compared(self, structures: np.ndarray) -> Compared:
        """Return reference and prediction; ``structures`` are the places of those of the batch in their set."""
        return Compared(self.reference, self.prediction, structures[self.structure], self.atom)


def _labeled_rows(prediction: Prediction, batch: Batch) -> dict[str, _Rows]:
    """Select, property by property, what is labeled, has weight and was predicted."""
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
        rows[name] = _Rows(name, reference[usable], values[usable], n_atoms[structure], structure, atom)
    return rows


def _accumulate(accumulator: ErrorAccumulator, rows: dict[str, _Rows], chosen: np.ndarray) -> None:
    """Add the rows of the chosen structures."""
    for name, row in rows.items():
        mask = chosen[row.structure]
        if mask.any():
            n_atoms = None if PROPERTIES[name].of_atoms else row.n_atoms[mask]
            accumulator.add(name, row.reference[mask], row.prediction[mask], n_atoms)


def _joined(parts: list[Compared]) -> Compared:
    """Concatenate several parts."""
    atoms = [part.atom for part in parts if part.atom is not None]
    return Compared(
        np.concatenate([part.reference for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([part.structure for part in parts]),
        np.concatenate(atoms) if atoms else None,
    )
