"""The conditions that the model of a run depends on, and their keys in the files."""

from __future__ import annotations

from collections.abc import Sequence

from mace.conditions import SETTABLE, Condition, read_specs
from mace.errors import UserError
from mace.finetuning.foundation import Foundation
from mace.model.plan import OUTPUTS
from mace.settings import TrainingSettings, provided


def conditions_of(settings: TrainingSettings, foundation: Foundation | None = None) -> tuple[Condition, ...]:
    """Return the conditions to read for every structure besides its atoms and labels.

    Args:
        settings: The given settings.
        foundation: The foundation model to fine-tune, if any; it determines the conditions.

    Returns:
        The conditions, each with its key in the files if one was given.

    Raises:
        UserError: If settings contradict each other or the foundation model, or have no effect.
    """
    conditions: tuple[Condition, ...] = ()
    if settings.embedding_specs is not None:
        if "dipole" in OUTPUTS[settings.model]:
            raise UserError(
                f"--embedding_specs: models of dipoles have no conditions; remove it, or choose another --model than "
                f"{settings.model}."
            )
        conditions = read_specs(settings.embedding_specs)
    if foundation is not None:
        own = foundation.plan.conditions
        described, expected = ([c.model_copy(update={"key": None}) for c in each] for each in (conditions, own))
        if described not in ([], expected):
            has = "; ".join(condition.text for condition in own) or "none"
            raise UserError(
                f"--embedding_specs contradicts the foundation model {foundation.source}, whose conditions are: {has}; "
                "leave it out, the foundation model decides."
            )
        conditions = conditions or own
    return tuple(_with_key(settings, condition) for condition in conditions)


def keys_without_condition(settings: TrainingSettings, conditions: Sequence[Condition]) -> list[str]:
    """List given keys of conditions that the model does not have, as sentences for the log."""
    missing = sorted(set(SETTABLE) - {condition.name for condition in conditions})
    return [
        f"--{name}_key={key} has no effect: the model has no condition '{name}', which --embedding_specs would describe"
        for name in missing
        if (key := getattr(settings, f"{name}_key")) not in (None, "", name)
    ]


def _with_key(settings: TrainingSettings, condition: Condition) -> Condition:
    """Return a condition with the key from its setting, if one was given.

    Raises:
        UserError: If its description names a different key.
    """
    name = f"{condition.name}_key"
    key = getattr(settings, name) if condition.name in SETTABLE and name in provided(settings) else None
    if not key:
        return condition
    said = (settings.embedding_specs or {}).get(condition.name, {}).get("key")
    if said not in (None, key):
        raise UserError(f"--{name}={key} contradicts --embedding_specs, where the key is '{said}'; give one of them.")
    return condition.model_copy(update={"key": key})
