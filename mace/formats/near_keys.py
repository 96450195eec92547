"""Keys of a file that are probably meant to be others."""

from __future__ import annotations

import re
from functools import lru_cache

_FEWEST_LETTERS = 5
"""Shorter words that differ by a letter are other words: ``pbe`` and ``pbc``."""


@lru_cache(maxsize=4096)
def is_near(key: str, words: tuple[str, ...]) -> bool:
    """Return whether a key is probably a misspelling of one of some words, and not one of the words itself.

    >>> [is_near(key, ("forces", "REF_forces")) for key in ("force", "Forces", "ref-forces", "forces", "sources")]
    [True, True, True, False, False]
    """
    if key in words:
        return False
    for word in words:
        one, other = (re.sub(r"[\W_]", "", text).lower() for text in (key, word))
        if one == other:
            return True
        shorter, longer = sorted((one, other), key=len)
        if longer in (f"{shorter}s", f"{shorter}es"):
            if len(shorter) > 2:
                return True
        elif len(shorter) >= _FEWEST_LETTERS and len(longer) - len(shorter) <= 1:
            # one letter is missing or wrong, or two neighboring letters are swapped
            pairs = enumerate(zip(shorter, longer, strict=False))
            start = next((i for i, (a, b) in pairs if a != b), len(shorter))
            rest, other_rest = shorter[start:], longer[start:]
            if len(shorter) < len(longer):
                slips = rest == other_rest[1:]
            else:
                slips = rest[1:] == other_rest[1:] or rest == other_rest[1::-1] + other_rest[2:]
            if slips:
                return True
    return False
