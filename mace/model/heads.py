"""Selection of a head of a model, and extraction of a single-head model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mace.errors import UserError
from mace.model.mace import MACE


def default_head(names: Sequence[str]) -> str | None:
    """Return the head to use if none is named: the only one, or one called default; None if there is neither."""
    return names[0] if len(names) == 1 else next((name for name in names if name.lower() == "default"), None)


def find_head(names: Sequence[str], head: str | int | None, place: str) -> str:
    """Return the name of the requested head.

    Args:
        names: Names of the heads of the model; a single head is also found as ``default``.
        head: The requested head, by name or number; None for `default_head`.
        place: Where the model comes from, for messages.

    Raises:
        UserError: If there is no such head, or if no head is named and there is no default.
    """
    listed = ", ".join(names)
    if isinstance(head, int):
        if not 0 <= head < len(names):
            raise UserError(f"{place}: there is no head {head}; the heads are 0 to {len(names) - 1} ({listed}).")
        return names[head]
    if head is None and (head := default_head(names)) is None:
        raise UserError(
            f"{place}: the model has {len(names)} heads ({listed}), and none is called default; choose one with "
            f"--head {names[-1]} (head='{names[-1]}' in Python)."
        )
    if head in names:
        return head
    if len(names) > 1:
        raise UserError(f"{place}: the model has no head '{head}'; its heads are {listed}.")
    if head.lower() != "default":
        raise UserError(f"{place}: the model has one head, {listed}, and no head '{head}'; leave it out.")
    return names[0]


@torch.no_grad()
def with_one_head(model: MACE, head: str) -> MACE:
    """Return a single-head model that predicts the same as a given head of a model with several.

    Args:
        model: The model; it is not changed, and is returned itself if it has only one head.
        head: Name of the head; ignored if the model has only one.
    """
    plan = model.plan
    if not plan.heads:
        return model
    place = plan.head_names.index(head)
    taken = MACE(plan.of_head(place), model.dtype)
    # without the parameters of the other heads, those of both models have the same order
    sources = [(value, model.roles[name]) for name, value in model.named_parameters()]
    kept = [(value, role) for value, role in sources if role.head in (None, place)]
    for (name, value), (source, role) in zip(taken.named_parameters(), kept, strict=True):
        # maps from the hidden layer of a readout are normalized as if their inputs were the hidden layers of all heads
        value.copy_(source.cpu().double() * (role.fan_in / taken.roles[name].fan_in) ** -0.5)
    return taken.move(model.embedding.device)
