"""The errors that users are meant to see, and text as it may be shown to them."""

from __future__ import annotations


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


def plain(text: str) -> str:
    r"""Write what is not printable as its escape sequence; ends of lines and tabulators stay.

    Names in files can hold sequences that move the cursor, color, rename or fill the clipboard of a terminal, and marks
    that turn the direction of writing.

    >>> print(plain("bulk\x1b[2J \u202enat"))
    bulk\x1b[2J \u202enat
    >>> plain("Å\tβ\n") == "Å\tβ\n"
    True
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )
