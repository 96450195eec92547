"""L-BFGS: the loss of all training structures at once, and its minimization with a line search.

The minimizer is asked for a point and told loss and gradient there, so that a run can be saved, stopped and resumed
between any two evaluations. Step lengths satisfy the strong Wolfe conditions; see Nocedal and Wright, Numerical
Optimization, 2nd edition, chapters 3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mace.graphs.batch_plan import HeadSampling
from mace.graphs.batch_size import training_batch
from mace.graphs.dataset import Dataset
from mace.graphs.feeding import Feeding
from mace.graphs.graph import carry
from mace.processes.devices import widened
from mace.processes.team import Team
from mace.settings import TrainingSettings
from mace.training.finiteness import Diverged
from mace.training.loss import Loss
from mace.training.memory import EdgeLimit
from mace.training.optimization import MovedParameters
from mace.training.phases import PhaseClock
from mace.training.step import loss_gradient

DECREASE = 1e-4
"""Fraction of the decrease promised by the slope at the start of a line that a step must reach."""

CURVATURE = 0.9
"""Largest slope at the end of a step, as a fraction of that at the start of the line."""

MOST_TRIALS = 20
"""Number of points evaluated on a line before the lowest of them is taken, or the direction is given up."""

SAME_LOSS = 1e-6
"""Relative difference above which the loss is considered another function than before a restart."""

Point = tuple[float, float, float]
"""Step length, loss and slope of a point on the line."""


def _dot(a: Tensor, b: Tensor) -> float:
    return float(widened(a) @ widened(b))


@dataclass
class LBFGS:
    """A minimization by L-BFGS; all attributes together are its complete state, numbers, lists and tensors.

    Vectors have the precision of the parameters; their products and the direction are computed in float64, where the
    device has it.

    Attributes:
        point: The latest accepted point, ``[parameters]``.
        history: Number of pairs to remember.
        loss: The loss there.
        gradient: The gradient there, ``[parameters]``; None if it is to be evaluated.
        direction: Direction of the line that is searched, ``[parameters]``, in that precision.
        slope: Derivative of the loss along it at `point`.
        step: Step length of the next trial.
        trials: Number of points evaluated on this line.
        low: The best end of the interval that holds a good step: the loss decreases there.
        high: Its other end, with a loss too high, not finite, or rising; None if none has been found.
        lowest: The lowest point on the line that decreased the loss enough: step length, loss, gradient.
        pairs: Steps and the changes of the gradient over them, oldest first.
        evaluations: Number of evaluations since the latest iteration ended.
        stuck: Whether no step decreases the loss any more, to the precision of the numbers.
    """

    point: Tensor
    history: int
    loss: float = math.inf
    gradient: Tensor | None = None
    direction: Tensor | None = None
    slope: float = 0.0
    step: float = 0.0
    trials: int = 0
    low: Point = (0.0, 0.0, 0.0)
    high: Point | None = None
    lowest: tuple[float, float, Tensor] | None = None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    evaluations: int = 0
    stuck: bool = False

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> LBFGS:
        """Build a minimizer from its attributes, with all tensors on a device."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return carry(value, device)
            return type(value)(map(moved, value)) if isinstance(value, (list, tuple)) else value

        return cls(**{name: moved(value) for name, value in state.items()})

    def trial(self) -> Tensor:
        """Return the point at which loss and gradient are to be evaluated next, ``[parameters]``."""
        return self.point if self.gradient is None else self._on_line(self.step)

    def tell(self, loss: float, gradient: Tensor) -> bool:
        """Take in the loss and gradient at `trial`.

        Args:
            loss: The loss; a point where it is not finite counts as too far along the line.
            gradient: Its gradient, ``[parameters]``.

        Returns:
            Whether an iteration is complete: a step has been accepted, or there is none (`stuck`).

        Raises:
            Diverged: If loss or gradient are not finite at the point where the minimization starts.
        """
        self.evaluations += 1
        finite = math.isfinite(loss) and bool(torch.isfinite(gradient).all())
        if self.gradient is None:
            if not finite:
                raise Diverged(
                    "L-BFGS: the loss of all training structures, or its gradient, is not finite at the weights it "
                    "starts from; look for wrong labels and overlapping atoms, or leave out --lbfgs."
                )
            if not math.isclose(loss, self.loss, rel_tol=SAME_LOSS):
                self.pairs = []
            self.loss, self.gradient = loss, gradient
            return self._begin_line()
        assert self.direction is not None
        self.trials += 1
        slope = _dot(gradient, self.direction) if finite else math.nan
        here = (self.step, loss if finite else math.inf, slope)
        decreased = finite and loss <= self.loss + DECREASE * self.step * self.slope
        if decreased and abs(slope) <= -CURVATURE * self.slope:
            return self._accept(self.step, loss, gradient)
        if decreased and (self.lowest is None or loss < self.lowest[1]):
            self.lowest = self.step, loss, gradient
        if decreased and slope < 0.0:
            before, self.low = self.low, here
        else:
            before, self.high = self.low, here
        self.step = _longer(before, self.low) if self.high is None else _between(self.low, self.high)
        if self.trials < MOST_TRIALS and not torch.equal(self._on_line(self.step), self.point):
            return False
        if self.lowest is not None:
            return self._accept(*self.lowest)
        return self._begin_line(anew=True)

    def restart(self) -> None:
        """Evaluate the loss at the accepted point again, as it may be another function now; pairs stay if it is not."""
        self.gradient, self.stuck = None, False

    def _on_line(self, step: float) -> Tensor:
        assert self.direction is not None
        return (widened(self.point) + step * self.direction).to(self.point.dtype)

    def _accept(self, step: float, loss: float, gradient: Tensor) -> bool:
        """Move to a point on the line and remember what was learned about the curvature."""
        assert self.gradient is not None
        point = self._on_line(step)
        moved, change = point - self.point, gradient - self.gradient
        # a pair without positive curvature, beyond rounding, would spoil the approximation of the Hessian
        if _dot(moved, change) > 1e-8 * math.sqrt(_dot(moved, moved) * _dot(change, change)):
            self.pairs = [*self.pairs, (moved, change)][-self.history :]
        self.point, self.loss, self.gradient = point, loss, gradient
        self._begin_line()
        return True

    def _begin_line(self, anew: bool = False) -> bool:
        """Choose the next direction and the first step along it.

        Args:
            anew: Whether the latest direction was of no use, so that the pairs are given up.

        Returns:
            Whether there is no direction left to go.
        """
        assert self.gradient is not None
        if anew:
            self.stuck, self.pairs = not self.pairs, []
        self.direction = -self._times_inverse_hessian(widened(self.gradient))
        self.slope = _dot(self.gradient, self.direction)
        if self.pairs and not self.slope < 0.0:
            return self._begin_line(anew=True)
        # without pairs nothing is known of the scale; this is the customary cautious first step
        self.step = 1.0 if self.pairs else min(1.0, 1.0 / max(float(widened(self.gradient).abs().sum()), 1e-300))
        self.stuck = self.stuck or not self.slope < 0.0
        self.trials, self.low, self.high, self.lowest = 0, (0.0, self.loss, self.slope), None, None
        return self.stuck

    def _times_inverse_hessian(self, vector: Tensor) -> Tensor:
        """Multiply by the approximate inverse Hessian, by the two-loop recursion; without pairs it is the identity."""
        result, factors = vector.clone(), []
        for moved, change in reversed(self.pairs):
            factors.append(_dot(moved, result) / _dot(moved, change))
            result -= factors[-1] * change
        if self.pairs:
            moved, change = self.pairs[-1]
            result *= _dot(moved, change) / _dot(change, change)
        for moved, change in self.pairs:
            result += (factors.pop() - _dot(change, result) / _dot(moved, change)) * moved
        return result


def _cubic_minimum(a: Point, b: Point) -> float:
    """Return the minimum of the cubic polynomial with the values and slopes of two points; NaN if it has none."""
    (x, f, m), (y, g, n) = a, b
    d = m + n - 3.0 * (f - g) / (x - y)
    square = d * d - m * n
    if not square >= 0.0:
        return math.nan
    root = math.copysign(math.sqrt(square), y - x)
    below = n - m + 2.0 * root
    return y - (y - x) * (n + root - d) / below if below else math.nan


def _longer(before: Point, last: Point) -> float:
    """Return a step beyond the last one, at which the loss still decreased."""
    found = _cubic_minimum(before, last)
    most = 10.0 * last[0]
    return most if math.isnan(found) else min(max(found, last[0] + 0.1 * (last[0] - before[0])), most)


def _between(low: Point, high: Point) -> float:
    """Return a step within an interval, at a distance from both ends."""
    width = high[0] - low[0]
    if not math.isfinite(high[1]):
        return low[0] + 0.1 * width
    found = _cubic_minimum(low, high)
    ends = sorted((low[0] + 0.1 * width, high[0] - 0.1 * width))
    return low[0] + 0.5 * width if math.isnan(found) else min(max(found, ends[0]), ends[1])


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return a copy of parameters as one vector, ``[parameters]``."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Give parameters the values in a vector as `flat` returns it."""
    for parameter, values in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(values.view_as(parameter))


def trainable(moved: MovedParameters) -> list[nn.Parameter]:
    """Return the parameters that are to be trained."""
    return [parameter for parameter in moved.parameters() if parameter.requires_grad]


class FullBatch:
    """The loss of all training structures and its gradient, computed in parts and shared among processes.

    The result does not depend on how the structures are divided, except for rounding. Where epochs draw more or fewer
    structures of a head than there are, its structures and labels count by the same factor here.

    Args:
        moved: What is moved; of these, the trainable parameters.
        dataset: The training structures.
        limit: Limit on the number of edges computed at a time, in addition to the batch size.
        settings: The settings; read only.
        team: The processes of the run.
        sampling: How often the structures of each head are used in an epoch.
        feeding: How the batches are gathered.

    Attributes:
        n_atoms: Number of atoms of all structures.
        phases: Seconds of each phase of the evaluations since they were last cleared.
    """

    def __init__(
        self,
        moved: MovedParameters,
        dataset: Dataset,
        limit: EdgeLimit,
        settings: TrainingSettings,
        team: Team,
        sampling: HeadSampling,
        feeding: Feeding | None = None,
    ) -> None:
        self._feeding = feeding or Feeding()
        self._moved, self._model, self._dataset, self._limit, self._team = moved, moved.model, dataset, limit, team
        self._size, self._pinned = training_batch(settings), settings.pin_memory
        self._parameters, self._counts = trainable(moved), dict[Loss, dict[str, Tensor]]()
        sizes = np.array(list(sampling.sizes.values()))
        self._factors = np.repeat(np.array(list(sampling.draws.values())) / sizes, sizes)
        self.n_atoms = dataset.n_atoms
        self.phases: dict[str, float] = {}

    def advance(
        self, lbfgs: LBFGS, loss: Loss, watch: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter
    ) -> bool:
        """Evaluate the loss where the minimizer asks for it; afterwards the model has the accepted weights.

        Args:
            lbfgs: The minimizer.
            loss: The loss.
            watch: Wraps the iteration over batches of structures; an error in it leaves the minimizer as it was.

        Returns:
            Whether an iteration is complete; see `LBFGS.tell`.
        """
        assign(self._parameters, lbfgs.trial())
        self._moved.update_model()
        try:
            return lbfgs.tell(*self.loss_and_gradient(loss, watch))
        finally:
            assign(self._parameters, lbfgs.point)
            self._moved.update_model()

    def loss_and_gradient(
        self, loss: Loss, watch: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter
    ) -> tuple[float, Tensor]:
        """Return the loss of all training structures with the current weights, and its gradient ``[parameters]``."""
        device, team, counts = self._model.embedding.device, self._team, self._counts_of(loss)
        clock, losses = PhaseClock(device), list[Tensor]()
        self._moved.forget_gradients()
        with self._feeding.open(self._dataset, self._batches(), self._divide) as feed:
            for structures in watch(feed):
                for part in self._limit.parts(self._dataset, self._share(structures)):
                    with part:
                        batch = feed.batch(part.structures).to(device, pinned=self._pinned)
                        clock.mark("data")
                        shares = _divided(counts, self._factors[structures[0]])
                        losses.append(loss_gradient(self._model, batch, loss, shares, add=True, mark=clock.mark))
        self._moved.take_gradients()
        value = float(widened(torch.stack(losses)).sum()) if losses else 0.0
        if team.size > 1:
            team.add_up(self._parameters, torch.zeros(0, device=device), "all structures")
            value = sum(team.gather(value))
            clock.mark("communication")
        gradient = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self._parameters]
        )
        self._moved.forget_gradients()
        self.phases = {k: self.phases.get(k, 0.0) + v for k, v in clock.read().items()}
        return value, gradient

    def _share(self, structures: np.ndarray) -> np.ndarray:
        return self._team.share(structures, self._dataset.edges_of(structures))

    def _divide(self, structures: np.ndarray) -> list[np.ndarray]:
        return self._limit.split(self._dataset, self._share(structures))

    def _batches(self) -> Iterator[np.ndarray]:
        """Yield the structures of each batch, of all processes, in the order of the data; a batch has one factor."""
        places = np.arange(len(self._dataset))
        for alike in np.split(places, np.flatnonzero(np.diff(self._factors)) + 1):
            yield from self._size.divide(self._dataset, alike, self._team.size)

    def _counts_of(self, loss: Loss) -> dict[str, Tensor]:
        """Count the labels of all structures, once for each loss; a label counts by the factor of its structure."""
        if loss not in self._counts:
            counted = [
                _divided(loss.counts(self._dataset, structures), 1.0 / self._factors[structures[0]])
                for structures in self._batches()
            ]
            device = self._model.embedding.device
            totals = {name: torch.stack([counts[name] for counts in counted]).sum() for name in counted[0]}
            self._counts[loss] = {name: total.to(device) for name, total in totals.items()}
        return self._counts[loss]


def _divided(counts: Mapping[str, Tensor], factor: float) -> Mapping[str, Tensor]:
    """Divide counts by a factor; they stay integers if it is one."""
    return counts if factor == 1.0 else {name: widened(count) / factor for name, count in counts.items()}
