"""The losses of the stages of a run, made from the settings and adapted to the available labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mace.errors import UserError
from mace.properties import PREDICTED
from mace.settings import TrainingSettings, provided
from mace.structures.labels import LabelReport
from mace.training.loss import Loss, make_loss
from mace.training.stages import has_stage_two

_LOGGER = logging.getLogger(__name__)

Losses = tuple[Loss, Loss | None]
"""Losses of stage one and, if there is one, of stage two."""

_PREFIXES = ("", "swa_")
"""Prefix of the weight settings of each stage."""

_ONLY_WHERE_LABELED = {"huber": ("stress",), "universal": ("stress",)}
"""Terms that need no labels unless the user sets their weight, because a loss has them by default."""


def make_losses(settings: TrainingSettings) -> Losses:
    """Build the loss of stage one and, with ``--swa`` or ``--start_swa``, that of stage two, of the same kind.

    Raises:
        UserError: If nothing is left to minimize, or forces are needed but not computed.
    """
    weights: dict[str, float] = {p: getattr(settings, f"{p}_weight") for p in PREDICTED}
    if settings.loss == "ef":
        # the original's name for equal weights; weights given by the user take precedence
        typed = provided(settings)
        weights |= {p: 1.0 for p in ("energy", "forces") if f"{p}_weight" not in typed}
    one = make_loss(settings.loss, weights, settings.huber_delta)
    two = None
    if has_stage_two(settings):
        second = {p: getattr(settings, f"swa_{p}_weight") for p in weights}
        two = make_loss(settings.loss, second, settings.huber_delta)
    for loss in (one, two):
        if loss is not None and not loss.terms:
            raise UserError(f"--loss={settings.loss}: all its weights are zero; give one of them a positive weight.")
        if loss is not None and loss.needs_forces and not settings.compute_forces:
            raise UserError("--compute_forces=False needs --forces_weight=0 and, with --swa, --swa_forces_weight=0.")
    return one, two


def with_labels(settings: TrainingSettings, losses: Losses, report: LabelReport) -> Losses:
    """Drop terms that have no labels and that the user did not insist on, with a warning.

    These are terms whose key setting says that there are no such labels, and those in `_ONLY_WHERE_LABELED` with their
    default weight.

    Args:
        settings: The given settings.
        losses: Losses with all terms of nonzero weight.
        report: The labels found in the training files.

    Raises:
        UserError: If nothing is left to minimize.
    """
    typed, left = provided(settings), list[Loss | None]()
    for loss, prefix in zip(losses, _PREFIXES, strict=True):
        if loss is None:
            left.append(None)
            continue
        kept = []
        for term in loss.terms:
            weight = f"{prefix}{term.name}_weight"
            says_none = getattr(settings, f"{term.name}_key") == ""
            is_default = weight not in typed and term.name in _ONLY_WHERE_LABELED.get(loss.name, ())
            if report.total(term.name) or not (says_none or is_default):
                kept.append(term)
                continue
            what = f"--{term.name}_key says that there is none"
            reason = what if says_none else "no training structure has such a label"
            origin = "" if weight in typed else ", the default,"
            _LOGGER.warning("--%s=%g%s has no effect: %s", weight, term.weight, origin, reason)
        if not kept:
            raise UserError(
                f"--loss={loss.name}: no training structure has a label that it fits "
                f"({', '.join(term.name for term in loss.terms)}); name the keys of the labels, or choose another "
                "--loss."
            )
        left.append(replace(loss, terms=tuple(kept)))
    one, two = left
    assert one is not None
    return one, two


def ways_out(losses: Sequence[Loss | None]) -> Mapping[str, str]:
    """Describe for each label how to do without it: which weights, in all stages, would have to be zero."""
    words: dict[str, list[str]] = {}
    for loss, prefix in zip(losses, _PREFIXES, strict=False):
        for term in loss.terms if loss is not None else ():
            words.setdefault(term.name, []).append(f"--{prefix}{term.name}_weight=0 (it is {term.weight:g})")
    return {name: f"set {' and '.join(flags)}" for name, flags in words.items()}
