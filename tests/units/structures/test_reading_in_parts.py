"""Do parts of a file, read one by one, give the structures and the report of the whole file?"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from mace.conditions import Condition
from mace.errors import UserError
from mace.structures.configuration import Configuration
from mace.structures.labels import FileLabels, LabelKeys, merge_labels
from mace.structures.reading import PartResult, UncertainKeyError, choose_keys, read_part, read_sources
from mace.structures.sources import FilePart, FileUnits, HeadNaming, Source

CUBE = 'Lattice="4 0 0 0 4 0 0 0 4"'
SYMMETRIC = 'REF_stress="1 2 3 2 5 6 3 6 9"'
ASYMMETRIC = 'virials="1 2 3 4 5 6 7 8 9"'
FRAMES = [
    "energy=-1 config_type=early total_charge=1",
    "energy=-2 Energy=-3",
    f"{CUBE} {SYMMETRIC}",
    "energy=nan config_weight=2",
    f'{CUBE} pbc="T T F" {ASYMMETRIC}',
    "REF_energy=-4 config_type=late head=other charge=2",
    f"{CUBE} {ASYMMETRIC} enrgy=-5",
    "REF_energy=inf energy=-6 config_type=IsolatedAtom",
    "forces_in_words=no REF_energy=-7 REF_charges_of=1",
]
COLUMNS = "species:S:1:pos:R:3:forces:R:3"


def text_of(frames: list[str], with_atom: bool = True) -> str:
    """Two atoms in each structure, of which one is fixed in every third; isolated atoms stand between them."""
    text = ""
    for place, info in enumerate(frames):
        fixed, free, column = ("", "", "") if place % 3 else ("F", "T", ":move_mask:L:1")
        text += f"2\n{info} Properties={COLUMNS}{column}\nO 0 0 0 1 2 {place} {fixed}\nH 0 0 1 3 4 5 {free}\n"
        if with_atom and place % 4 == 1:
            text += "1\nconfig_type=IsolatedAtom REF_energy=-0.5\nH 0 0 0\n"
    return text


def read_in_parts(part: FilePart, bounds: list[int]) -> tuple[PartResult, int]:
    """Read a file as processes do that know nothing of each other; return also how many parts were read again."""
    parts = [
        FilePart(part.file, part.source, part.naming, start, stop)
        for start, stop in zip([0, *bounds], [*bounds, None], strict=True)
    ]
    results = [read_part(each, skip_non_finite=True) for each in parts]
    keys = choose_keys([result.labels for result in results])
    again = [place for place, result in enumerate(results) if not result.labels.agrees_with(keys)]
    for place in again:
        results[place] = read_part(parts[place], keys, skip_non_finite=True)
    documents = [json.loads(json.dumps(result.labels.document())) for result in results]
    merged = PartResult(
        [c for result in results for c in result.configurations],
        [c for result in results for c in result.isolated_atoms],
        merge_labels([FileLabels.of_document(document) for document in documents]),
    )
    return merged, len(again)


def plain(configuration: Configuration) -> dict[str, object]:
    """A structure as what can be compared."""
    return {
        name: value.tolist()
        if isinstance(value, np.ndarray)
        else {key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in vars(configuration).items()
    }


def assert_same(found: PartResult, expected: PartResult) -> None:
    assert list(map(plain, found.configurations)) == list(map(plain, expected.configurations))
    assert list(map(plain, found.isolated_atoms)) == list(map(plain, expected.isolated_atoms))
    assert found.labels == expected.labels
    assert found.labels.text == expected.labels.text and found.labels.notes == expected.labels.notes
    assert found.labels.faults == expected.labels.faults and found.labels.misspelled == expected.labels.misspelled


SOURCES = [
    Source("train.xyz"),
    Source("train.xyz", keys=LabelKeys(energy="energy", stress="")),
    Source("train.xyz", units=FileUnits("meV", "bohr"), config_type_weights={"late": 3.0}),
    Source(
        "train.xyz",
        conditions=(Condition(name="total_charge", kind="continuous", per="structure", width=2),),
    ),
]


@pytest.mark.parametrize("source", SOURCES, ids=["plain", "keys", "units", "conditions"])
def test_a_file_cut_anywhere_is_read_as_at_once(write_file: Callable[..., str], source: Source) -> None:
    part = FilePart(write_file(text_of(FRAMES)), source)
    whole = read_part(part, skip_non_finite=True)
    assert whole.labels.notes and whole.labels.constrained and whole.isolated_atoms
    n_read_again = 0
    count = len(whole.configurations) + len(whole.isolated_atoms)
    for cut in range(1, count):
        found, again = read_in_parts(part, [cut])
        assert_same(found, whole)
        n_read_again += again
    assert_same(read_in_parts(part, list(range(1, count)))[0], whole)
    assert (n_read_again > 0) == (source.keys.energy is None)


def test_what_is_said_of_the_whole_is_said_of_its_parts(write_file: Callable[..., str]) -> None:
    """In the words, the order and the numbers that one reading gives."""
    part = FilePart(write_file(text_of(FRAMES)), SOURCES[0])
    labels = read_in_parts(part, [1, 2, 5, 6, 8])[0].labels
    assert [note.partition(": ")[2][:40] for note in labels.notes] == [
        "4 structures have 'energy' but no 'REF_e",
        "the virials of 2 structures is not symme",
        "1 structures do not repeat in all three ",
        "1 structures are of the type IsolatedAto",
    ]
    assert labels.other_heads == ("other",)
    assert [(fault.name, fault.key, fault.index) for fault in labels.faults] == [("energy", "REF_energy", 9)]
    assert [(fault.name, fault.key, fault.index) for fault in labels.misspelled] == [("energy", "enrgy", 8)]
    assert list(labels.constrained) == [0, 4, 8]


def test_heads_of_a_part_are_judged_by_the_first_structure_of_the_file(write_file: Callable[..., str]) -> None:
    file = write_file(text_of(["energy=-1 head=a", "energy=-2 head=b", "energy=-3 head=a", "energy=-4"], False))
    naming = HeadNaming("a", "head", ("a", "b"), names_heads=True)
    assert [c.index for c in read_part(FilePart(file, Source(file), naming, 1, 3)).configurations] == [2]
    with pytest.raises(UserError, match=r"train.xyz: structure 3 has no head="):
        read_part(FilePart(file, Source(file), naming, 3))
    with pytest.raises(UserError, match=r"structure 1 names its head in head=, but structure 0 does not"):
        read_part(FilePart(file, Source(file), HeadNaming("a", "head", ("a", "b"), names_heads=False), 1))


def test_a_wrong_label_under_a_key_that_the_file_may_not_use(write_file: Callable[..., str]) -> None:
    """Read at once, the file uses another key and never looks at it."""
    file = write_file(text_of(["energy=no", "REF_energy=-1"], False))
    part = FilePart(file, Source(file), stop=1)
    with pytest.raises(UncertainKeyError, match="structure 0"):
        read_part(part)
    assert read_part(part, {"energy": "REF_energy", "forces": "forces"}).configurations[0].energy is None
    with pytest.raises(UserError) as caught:
        read_part(part, {"energy": "energy"})
    assert not isinstance(caught.value, UncertainKeyError)
    assert [c.energy for c in read_sources([Source(file)]).configurations] == [None, -1.0]


def test_parts_read_with_different_keys_are_not_put_together(write_file: Callable[..., str]) -> None:
    file = write_file(text_of(["energy=-1", "REF_energy=-1"], False))
    parts = [read_part(FilePart(file, Source(file), start=k, stop=k + 1)).labels for k in range(2)]
    with pytest.raises(ValueError, match="different keys"):
        merge_labels(parts)


def test_only_chosen_structures_of_a_part(write_file: Callable[..., str]) -> None:
    file = write_file(text_of([f"energy=-{k}" for k in range(9)], False))
    source = Source(file, only=frozenset({1, 4, 5}))
    assert [c.index for c in read_part(FilePart(file, source, start=2, stop=5)).configurations] == [4]
    assert read_part(FilePart(file, source, start=6)).configurations == []


def test_many_indices_take_little_room(write_file: Callable[..., str]) -> None:
    """A file of slabs with fixed atoms has as many of them as structures."""
    file = write_file(text_of(["energy=nan"] * 3, False))
    labels = read_part(FilePart(file, Source(file)), skip_non_finite=True).labels
    labels.constrained.extend(range(10, 1_000_000))
    assert labels.constrained.itemsize == 4
    assert len(json.dumps(labels.document())) < 3000
    assert FileLabels.of_document(json.loads(json.dumps(labels.document()))) == labels
