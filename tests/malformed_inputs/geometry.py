"""Cells and positions that cannot be meant."""

from __future__ import annotations

import numpy as np

from mace.structures.reading import ReadResult
from malformed_inputs.cases import CUBE, add, frame, has_waters, sound, spoilt, text_case, waters


def refuse(name: str, text: str, *words: str) -> None:
    """Add a text that is refused because of structure 2."""
    add("refused", name, text_case(text), "train.xyz: structure 2", *words)


def cell(numbers: str, pbc: str = "T T T") -> str:
    """Six molecules, one of them with a cell."""
    return spoilt(info=f'Lattice="{numbers}" pbc="{pbc}"')


for _word in ("nan", "inf", "-inf"):
    refuse(
        f"a position that is {_word}",
        spoilt(row=lambda s, p, f, w=_word: f"{s} {p[0]} {p[1]} {w} 0 0 0"),
        "position that is NaN",
    )  # type: ignore[misc]
    refuse(f"a cell that is {_word}", cell(f"8 0 0 0 {_word} 0 0 0 8"), "cell that is NaN")
refuse("all atoms at the origin", spoilt(row=lambda s, p, f: f"{s} 0 0 0 0 0 0"), "all its atoms at the origin")
refuse("repetition without a cell", spoilt(info='pbc="T T T"'), "zero or linearly dependent")
refuse("a cell of zeros", cell("0 0 0 0 0 0 0 0 0"), "zero or linearly dependent")
refuse("a vector of zeros", cell("8 0 0 0 8 0 0 0 0"), "zero or linearly dependent")
refuse("a vector of zeros where a slab repeats", cell("8 0 0 0 0 0 0 0 8", "T T F"), "zero or linearly dependent")
refuse("parallel vectors", cell("8 0 0 16 0 0 0 0 8"), "zero or linearly dependent")
refuse("vectors in a plane", cell("8 0 0 0 8 0 8 8 0"), "zero or linearly dependent")
refuse("a cell smaller than an atom", cell("0.08 0 0 0 8 0 0 0 8"), "lattice vector of 0.08 Angstrom")
refuse("a cell in nanometers of a picometer", cell("0.3 0 0 0 0.3 0 0 0 0.3"), "lattice vector of 0.3 Angstrom")

for _number, _words in (("0", ("'X'",)), ("150", ("atomic number 150",)), ("-1", ()), ("119", ("atomic number 119",))):
    refuse(
        f"atomic number {_number}",
        spoilt(
            properties="Z:I:1:pos:R:3:REF_forces:R:3",
            row=lambda s, p, f, n=_number: f"{n if s == 'O' else 1} {p[0]} {p[1]} {p[2]} 0 0 0",
        ),  # type: ignore[misc]
        *_words,
    )


def _left_handed(result: ReadResult) -> None:
    for configuration in result.configurations:
        assert configuration.stress is not None and configuration.virials is not None
        np.testing.assert_allclose(configuration.virials, -512.0 * configuration.stress)
        assert configuration.virials[0, 0] < 0.0 < configuration.stress[0, 0]


LEFT = 'Lattice="0 8 0 8 0 0 0 0 8" pbc="T T T" REF_stress="0.001 0 0 0 0.001 0 0 0 0.001" '
add("read", "a left-handed cell", text_case(sound(info=LEFT), "--loss=stress"), check=_left_handed)
add("read", "a huge cell", text_case(sound(info=CUBE.replace("8", "1000000"))), check=has_waters())
add("read", "a cell without repetition", text_case(sound(info=CUBE + 'pbc="F F F"')), check=has_waters())
add(
    "read",
    "a slab without a third vector that repeats",
    text_case(sound(info='Lattice="8 0 0 0 8 0 0 0 0" pbc="T T F"')),
    check=has_waters(),
)


def _far_outside(result: ReadResult) -> None:
    assert result.configurations[0].positions.max() > 700.0


add(
    "read",
    "positions far outside the cell",
    text_case("".join(frame((e, p + 720.0, f), info=CUBE) for e, p, f in waters())),
    check=_far_outside,
)
