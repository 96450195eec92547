"""Are comment lines read as they are meant, and refused where they could be meant otherwise?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mace.errors import UserError
from mace.formats.frame import Frame
from mace.formats.near_keys import is_near
from mace.formats.reading import iterate_frames
from mace.structures.labels import LabelKeys
from mace.structures.reading import read_configurations

ROWS = "Properties=species:S:1:pos:R:3"
ATOMS = "O 0 0 0\nH 0 0 1\n"
NINE = "8 1 0 0 9 0 0 0 7"
CELL = [[8, 1, 0], [0, 9, 0], [0, 0, 7]]


def read(write_file: Callable[..., str], comment: str) -> Frame:
    (frame,) = iterate_frames(write_file(f"2\n{comment}\n{ATOMS}"))
    return frame


@pytest.mark.parametrize("extra", ["", "checked "], ids=["plain", "by ASE"])
@pytest.mark.parametrize(
    ("lattice", "pbc", "properties"),
    [
        ("lattice", "pbc", "properties"),
        ("LATTICE", "PBC", "PROPERTIES"),
        ("Lattice", "Pbc", "Properties"),
        ("lAttice", "pBC", "properTies"),
    ],
)
def test_reserved_words_in_any_case(
    write_file: Callable[..., str], lattice: str, pbc: str, properties: str, extra: str
) -> None:
    columns = f"{properties}=species:S:1:pos:R:3:force:R:3"
    text = f'2\n{extra}energy=-1 {lattice}="{NINE}" {pbc}="T T F" {columns}\nO 0 0 0 1 2 3\nH 0 0 1 4 5 6\n'
    (frame,) = iterate_frames(write_file(text))
    np.testing.assert_array_equal(frame.cell, CELL)
    assert frame.pbc == (True, True, False) and frame.results == {"energy": -1}
    np.testing.assert_array_equal(frame.arrays["force"], [[1, 2, 3], [4, 5, 6]])
    assert set(frame.info) <= {"checked"}


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        (f'cell="{NINE}"', "'cell' but no 'Lattice'.*write Lattice="),
        ('Cell="8 8 8"', "'Cell' but no 'Lattice'"),
        ('box="[[8, 0, 0], [0, 8, 0], [0, 0, 8]]"', "'box' but no 'Lattice'"),
        ('unit_cell="8 8 8 90 90 90"', "'unit_cell' but no 'Lattice'"),
        (f'Latice="{NINE}"', "'Latice' but no 'Lattice'"),
        (f"lattices={{{NINE}}}", "'lattices' but no 'Lattice'"),
        (f'lattice="{NINE}" Lattice="{NINE}"', "'Lattice' twice"),
        ('lattice="a b c"', "Lattice is not nine numbers"),
        ("lattice=8", "Lattice is not nine numbers"),
        ("periodic=T", "'periodic' but no 'pbc'"),
        (f'Lattice="{NINE}" pbcs="T T F"', "'pbcs' but no 'pbc'"),
        ('Periodicity="F F T"', "'Periodicity' but no 'pbc'"),
        ('PBC="F F F" pbc="F F F"', "'pbc' twice"),
        ("PBC=perhaps", "its pbc is 'perhaps'"),
        ("Property=species:S:1:pos:R:3", "'Property' but no 'Properties'"),
        ("columns=species:S:1:pos:R:3", "'columns' but no 'Properties'"),
    ],
)
def test_words_for_reserved_ones_are_refused(write_file: Callable[..., str], comment: str, words: str) -> None:
    with pytest.raises(UserError, match=f"train.xyz: structure 0 cannot be read: .*{words}"):
        read(write_file, comment)


@pytest.mark.parametrize(
    "comment",
    ["cell=fcc", "box=3", 'cell="1 2"', "periodic=F", "lattice_constant=3.6", "Property=2", "pbe=T", "latent='1 2 3'"],
)
def test_entries_that_mean_something_else(write_file: Callable[..., str], comment: str) -> None:
    frame = read(write_file, f"energy=-2 {comment}")
    assert frame.results == {"energy": -2} and not any(frame.pbc) and len(frame.info) == 1
    frame = read(write_file, f'Lattice="{NINE}" pbc="T T T" {ROWS} cell="1 2 3" periodic=F')
    np.testing.assert_array_equal(frame.cell, CELL)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("water box, water model, box,", {"water", "box,", "model,"}),
        ("it's O'Brien's and the others'", {"and", "the"}),
        ("'a first' \"and a second\"", set()),
        ("\"a = b\" 'c=d'", set()),
        ("Lattice constant, Properties of pbc", {"constant,", "of"}),
        ("Cu(111) [111] {1 1 1} 50% #5", {"Cu(111)"}),
        ("energy a b energy", {"a", "b"}),
        ("'tis 3 o'clock", {"3"}),
        ("the author's word: note", {"the", "word:", "note"}),
    ],
)
@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_free_words_are_no_keys(write_file: Callable[..., str], words: str, kept: set[str], place: str) -> None:
    entries = ["energy=-1.5", f'Lattice="{NINE}" dipole="1 2 3"', ROWS]
    entries.insert({"before": 0, "between": 1, "after": 3}[place], words)
    frame = read(write_file, " ".join(entries))
    assert frame.results["energy"] == -1.5 and frame.results["dipole"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(frame.cell, CELL)
    assert frame.info == dict.fromkeys(kept, True)


def test_free_words_alone(write_file: Callable[..., str]) -> None:
    assert read(write_file, "that's \"all\" that's").info == {}


@pytest.mark.parametrize("symbol", ["D", "T", "d"])
def test_isotopes_of_hydrogen_keep_their_mass(write_file: Callable[..., str], symbol: str) -> None:
    text = f"3\n{ROWS}:tags:I:1 energy=1\n{symbol} 0 0 0 5\nO 0 0 1 6\nH 0 1 0 7\n"
    (frame,) = iterate_frames(write_file(text))
    assert frame.numbers.tolist() == [1, 8, 1] and frame.arrays["tags"].tolist() == [5, 6, 7]
    mass = {"D": 2.0141, "T": 3.016}[symbol.upper()]
    np.testing.assert_allclose(frame.to_atoms().get_masses(), [mass, 15.999, 1.008], atol=1e-4)
    (frame,) = iterate_frames(write_file(f"1\nProperties=species:S:1:pos:R:3:masses:R:1\n{symbol} 0 0 0 2.5\n"))
    assert frame.arrays["masses"].tolist() == [2.5]
    (frame,) = iterate_frames(write_file(f"1\n\n{symbol} 0 0 0\n"))
    assert frame.numbers.tolist() == [1] and len(frame.arrays["masses"]) == 1


@pytest.mark.parametrize(
    ("symbol", "words"),
    [("8", "its atom 1 has the symbol '8', which is none; call a column of atomic numbers Z:I:1")]
    + [(word, f"its atom 1 has the symbol '{word}', which is no chemical element") for word in ("Ow", "H1", "Dt", "?")],
)
def test_what_is_no_symbol(write_file: Callable[..., str], symbol: str, words: str) -> None:
    for comment in (f"{ROWS} energy=1", "water", "Properties=pos:R:3:species:S:1"):
        rows = f"O 0 0 0\n{symbol} 0 0 1\n" if "pos:R:3:species" not in comment else f"0 0 0 O\n0 0 1 {symbol}\n"
        with pytest.raises(UserError) as caught:
            list(iterate_frames(write_file(f"2\n{comment}\n{rows}")))
        assert words in str(caught.value).replace("Dt", symbol)


@pytest.mark.parametrize(
    ("key", "name", "text"),
    [
        ("Energy", "energy", "Energy=-1"),
        ("ref_energy", "energy", "ref_energy=-1"),
        ("REF-energy", "energy", "REF-energy=-1"),
        ("REF_enrgy", "energy", "REF_enrgy=-1"),
        ("stresses", "stress", f'Lattice="{NINE}" stresses="1 1 1 0 0 0"'),
        ("Virial", "virials", f'Lattice="{NINE}" Virial="1 0 0 0 1 0 0 0 1"'),
        ("dipoles", "dipole", 'dipoles="1 2 3"'),
        ("force", "forces", "Properties=species:S:1:pos:R:3:force:R:3"),
        ("REF_Forces", "forces", "Properties=species:S:1:pos:R:3:REF_Forces:R:3"),
        ("E_DFT", "energy", "E_DFT=-1"),
    ],
)
def test_a_key_that_is_almost_a_label(write_file: Callable[..., str], key: str, name: str, text: str) -> None:
    rows = "O 0 0 0 1 2 3\nH 0 0 1 4 5 6\n" if "Properties" in text else ATOMS
    keys = LabelKeys(energy="E_dft") if key == "E_DFT" else LabelKeys()
    (file,) = read_configurations(write_file(f"2\n{text}\n{rows}"), keys).report.files
    assert [(fault.name, fault.key, fault.index) for fault in file.misspelled] == [(name, key, 0)]


@pytest.mark.parametrize(
    "text",
    ["energy=-1 Energy=-2", "force=0.05", "dipoles=yes", "stresses=0", "charge=0", "free_energy=-1", "E0_energy=3"],
)
def test_keys_that_are_no_misspelled_labels(write_file: Callable[..., str], text: str) -> None:
    (file,) = read_configurations(write_file(f"2\n{text}\n{ATOMS}")).report.files
    assert file.misspelled == ()


def test_near_keys() -> None:
    near = ["Forces", "FORCES", "force", "forcess", "ref_forces", "REF-FORCES", "REFforces", "focres", "forses"]
    far = ["forces", "REF_forces", "sources", "force_max", "dft_forces", "RPA_forces", "fors", ""]
    words = ("REF_forces", "forces")
    assert [key for key in (*near, *far) if is_near(key, words)] == near
    assert [key for key in ("PBC", "pbcs", "pbe", "pb", "pbcc") if is_near(key, ("pbc",))] == ["PBC", "pbcs"]
