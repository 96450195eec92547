"""Keys that are almost others: in another case, plural, with other separators, or with one letter wrong."""

from __future__ import annotations

import re
from functools import lru_cache

_FEWEST_LETTERS = 5
"""Shorter words that differ by a letter are other words: ``pbe`` and ``pbc``."""


@lru_cache(maxsize=4096)
def is_near(key: str, words: tuple[str, ...]) -> bool:
    """Tell whether a key is probably meant to be one of some words, and is none of them.

    >>> [is_near(key, ("forces", "REF_forces")) for key in ("force", "Forces", "ref-forces", "forces", "sources")]
    [True, True, True, False, False]
    """
    return key not in words and any(_are_near(key, word) for word in words)


def _are_near(one: str, other: str) -> bool:
    one, other = (re.sub(r"[\W_]", "", word).lower() for word in (one, other))
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    if longer in (f"{shorter}s", f"{shorter}es"):
        return len(shorter) > 2
    return len(shorter) >= _FEWEST_LETTERS and _is_one_slip(shorter, longer)


def _is_one_slip(shorter: str, longer: str) -> bool:
    """Whether one letter is missing or wrong, or two neighbors are exchanged."""
    if len(longer) - len(shorter) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    rest, rest_of_longer = shorter[start:], longer[start:]
    if len(shorter) < len(longer):
        return rest == rest_of_longer[1:]
    return rest[1:] == rest_of_longer[1:] or rest == rest_of_longer[1::-1] + rest_of_longer[2:]
