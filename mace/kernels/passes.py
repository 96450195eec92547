"""Declaring which derivatives a backward pass needs, so that kernels can leave out all others.

Training differentiates twice: the energy by the geometry, which gives forces, and the loss by the parameters. Autograd
cannot tell a custom function that gradients of weights are not needed in the first pass, nor gradients of harmonics in
the second, so the caller declares it here.

On a device, autograd runs backward passes in threads of its own, to which a context variable of the caller is unknown.
So a function keeps, from its forward pass on, the purpose that its caller declares there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from functools import wraps
from typing import Any, TypeVar

_Found = TypeVar("_Found")


class Pass(Enum):
    """The variables of the derivatives that a backward pass needs."""

    EVERYTHING = "everything"
    GEOMETRY = "geometry"
    PARAMETERS = "parameters"


class Purpose:
    """What backward passes of the computations of one thread are for; computations beside it have their own.

    Attributes:
        kind: What the one is for that runs now.
    """

    def __init__(self) -> None:
        self.kind = Pass.EVERYTHING


_CURRENT: ContextVar[Purpose | None] = ContextVar("purpose", default=None)


def _purpose() -> Purpose:
    found = _CURRENT.get()
    if found is None:
        found = Purpose()
        _CURRENT.set(found)
    return found


@contextmanager
def differentiating_by(kind: Pass) -> Iterator[None]:
    """Declare which derivatives the backward pass inside the ``with`` block needs.

    It must be called in the thread in which what is differentiated was computed.
    """
    purpose = _purpose()
    before, purpose.kind = purpose.kind, kind
    try:
        yield
    finally:
        purpose.kind = before


def current_pass() -> Pass:
    """Return which derivatives the current backward pass was declared to need; see `heeding_purpose`."""
    return _purpose().kind


def keep_purpose(ctx: Any) -> None:
    """Remember, in the forward pass of a function, where its caller declares what backward passes are for."""
    ctx.purpose = _purpose()


def heeding_purpose(backward: Callable[..., _Found]) -> Callable[..., _Found]:
    """Let the backward pass of a function know what it is for in whatever thread it runs.

    This holds for all functions that it applies, too. The forward pass must have called `keep_purpose`.
    """

    @wraps(backward)
    def heeding(ctx: Any, *gradients: Any) -> _Found:
        token = _CURRENT.set(ctx.purpose)
        try:
            return backward(ctx, *gradients)
        finally:
            _CURRENT.reset(token)

    return heeding
