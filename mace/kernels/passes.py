"""Which derivatives a backward pass is for, so that kernels leave out those that nobody will read.

Training differentiates twice: the energy by the geometry, which gives forces, and the loss by the parameters. Autograd
cannot tell a custom function that, in the first pass, nobody asks for gradients of weights, nor that in the second
nobody asks for gradients of the harmonics; the caller says so here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum


class Pass(Enum):
    """What is differentiated by."""

    EVERYTHING = "everything"
    GEOMETRY = "geometry"
    PARAMETERS = "parameters"


_CURRENT: ContextVar[Pass] = ContextVar("pass", default=Pass.EVERYTHING)


@contextmanager
def differentiating_by(kind: Pass) -> Iterator[None]:
    """Announce what the backward pass inside the ``with`` block is for."""
    token = _CURRENT.set(kind)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_pass() -> Pass:
    """Return what the running backward pass was announced to be for."""
    return _CURRENT.get()
