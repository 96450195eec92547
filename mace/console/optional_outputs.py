"""What a run can go without: plots, pages, tables and trackers, none of which is worth a training."""

from __future__ import annotations

import logging
from types import TracebackType

from mace.errors import RunInterrupted

_LOGGER = logging.getLogger(__name__)


class OptionalOutput:
    """Something to be made within a ``with`` block, as often as one likes; what fails in it is a single warning.

    A signal that asks for the end still ends the run.

    Args:
        name: The file, or what else it is, for the message.

    Attributes:
        failed: Whether the last attempt did.
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
        """Take an error as a warning, once until an attempt succeeds."""
        if error is not None and (not isinstance(error, Exception) or isinstance(error, RunInterrupted)):
            return False
        if error is not None and not self.failed:
            words = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
            kind_of = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            _LOGGER.warning("%s: left out, because it failed (%s%s); the run goes on", self._name, kind_of, words)
            _LOGGER.debug("where it failed", exc_info=error)
        self.failed = error is not None
        return error is not None
