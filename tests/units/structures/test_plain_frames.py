"""Are plain frames read to what ASE reads, to the last bit and type?"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io.extxyz
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace.errors import UserError
from mace.formats import extended_xyz
from mace.formats.frame import Frame
from mace.formats.plain_extended_xyz import read_plain_frames
from mace.formats.reading import iterate_frames

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*/*.xyz"))
SHARED = sorted(p for end in ("xyz", "extxyz") for p in (ROOT.parent / "shared" / "data").rglob(f"*.{end}"))

NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e3, 1e3).map("{:.8f}".format),
    st.sampled_from(
        ["0", "-0", "+5", "007", "1.", ".5", "-.5e3", "1E5", "1e400", "1_000", "0x10", "nan", "-inf", "1d5"]
    ),
)
WORDS = st.sampled_from(
    ["T", "F", "true", "False", "FALSE", "t", "bulk", "a-1", "_x", "Infra", "NaN2", "x=y", "_JSON", "é"]
)
VALUES = st.one_of(
    NUMBERS,
    WORDS,
    st.lists(st.one_of(NUMBERS, WORDS), min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from([" ", "  ", ",", ", "]).map(lambda glue: f'"{glue.join(parts)}"')
    ),
    st.lists(NUMBERS, min_size=6, max_size=9).map(lambda parts: f'"{" ".join(parts)}"'),
    st.sampled_from(
        ['"T T F"', '"T F"', '" 1 "', '"a b  c"', "'1 2'", "{3 4}", '""', "1,2,3", '"_JSON [1, 2]"', "a\\b"]
    ),
)
KEYS = st.sampled_from(
    ["energy", "free_energy", "stress", "virial", "dipole", "Lattice", "pbc", "config_type", "REF_energy", "uid", "UID"]
    + ["magmom", "my-key", "_k", "1k", "comment"]
)
COLUMNS = st.sampled_from(
    ["forces:R:3", "tags:I:1", "Z:I:1", "charges:R:1", "charge:R:1", "on:L:1", "axes:L:3", "names:S:1", "pair:S:2"]
    + ["q:R:2", "move_mask:L:1", "energies:R:1", "one:R:01", "bad:X:1", "forces:R:3"]
)
CELLS = {
    "R": NUMBERS,
    "I": st.one_of(st.integers(-9, 10**10).map(str), NUMBERS),
    "L": st.sampled_from(["T", "F", "True", "False", "true", "1"]),
    "S": st.sampled_from(["a", "H", "1", "é", "T"]),
    "X": NUMBERS,
}
SYMBOLS = st.sampled_from(["H", "O", "C", "Na", "na", "X", "CL", "Qq", "1"])


USUAL_NUMBERS = st.one_of(
    st.integers(-(10**17), 10**17).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "+5", "007", "1.", ".5", "-.5e3", "1E5", "1e400"]),
)
USUAL_VALUES = st.one_of(
    st.one_of(USUAL_NUMBERS, st.sampled_from(["T", "true", "False", "bulk", "a-1", "a:1"])),
    st.lists(USUAL_NUMBERS, min_size=1, max_size=4).flatmap(
        lambda parts: st.sampled_from([" ", "  ", ",", ", "]).map(lambda glue: f'"{glue.join(parts)}"')
    ),
    st.sampled_from(['"T F"', '" 1 "', '"a b  c"', '"1 b"', "1,2,3", '"T x"', '"a, b"']),
)
STRANGE_KEYS = ("dipole", "Lattice", "stress", "virial", "pbc", "uid", "UID", "1k")
USUAL_ENTRIES = st.one_of(
    st.tuples(KEYS.filter(lambda key: key not in STRANGE_KEYS), USUAL_VALUES),
    st.tuples(
        st.sampled_from(["Lattice", "stress", "virial"]),
        st.lists(USUAL_NUMBERS, min_size=9, max_size=9).map(lambda parts: f'"{" ".join(parts)}"'),
    ),
    st.tuples(st.just("stress"), st.lists(USUAL_NUMBERS, min_size=6, max_size=6).map(lambda p: f'"{" ".join(p)}"')),
    st.tuples(st.just("dipole"), st.lists(USUAL_NUMBERS, min_size=1, max_size=3).map(lambda p: f'"{" ".join(p)}"')),
    st.tuples(st.just("pbc"), st.sampled_from(['"T T F"', '"F F F"', '"True,False,T"'])),
)
USUAL_COLUMNS = ["forces:R:3", "tags:I:1", "charges:R:1", "on:L:1", "axes:L:3", "names:S:1", "q:R:2", "energies:R:1"]
USUAL_CELLS = {**CELLS, "R": USUAL_NUMBERS, "I": st.integers(-9, 9).map(str), "L": st.sampled_from(["T", "False"])}


@st.composite
def frame_texts(draw: st.DrawFn, usual: bool) -> str:
    """Frames as files have them; or strange and often wrong ones."""
    more = st.lists(st.sampled_from(USUAL_COLUMNS), max_size=2, unique=True) if usual else st.lists(COLUMNS, max_size=2)
    columns = ["species:S:1", "pos:R:3", *draw(more)]
    pairs = USUAL_ENTRIES if usual else st.tuples(KEYS, VALUES)
    entries = ["=".join(pair) for pair in draw(st.lists(pairs, max_size=4, unique_by=lambda p: p[0] if usual else p))]
    if draw(st.booleans()) or len(columns) > 2:
        entries.insert(draw(st.integers(0, len(entries))), f"Properties={':'.join(columns)}")
    if not usual:
        entries += draw(
            st.lists(st.sampled_from(["alone", "=", "a=", 'x="1', 'Lattice="4 0 0 0 5 0 0 0 6"']), max_size=1)
        )
    rows = []
    n_atoms = draw(st.integers(1 if usual else 0, 3))
    for _ in range(n_atoms):
        symbol = draw(st.sampled_from(["H", "O", "Na", "na", "CL", "X"]) if usual else SYMBOLS)
        words = [symbol, *(draw(st.floats(-9, 9).map("{:.5f}".format)) for _ in range(3))]
        for column in columns[2:]:
            _, kind, count = column.split(":")
            words += [draw((USUAL_CELLS if usual else CELLS)[kind]) for _ in range(int(count))]
        if not usual and draw(st.integers(0, 9)) == 0:
            words = words[:-1] if draw(st.booleans()) else [*words, "1.0"]
        rows.append(draw(st.sampled_from([" ", "   ", "\t"])).join(words))
    return "\n".join([str(n_atoms), draw(st.sampled_from([" ", "  ", " "])).join(entries), *rows]) + "\n"


def _told(value: Any) -> Any:
    """Describe a value with its type, so that equal descriptions mean equal in every respect."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tolist() if value.dtype == object else value.tobytes()
    if isinstance(value, dict):
        return [(key, _told(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_told(item) for item in value]
    return type(value), repr(value)


def _described(frame: Frame) -> Any:
    return [_told(getattr(frame, name)) for name in Frame.__dataclass_fields__ if name != "constraints"]


def _of_ase(text: str) -> Frame:
    return extended_xyz._ask_ase(text, "some.xyz", 0)


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text))


@settings(max_examples=200, deadline=None)
@given(st.lists(frame_texts(usual=False), min_size=1, max_size=3))
def test_what_is_read_is_what_ase_reads(texts: list[str]) -> None:
    for text, found in zip(texts, read_plain_frames([_lines(text) for text in texts]), strict=True):
        if found is not None:
            assert _described(found) == _described(_of_ase(text)), text


@settings(max_examples=200, deadline=None)
@given(frame_texts(usual=True))
def test_what_is_usual_is_read_and_as_ase_does(text: str) -> None:
    (found,) = read_plain_frames([_lines(text)])
    assert found is not None, text
    assert _described(found) == _described(_of_ase(text)), text


@pytest.mark.parametrize(
    "value",
    [
        *(
            "9" * 17,
            "9" * 18,
            "9" * 19,
            "9" * 30,
            f"-{'9' * 19}",
            f'"1 {"9" * 25}"',
            f'"1.5 {"9" * 25}"',
            "1e5",
            "1.",
            "-0",
        ),
        *("+5", "007", '"1, 2.5"', '"1 2"', '" 3 "', "T", '"T F"', '"T 1"', "1e400", '"nan 1"', '"1 b"', "a,b"),
    ],
)
def test_a_value_is_what_ase_makes_of_it_or_left_to_ase(value: str) -> None:
    text = f"1\nn={value} Properties=species:S:1:pos:R:3\nH 0.0 0.0 0.0\n"
    (found,) = read_plain_frames([_lines(text)])
    assert found is None or _described(found) == _described(_of_ase(text))


@pytest.mark.parametrize("file", [*EXAMPLES, *SHARED], ids=lambda file: file.name)
def test_real_files_are_read_as_by_ase(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO("".join(extended_xyz._lines(str(file))))
    found = list(iterate_frames(str(file)))[:300]
    monkeypatch.setattr(extended_xyz, "read_plain_frames", lambda portion: [None] * len(portion))
    stream.seek(0)
    for ours, theirs in zip(found, iterate_frames(str(file)), strict=False):
        assert _described(ours) == _described(theirs)


PLAIN = """2
Lattice="4 0 0 0 5 0 0 0 6.5" Properties=species:S:1:pos:R:3:forces:R:3:tags:I:1 energy=-1.5 stress="1 2 3 4 5 6" n=3 \
dipole="0.1 0.2 0.3" config_type=bulk_1 note="two words" pbc="T T F" on=T
O 0 0 0 0.1 0.2 0.3 1
h 0 0 1 -0.1 -0.2 1e-3 2
"""


def test_plain_frames_are_read_without_ase(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _described(_of_ase(PLAIN))
    monkeypatch.delattr(ase.io.extxyz, "read_xyz")
    (found,) = read_plain_frames([_lines(PLAIN)])
    assert found is not None and _described(found) == expected


@pytest.mark.parametrize(
    "change",
    [
        ("energy=-1.5", "energy=-1.5 energy=2"),
        ("n=3", "n=3 uid=7"),
        ("n=3", "n=1_000"),
        ("n=3", "n=nan"),
        ("n=3", "n='3'"),
        ("n=3", "alone"),
        ('pbc="T T F"', "pbc=T"),
        ("note", "nöte"),
        ("tags:I:1", "Z:I:1"),
        ("0.3 1\n", "0.3\n"),
        ("0.3 1\n", "0.3 1.5\n"),
        ("O 0", "Qq 0"),
        ("1e-3 2\n", "1e-3 2\nVEC1 1 0 0\n"),
    ],
)
def test_what_is_unusual_is_left_to_ase(change: tuple[str, str]) -> None:
    assert read_plain_frames([_lines(PLAIN.replace(*change))]) == [None]


def test_one_unusual_frame_does_not_spoil_its_neighbors() -> None:
    wrong = PLAIN.replace("0.2 0.3 1", "0.2 0.3 one")
    found = read_plain_frames([_lines(PLAIN), _lines(PLAIN.replace("n=3", "n='3'")), _lines(PLAIN)])
    assert [frame is None for frame in found] == [False, True, False]
    assert read_plain_frames([_lines(wrong)]) == [None]


def test_frames_before_a_wrong_one_come_first(write_file: Callable[..., str]) -> None:
    frames = iterate_frames(write_file(PLAIN * 3 + PLAIN.replace("0.2 0.3 1", "0.2 0.3 one") + PLAIN))
    assert len([next(frames) for _ in range(3)]) == 3
    with pytest.raises(UserError, match="structure 3 cannot be read: .*one"):
        next(frames)


def test_to_atoms_is_what_ase_reads() -> None:
    (expected,) = ase.io.extxyz.read_xyz(io.StringIO(PLAIN.replace("1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3")), slice(None))
    atoms = _of_ase(PLAIN).to_atoms()
    assert atoms == expected and atoms.info == expected.info and atoms.arrays.keys() == expected.arrays.keys()
    assert atoms.calc.results.keys() == expected.calc.results.keys()
    for name, value in expected.calc.results.items():
        np.testing.assert_array_equal(atoms.calc.results[name], value)
