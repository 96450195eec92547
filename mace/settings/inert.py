"""Settings that change nothing: those that never do here, and those that lack what they belong to.

Public command lines are full of them, and none is a reason to stop. Each is accepted, and one line says what is done
instead, or why nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from mace.settings.declaration import Declaration, declarations

Condition = tuple[Callable[[Any], bool], str]
"""Whether settings have what others belong to, and what to say if not."""

CONDITIONS: dict[str, Condition] = {
    "foundation_model": (lambda settings: settings.foundation_model is not None, "without --foundation_model"),
    "replay": (
        lambda settings: settings.foundation_model is not None and settings.multiheads_finetuning,
        "without replay, which needs --foundation_model and --multiheads_finetuning=True",
    ),
    "lora": (lambda settings: settings.lora, "without --lora"),
    "wandb": (lambda settings: settings.wandb, "without --wandb"),
    "edge_irreps": (lambda settings: settings.edge_irreps is not None, "without --edge_irreps"),
    "conditions": (
        lambda settings: settings.embedding_specs is not None or settings.foundation_model is not None,
        "without conditions, which --embedding_specs describes",
    ),
}
"""What settings belong to (`Declaration.only_with`)."""


def _typed(settings: BaseModel) -> Iterator[tuple[Declaration, Any]]:
    """Yield the settings that somebody gave another value than the default."""
    model = type(settings)
    for name, field in model.model_fields.items():
        value = getattr(settings, name)
        if name in settings.model_fields_set and value != field.default:
            yield declarations(model)[name], value


def refuse_unsupported(settings: BaseModel) -> None:
    """Refuse settings that are not supported and have what they belong to.

    Raises:
        ValueError: With one sentence per setting, one per line.
    """
    sentences = [
        f"--{it.name}: {it.unsupported}"
        for it, value in _typed(settings)
        if it.unsupported and it.only_with and value not in it.inactive and CONDITIONS[it.only_with][0](settings)
    ]
    if sentences:
        raise ValueError("\n".join(sentences))


def inert_notes(settings: BaseModel) -> list[str]:
    """Say of every setting that somebody gave and that changes nothing what is done instead, or why.

    Args:
        settings: The settings.

    Returns:
        One sentence for each, without its end.
    """
    notes = []
    for declaration, value in _typed(settings):
        has, absence = CONDITIONS.get(declaration.only_with, (lambda settings: True, ""))
        if declaration.inert:
            notes.append(f"--{declaration.name}={value} changes nothing: {declaration.inert}")
        elif not has(settings):
            notes.append(f"--{declaration.name}={value} has no effect {absence}")
    return notes
