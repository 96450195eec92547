"""Text from files as it may be shown: without characters that control a terminal or change the order of others."""

from __future__ import annotations


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
