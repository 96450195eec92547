"""Declaring which derivatives a backward pass needs, so that kernels can leave out all others.

Training differentiates twice: the energy by the geometry, which gives forces, and the loss by the parameters. Autograd
cannot tell a custom function that gradients of weights are not needed in the first pass, nor gradients of harmonics in
the second, so the caller declares it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum


class Pass(Enum):
    """The variables of the derivatives that a backward pass needs."""

    EVERYTHING = "everything"
    GEOMETRY = "geometry"
    PARAMETERS = "parameters"


_CURRENT: ContextVar[Pass] = ContextVar("pass", default=Pass.EVERYTHING)


@contextmanager
def differentiating_by(kind: Pass) -> Iterator[None]:
    """Declare which derivatives the backward pass inside the ``with`` block needs."""
    token = _CURRENT.set(kind)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_pass() -> Pass:
    """Return which derivatives the current backward pass was declared to need."""
    return _CURRENT.get()
