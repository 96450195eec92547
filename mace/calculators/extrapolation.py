"""Checks for signs that a model is used far from its training data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.graphs.distances import distance_limits, elements_of_pairs, pair_lengths
from mace.graphs.graph import Graph
from mace.potential.potential import Potential

_ROUNDING = 1.0e-5
"""Tolerance in Angstrom below the shortest distance in the training data."""

COMMITTEE_ACTIONS = ("warn", "error")
"""Possible reactions when a committee disagrees."""


class ExtrapolationWarning(UserWarning):
    """A model is used where it has little training data."""


class ExtrapolationError(UserError):
    """A committee disagrees by more than the caller allows."""


def _warn(sentence: str) -> None:
    """Give a warning in one line, without a place in the source code, which would not help the user."""
    warnings.warn_explicit(sentence, ExtrapolationWarning, filename="mace", lineno=1, module=__name__)


class DistanceWatch:
    """Warns once when atoms come closer than any atoms of these elements in a model's training data.

    Models whose files do not hold the shortest distances are not watched.

    Args:
        potential: The models.
        length_unit: The models' unit of length in Angstrom, for the message.
    """

    def __init__(self, potential: Potential, length_unit: float) -> None:
        self._length_unit, self._warned = length_unit, False
        self._of_pairs: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(potential.members)
        self._limits = []
        for member in potential.members:
            plan, shortest = member.model.plan, member.metadata.shortest_distances
            limits = distance_limits(shortest, ElementTable(plan.atomic_numbers), plan.r_max) if shortest else None
            self._limits.append((plan, limits))

    def check(self, graphs: Sequence[Graph]) -> None:
        """Check the graphs of all models, and warn if one has such atoms."""
        for member, ((plan, limits), graph) in enumerate(zip(self._limits, graphs, strict=True)):
            if limits is None or self._warned:
                continue
            lengths = pair_lengths(graph, plan.r_max)
            known = self._of_pairs[member]
            if known is None or known[0] is not graph.pair_sender:  # graphs of moving atoms share it while pairs last
                pair = elements_of_pairs(graph, plan.n_elements)
                known = self._of_pairs[member] = graph.pair_sender, pair, limits.to(lengths)[pair] - _ROUNDING
            pair, missing = known[1], known[2] - lengths
            if not len(missing) or float(missing.max()) <= 0.0:
                continue
            self._warned = True
            worst = int(missing.argmax())
            names = "-".join(
                chemical_symbol(plan.atomic_numbers[place]) for place in divmod(int(pair[worst]), plan.n_elements)
            )
            limit = float(limits[pair[worst]])
            seen = (
                f"the shortest of the training data is {limit * self._length_unit:.3f} Angstrom"
                if limit < plan.r_max
                else "the training data have none within the cutoff"
            )
            _warn(
                f"A distance {names} is {float(lengths[worst]) * self._length_unit:.3f} Angstrom, but {seen}: the "
                "model extrapolates, so look at the structure before trusting the results. This is said once."
            )


class CommitteeWatch:
    """Warns once, or raises an error, when the models of a committee disagree about a force.

    Args:
        threshold: Largest standard deviation of the force on an atom, as the norm of the vector, in eV/Angstrom; None
            for no limit.
        action: One of `COMMITTEE_ACTIONS`.
        num_models: Number of models.

    Raises:
        UserError: If these arguments are invalid.
    """

    def __init__(self, threshold: float | None, action: str, num_models: int) -> None:
        if action not in COMMITTEE_ACTIONS:
            raise UserError(f"MACECalculator: committee_action is {action!r}; choose {' or '.join(COMMITTEE_ACTIONS)}.")
        if threshold is not None and not (np.isfinite(threshold) and threshold > 0.0):
            raise UserError(
                f"MACECalculator: committee_threshold is {threshold}; it must be a finite number above zero."
            )
        if threshold is not None and num_models < 2:
            raise UserError("MACECalculator: committee_threshold needs several models; name them in model_paths.")
        self._threshold, self._action, self._warned = threshold, action, False

    def check(self, results: Sequence[dict[str, np.ndarray]]) -> None:
        """Check the results of some structures.

        Raises:
            ExtrapolationError: If the models disagree and `action` is ``error``.
        """
        if self._threshold is None or self._warned:
            return
        for result in results:
            spread = np.sqrt(result["forces_var"].sum(-1)) if "forces_var" in result else np.zeros(1)
            if not spread[atom := int(spread.argmax())] > self._threshold:
                continue
            text = (
                f"The models of the committee disagree about the force on atom {atom} by {spread[atom]:.3g} "
                f"eV/Angstrom, more than committee_threshold={self._threshold:g}: they extrapolate"
            )
            if self._action == "error":
                raise ExtrapolationError(f"{text}; train them with structures like this one.")
            self._warned = True
            _warn(f"{text}. This is said once.")
            return
