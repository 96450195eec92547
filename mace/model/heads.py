"""Which head of a model is meant, and a model of one head made from one of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mace.errors import UserError
from mace.model.mace import MACE


def default_head(names: Sequence[str]) -> str | None:
    """Return the head that is meant where none is named: the only one, or one called default; None without such."""
    return names[0] if len(names) == 1 else next((name for name in names if name.lower() == "default"), None)


def find_head(names: Sequence[str], head: str | int | None, place: str) -> str:
    """Return the name of the head that is meant.

    Args:
        names: The heads there are; a single one is meant by ``default`` too.
        head: What was asked for, by name or number; None for `default_head`.
        place: What has the model, for messages.

    Raises:
        UserError: If there is no such head, or none is named and none is the default.
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
    """Return a model of one head that predicts what a certain head of several does.

    Args:
        model: The model; it is not changed, and given back if it has one head only.
        head: Name of the head; that of a single one may be any.
    """
    plan = model.plan
    if not plan.heads:
        return model
    place = plan.head_names.index(head)
    taken = MACE(plan.of_head(place), model.dtype).to(model.embedding.device)
    # parameters come in the same order where those of other heads are left out
    sources = [(value, model.roles[name]) for name, value in model.named_parameters()]
    kept = [(value, role) for value, role in sources if role.head in (None, place)]
    for (name, value), (source, role) in zip(taken.named_parameters(), kept, strict=True):
        # a map from the hidden layer of a readout is divided as if it saw the hidden layers of all heads
        value.copy_(source.double() * (role.fan_in / taken.roles[name].fan_in) ** -0.5)
    return taken
