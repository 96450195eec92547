"""The course of a run, gathered from its records line by line."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mace.structures.configuration import DEFAULT_HEAD

_PHASE = "time_"


@dataclass
class EpochSums:
    """What the steps of one epoch add up to.

    Attributes:
        steps: How many there were.
        loss: Sum of their losses; NaN if one was none.
        norm: Sum of the norms of the gradients.
        norms: Steps whose norm is known.
        largest_norm: The largest of them.
        rate: Learning rate of the last step; None if it is not known.
        atoms: Atoms of all steps.
        seconds: Time of all steps.
        phases: The same by phase.
        stage_two: Whether the epoch belongs to stage two.
        lbfgs: Whether it is an iteration of L-BFGS.
    """

    steps: int = 0
    loss: float = 0.0
    norm: float = 0.0
    norms: int = 0
    largest_norm: float = 0.0
    rate: float | None = None
    atoms: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    stage_two: bool = False
    lbfgs: bool = False

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a step."""
        self.steps += 1
        self.loss += _number(record.get("loss"))
        norm = record.get("grad_norm")
        if norm is not None:
            self.norm, self.norms, self.largest_norm = self.norm + norm, self.norms + 1, max(self.largest_norm, norm)
        self.rate = record.get("lr", self.rate)
        self.atoms += record.get("atoms") or 0
        self.seconds += record.get("time") or 0.0
        for key, value in record.items():
            if key.startswith(_PHASE) and value is not None:
                phase = key[len(_PHASE) :]
                self.phases[phase] = self.phases.get(phase, 0.0) + value
        self.stage_two = record.get("stage") == "two"
        self.lbfgs = "evaluations" in record

    @property
    def mean_loss(self) -> float:
        """Mean loss of the steps, while the weights were changing."""
        return self.loss / self.steps

    @property
    def mean_norm(self) -> float:
        """Mean norm of the gradients; NaN if none is known."""
        return self.norm / self.norms if self.norms else math.nan

    @property
    def working_seconds(self) -> float:
        """Time of the steps; where phases are known, their sum, which on an accelerator has no part left out."""
        return sum(self.phases.values()) or self.seconds


class RunHistory:
    """Losses, errors, rates and times of a run by epoch.

    Where a run went back, as one that is resumed does, the later records of an epoch replace the earlier ones.

    Attributes:
        epochs: Sums over the steps of each epoch.
        valid: The record of the last evaluation of each epoch, by head and epoch.
        initial: The evaluation before the first step, by head.
        selection: The loss that chooses the best model, by epoch, where there are several heads and the records say it.
        select_by: The rule of that loss, ``all`` or the name of a head; None for a single head.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, EpochSums] = {}
        self.valid: dict[str, dict[int, dict[str, Any]]] = {}
        self.initial: dict[str, dict[str, Any]] = {}
        self.selection: dict[int, float] = {}
        self.select_by: str | None = None
        self._step_epochs, self._step_losses, self._step_norms = array("l"), array("f"), array("f")
        self._latest = -1

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> RunHistory:
        """Gather records."""
        history = cls()
        for record in records:
            history.add(record)
        return history

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record; one of another mode than those of this program is left out."""
        epoch, mode = record.get("epoch"), record.get("mode")
        if epoch is not None and not isinstance(epoch, int):
            return
        if mode == "eval":
            head = str(record.get("head") or DEFAULT_HEAD)
            if epoch is None:
                self.initial[head] = dict(record)
            else:
                self.valid.setdefault(head, {})[epoch] = dict(record)
        elif mode == "selection":
            self.select_by = str(record.get("head"))
            if epoch is not None:
                self.selection[epoch] = _number(record.get("loss"))
        elif mode == "opt" and epoch is not None:
            if epoch < self._latest:  # a run that went back is about to repeat what follows
                by_epoch: list[dict[int, Any]] = [self.epochs, self.selection, *self.valid.values()]
                for records in by_epoch:
                    for repeated in [known for known in records if known >= epoch]:
                        del records[repeated]
                kept = np.asarray(self._step_epochs) < epoch
                for name in ("_step_epochs", "_step_losses", "_step_norms"):
                    values = getattr(self, name)
                    setattr(self, name, array(values.typecode, np.asarray(values)[kept].tobytes()))
            self._latest = epoch
            self.epochs.setdefault(epoch, EpochSums()).add(record)
            self._step_epochs.append(epoch)
            self._step_losses.append(_number(record.get("loss")))
            self._step_norms.append(_number(record.get("grad_norm")))

    def numbers(self) -> list[int]:
        """Return the epochs that have a record, rising."""
        return sorted(set(self.epochs).union(*self.valid.values()))

    def has_metric(self, metric: str) -> bool:
        """Return whether any evaluation after a step has this metric."""
        return any(record.get(metric) is not None for of_head in self.valid.values() for record in of_head.values())

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that were evaluated."""
        return tuple(dict.fromkeys([*self.initial, *self.valid]))

    def validation_losses(self, head: str | None = None) -> dict[int, float]:
        """Return the validation loss by epoch; NaN where it is none.

        Args:
            head: Whose; None for the loss that chooses the best model. Where the records of several heads do not say
                it, as those of mace-torch, it is their mean.
        """
        if head is None and self.selection:
            return dict(self.selection)
        found: dict[int, list[float]] = {}
        for name, of_head in self.valid.items():
            for epoch, record in of_head.items() if head in (None, name) else ():
                found.setdefault(epoch, []).append(_number(record.get("loss")))
        return {epoch: math.fsum(losses) / len(losses) for epoch, losses in found.items()}

    @property
    def stage_two_start(self) -> int | None:
        """The first epoch of stage two, where the records say it."""
        return min((epoch for epoch, sums in self.epochs.items() if sums.stage_two), default=None)

    @property
    def lbfgs_start(self) -> int | None:
        """The first iteration of L-BFGS."""
        return min((epoch for epoch, sums in self.epochs.items() if sums.lbfgs), default=None)

    def evaluation_seconds(self) -> float:
        """Return the time of all evaluations, the first one included."""
        records = [*self.initial.values(), *(r for of_head in self.valid.values() for r in of_head.values())]
        return math.fsum(record.get("time") or 0.0 for record in records)

    def steps(self, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the course of loss and gradient step by step, averaged where steps are many.

        Args:
            most: Highest number of points.

        Returns:
            Time in epochs, mean loss, largest norm of the gradient of each point, ``[points]``.
        """
        epochs = np.asarray(self._step_epochs, dtype=np.int64)
        if not len(epochs):
            return np.zeros(0), np.zeros(0), np.zeros(0)
        first = np.searchsorted(epochs, epochs)
        counts = np.bincount(epochs)[epochs]
        counts[epochs == epochs[-1]] = max(int(counts[-1]), int(counts.max()))  # an epoch that still goes on
        times = epochs + (np.arange(len(epochs)) - first + 1.0) / counts
        edges = np.unique(np.linspace(0, len(epochs), min(most, len(epochs)) + 1).astype(np.int64))
        begins, sizes = edges[:-1], np.diff(edges)
        losses = np.add.reduceat(np.asarray(self._step_losses, dtype=np.float64), begins) / sizes
        norms = np.maximum.reduceat(np.asarray(self._step_norms, dtype=np.float64), begins)
        return times[edges[1:] - 1], losses, norms


def _number(value: float | None) -> float:
    return math.nan if value is None else value
