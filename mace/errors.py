"""The one error that users are meant to see."""

from __future__ import annotations

from mace.plain_text import plain


class UserError(ValueError):
    """A problem the user can solve: one sentence naming the file, the structure and the way out.

    It is a ``ValueError`` because programs written for mace-torch expect one for arguments that cannot be used.

    Command lines print the message without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        """Return the sentence; what files put into it cannot control a terminal."""
        return plain(super().__str__())


class RunInterrupted(Exception):
    """A signal asked the program to end, and it did so in order; the text says how to go on.

    Args:
        text: One sentence.
        status: Exit status, 128 plus the number of the signal as shells have it.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
