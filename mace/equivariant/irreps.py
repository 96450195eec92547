"""The notation ``128x0e + 128x1o`` for how features turn under rotation and inversion."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TERM = re.compile(r"^\s*(?:(\d+)\s*x\s*)?(\d+)\s*([eo])\s*$")


@dataclass(frozen=True, order=True)
class Irrep:
    """An irreducible representation of O(3).

    Attributes:
        l: Angular momentum; the representation has ``2 l + 1`` components.
        parity: +1 (even, ``e``) or -1 (odd, ``o``) under inversion.
    """

    l: int
    parity: int

    @property
    def dimension(self) -> int:
        """Number of components, ``2 l + 1``."""
        return 2 * self.l + 1

    @property
    def is_natural(self) -> bool:
        """Whether it transforms like a spherical harmonic, with parity ``(-1)^l``."""
        return self.parity == (-1) ** self.l

    def products(self, other: Irrep) -> list[Irrep]:
        """List what the product with another irrep contains, by increasing ``l``."""
        parity = self.parity * other.parity
        return [Irrep(l, parity) for l in range(abs(self.l - other.l), self.l + other.l + 1)]

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.parity == 1 else 'o'}"


def natural(l: int) -> Irrep:
    """Return the irrep of the spherical harmonics of degree ``l``."""
    return Irrep(l, (-1) ** l)


def parse_irreps(text: str) -> list[tuple[int, Irrep]]:
    """Read irreps written as ``128x0e + 128x1o``; a missing multiplicity means one.

    Args:
        text: Terms joined by ``+``.

    Returns:
        Pairs of multiplicity and irrep, in the order written.

    Raises:
        ValueError: If a term is not of the form ``<multiplicity>x<l><e or o>``.

    >>> [(n, str(ir)) for n, ir in parse_irreps("128x0e + 128x1o")]
    [(128, '0e'), (128, '1o')]
    """
    terms = []
    for term in text.split("+"):
        match = _TERM.match(term)
        if match is None:
            raise ValueError(
                f"cannot read the term '{term.strip()}' of the irreps '{text}': write them as '128x0e + 128x1o'"
            )
        multiplicity, l, letter = match.groups()
        terms.append((int(multiplicity or 1), Irrep(int(l), 1 if letter == "e" else -1)))
    return terms
