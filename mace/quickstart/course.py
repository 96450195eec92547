"""How long to train: epochs, stage two, averages and evaluations, from the machine's pace and the time there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mace.errors import UserError
from mace.quickstart.facts import Machine
from mace.quickstart.pace import Pace
from mace.quickstart.proposal import RULE_OF_UPDATES, SIZES, Proposal

NIGHT, DAY = 10 * 3600.0, 24 * 3600.0
"""Seconds a training may take by itself on a CPU and on a GPU, if nobody says how long."""

MOST_EPOCHS = 3000
"""Passes after which the same structures have nothing new to tell."""

_EVALUATIONS = 100
_SHARE_OF_EVALUATIONS = 0.1
_STAGE_ONE = 0.75
_PLOTS = 5.0
"""Seconds for the plots at the end: loading matplotlib and drawing, whatever the model."""
_LONG_RUN = 20_000


@dataclass(frozen=True)
class Prediction:
    """What a training will take.

    Attributes:
        epochs: Its epochs.
        seconds_per_epoch: Steps alone.
        steps: Seconds in gradient steps.
        evaluations: Seconds in evaluations of the validation set.
        saving: Seconds of saving states.
        rest: Seconds before the first and after the last epoch.
    """

    epochs: int
    seconds_per_epoch: float
    steps: float
    evaluations: float
    saving: float
    rest: float

    @property
    def total(self) -> float:
        """All of it in seconds."""
        return self.steps + self.evaluations + self.saving + self.rest

    def line(self) -> str:
        """Describe it in one line."""
        return (
            f"about {duration_words(self.total)}: {self.epochs} epochs of {duration_words(self.seconds_per_epoch)}, "
            f"evaluations {duration_words(self.evaluations)}, saving {duration_words(self.saving)}, beginning and end "
            f"{duration_words(self.rest)}"
        )


@dataclass(frozen=True)
class Limits:
    """What bounds a training.

    Attributes:
        size: Of the model.
        budget: Seconds it may take, as given; None if nobody said.
        start: Seconds from the start of the program to data that are read and checked.
    """

    size: str
    budget: float | None
    start: float


def propose_course(proposal: Proposal, pace: Pace, machine: Machine, limits: Limits) -> Prediction:
    """Decide the length of the training and all that depends on it.

    Raises:
        UserError: If the time does not suffice for two epochs.
    """
    section, stages = "Course", 2 if proposal.value("swa") else 1
    rest = limits.start + pace.prepare + pace.evaluation + pace.save + stages * pace.final + _PLOTS
    wanted, interval = _epochs(pace, machine, limits, rest, proposal.given.get("eval_interval"))
    epochs, reason = wanted
    epochs = proposal.put(section, "max_num_epochs", epochs, reason)
    updates = epochs * pace.updates
    proposal.put(section, "lr", 0.01, "the usual rate; lower it if the loss jumps")
    share = pace.evaluation / interval / (pace.updates * pace.step + pace.save)
    reason = f"evaluations take {100 * share:.2g}% of the time of training; each may find a better model"
    interval = proposal.put(section, "eval_interval", interval, reason)
    evaluations = -(-epochs // interval)
    if proposal.value("swa"):
        start = max(1, round(_STAGE_ONE * epochs))
        proposal.put(section, "start_swa", start, f"stage two takes the last {epochs - start} of {epochs} epochs")
        proposal.put(section, "swa_lr", 0.001, "a tenth of the rate, so that the noise of the steps dies away")
    patience = max(20, evaluations // 4)
    proposal.put(
        section,
        "patience",
        patience,
        "evaluations without gain, a quarter of all: then stage two begins, or the run ends",
    )
    plateau = max(10, evaluations // 20)
    proposal.put(
        section, "scheduler_patience", plateau, "evaluations without gain after which the rate is multiplied by 0.8"
    )
    proposal.put(section, "ema", True, "evaluates and keeps an average over the last steps, which is better than any")
    decay = 0.99 if updates < _LONG_RUN else 0.995
    proposal.put(section, "ema_decay", decay, f"averages over about {round(1 / (1 - decay))} of {updates:,} steps")
    return Prediction(
        epochs=epochs,
        seconds_per_epoch=pace.updates * pace.step,
        steps=updates * pace.step,
        evaluations=evaluations * pace.evaluation,
        saving=epochs * pace.save,
        rest=rest,
    )


def _epochs(
    pace: Pace, machine: Machine, limits: Limits, rest: float, interval: int | None
) -> tuple[tuple[int, str], int]:
    """Return the number of epochs with the reason for it, and the epochs between evaluations."""
    preset = SIZES[limits.size]
    by_rule, by_size = math.ceil(RULE_OF_UPDATES / pace.updates), math.ceil(preset.updates / pace.updates)
    budget = limits.budget or (NIGHT if machine.is_cpu else DAY)
    by_time, chosen, alone = MOST_EPOCHS, interval, pace.updates * pace.step + pace.save
    by_cost = math.ceil(pace.evaluation / (_SHARE_OF_EVALUATIONS * alone))
    for _ in range(5):  # epochs and interval depend on each other
        epochs = min(by_time, by_size, MOST_EPOCHS)
        # about a hundred evaluations, and a tenth of the time at most
        chosen = interval or max(1, min(max(round(epochs / _EVALUATIONS), by_cost), max(1, epochs // 10)))
        by_time = int((budget - rest) / (alone + pace.evaluation / chosen))
    epochs = min(by_size, by_time, MOST_EPOCHS)
    if epochs < 2:
        needed = rest + 2 * (alone + pace.evaluation)
        raise UserError(
            f"--time={duration_words(budget)} does not suffice: two epochs with all that belongs to them take about "
            f"{duration_words(needed)} as busy as this machine is; give more time, a smaller --size, or less data."
        )
    rule = (
        f"the rule of {RULE_OF_UPDATES:,} gradient updates gives {by_rule:,} epochs of {pace.updates} updates; "
        f"{preset.updates:,}, {by_size:,} epochs, are sensible for size {limits.size}"
    )
    whose = f"in the {duration_words(budget)} you give" if limits.budget else f"in {duration_words(budget)}"
    machines = f"this machine does {by_time:,} {whose}" if by_time < MOST_EPOCHS else "this machine has the time"
    cap = f"; more than {MOST_EPOCHS:,} passes over the same structures tell nothing new" if (
        min(by_size, by_time) > MOST_EPOCHS
    ) else ""  # fmt: skip
    return (epochs, f"{epochs * pace.updates:,} updates: {rule}; {machines}{cap}"), chosen or 1


def duration_words(seconds: float) -> str:
    """Write a duration with two or three digits.

    >>> duration_words(0.0123), duration_words(95), duration_words(600), duration_words(36000)
    ('0.012 s', '1 min 35 s', '10 min', '10 h')
    """
    if seconds < 60.0:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    hours, minutes = divmod(round(seconds / 60.0), 60)
    if hours < 48:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    return f"{seconds / 86400.0:.1f} days"
