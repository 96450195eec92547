"""Which head of a model is meant, and a model of one head made from one of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mace.errors import UserError
from mace.model.mace import MACE

_FROM_HIDDEN = ("weight", "middle")
"""Maps from the hidden layer of a readout; they are divided as if they saw the hidden layers of all heads."""


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
    for name, value in taken.named_parameters():
        source = _of_one_head(name, place) if plan.n_readout_heads > 1 else name
        divided = source != name and _is_from_hidden(name, taken)
        factor = plan.n_readout_heads**-0.5 if divided else 1.0
        value.copy_(model.get_parameter(source).double() * factor)
    return taken


def _of_one_head(name: str, head: int) -> str:
    """Name the weight of one of several heads that a weight of a model of one is."""
    readout, _, word = name.rpartition(".")
    is_readout = name.startswith("readouts.") or readout == "condition_readout"
    return f"{readout}.heads.{head}.{word}" if is_readout else name


def _is_from_hidden(name: str, model: MACE) -> bool:
    """Tell whether a weight maps from the hidden layer of a readout."""
    readout, _, word = name.rpartition(".")
    return word in _FROM_HIDDEN and hasattr(model.get_submodule(readout), "hidden")
