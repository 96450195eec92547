"""Which conditions the model of a run knows of, and under which keys files have them."""

from __future__ import annotations

from collections.abc import Sequence

from mace.conditions import SETTABLE, Condition, read_specs
from mace.errors import UserError
from mace.finetuning.foundation import Foundation
from mace.model.plan import OUTPUTS
from mace.settings import TrainingSettings, provided


def conditions_of(settings: TrainingSettings, foundation: Foundation | None = None) -> tuple[Condition, ...]:
    """Decide what is read of every structure besides its atoms and labels.

    Args:
        settings: What was typed.
        foundation: The model that is fine-tuned, if any, which decides what its conditions are.

    Returns:
        The conditions, each with its key in the files if one was given.

    Raises:
        UserError: If settings contradict each other or the foundation model, or have no effect.
    """
    conditions = _described(settings)
    if foundation is not None:
        conditions = _of_foundation(foundation, conditions)
    return tuple(_with_key(settings, condition) for condition in conditions)


def keys_without_condition(settings: TrainingSettings, conditions: Sequence[Condition]) -> list[str]:
    """Say of which conditions a key was typed that the model does not have, in sentences for the log."""
    missing = sorted(set(SETTABLE) - {condition.name for condition in conditions})
    return [
        f"--{name}_key={key} has no effect: the model has no condition '{name}', which --embedding_specs would describe"
        for name in missing
        if (key := getattr(settings, f"{name}_key")) not in (None, "", name)
    ]


def _described(settings: TrainingSettings) -> tuple[Condition, ...]:
    """Read what was typed."""
    if settings.embedding_specs is None:
        return ()
    if "dipole" in OUTPUTS[settings.model]:
        raise UserError(
            f"--embedding_specs: models of dipoles have no conditions; remove it, or choose another --model than "
            f"{settings.model}."
        )
    return read_specs(settings.embedding_specs)


def _of_foundation(foundation: Foundation, described: Sequence[Condition]) -> tuple[Condition, ...]:
    """Return the conditions of the foundation model, with the keys that were typed.

    Raises:
        UserError: If others were described.
    """
    own = foundation.plan.conditions
    if not described:
        return own
    if [_without_key(c) for c in described] != [_without_key(c) for c in own]:
        has = "; ".join(condition.text for condition in own) or "none"
        raise UserError(
            f"--embedding_specs contradicts the foundation model {foundation.source}, whose conditions are: {has}; "
            "leave it out, the foundation model decides."
        )
    return tuple(described)


def _without_key(condition: Condition) -> Condition:
    return condition.model_copy(update={"key": None})


def _with_key(settings: TrainingSettings, condition: Condition) -> Condition:
    """Give a condition the key of its setting.

    Raises:
        UserError: If it has another one.
    """
    name = f"{condition.name}_key"
    key = getattr(settings, name) if condition.name in SETTABLE and name in provided(settings) else None
    if not key:
        return condition
    said = (settings.embedding_specs or {}).get(condition.name, {}).get("key")
    if said not in (None, key):
        raise UserError(f"--{name}={key} contradicts --embedding_specs, where the key is '{said}'; give one of them.")
    return condition.model_copy(update={"key": key})
