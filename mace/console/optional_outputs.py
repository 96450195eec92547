"""Optional outputs: plots, pages, tables and trackers, whose failure must not end a training run."""

from __future__ import annotations

import logging
from types import TracebackType

from mace.errors import RunInterrupted

_LOGGER = logging.getLogger(__name__)


class OptionalOutput:
    """An optional output, made within a ``with`` block that may be entered repeatedly; errors become a single warning.

    A signal that asks the run to end still ends it.

    Args:
        name: The file, or another name for the output, for the message.

    Attributes:
        failed: Whether the last attempt failed.
    """

    def __init__(self, name: object) -> None:
        self._name = name
        self.failed = False

    def __enter__(self) -> OptionalOutput:
        """Begin an attempt."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Turn an error into a warning; there is no second one until an attempt has succeeded."""
        if error is not None and (not isinstance(error, Exception) or isinstance(error, RunInterrupted)):
            return False
        if error is not None and not self.failed:
            words = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
            kind_of = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            _LOGGER.warning("%s: left out, because it failed (%s%s); the run goes on", self._name, kind_of, words)
            _LOGGER.debug("where it failed", exc_info=error)
        self.failed = error is not None
        return error is not None
