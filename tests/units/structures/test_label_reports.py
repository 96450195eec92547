"""Do reports of labels count right, and say in words what was and was not there?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mace.errors import UserError
from mace.structures.labels import LabelCoverage, LabelKeys, require_labels
from mace.structures.reading import read_configurations

CELL = 'Lattice="2 0 0 0 2 0 0 0 2"'


def coverage(**changes: object) -> LabelCoverage:
    facts = {"key": "REF_stress", "places": {}, "labeled": 0, "converted": 0, "isolated": 0} | changes
    return LabelCoverage(name="stress", candidates=("REF_stress", "stress"), frames=9, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labeled": 4, "places": {"info": 3, "calculator": 1}}, "stress 4 of 9 (info and calculator 'REF_stress')"),
        ({"labeled": 4, "places": {"info": 4}, "converted": 2}, "stress 6 of 9 (info 'REF_stress', 2 from virials)"),
        ({"converted": 2, "key": None}, "stress 2 of 9 (2 from virials)"),
        ({"key": None}, "stress 0 of 9 (no 'REF_stress' or 'stress')"),
        ({}, "stress 0 of 9 (no 'REF_stress')"),
        ({"isolated": 1}, "stress 0 of 9"),
    ],
)
def test_coverage_in_words(changes: dict[str, object], words: str) -> None:
    assert coverage(**changes).text == words


def frame(info: str = "", atoms: str = "H 0 0 0\nO 0 0 1\n") -> str:
    return f"{len(atoms.splitlines())}\n{info} Properties=species:S:1:pos:R:3\n{atoms}"


@pytest.mark.parametrize(
    ("count", "named"), [(1, "0.xyz"), (3, "0.xyz, 1.xyz, 2.xyz"), (5, "0.xyz, 1.xyz, 2.xyz and 2 more files")]
)
def test_files_without_a_label_are_named(write_file: Callable[..., str], count: int, named: str) -> None:
    report = read_configurations([write_file(frame("note=3"), f"{k}.xyz") for k in range(count)]).report
    with pytest.raises(UserError) as caught:
        require_labels(report, ["energy"])
    text = f"{named}: no structure has a label 'energy' under the key 'REF_energy' or 'energy'; the keys there "
    assert str(caught.value).startswith(f"{text}(where, in how many structures): note (info, {count}). Name the right")


def test_only_the_first_keys_are_listed(write_file: Callable[..., str]) -> None:
    many = " ".join(f"key{k:02d}={k}" for k in range(23))
    for info, words in ((many, "key19 (info, 1) and 3 more."), ("", "the structures carry no keys at all.")):
        report = read_configurations(write_file(frame(info))).report
        with pytest.raises(UserError) as caught:
            require_labels(report, ["energy"])
        assert words in str(caught.value)
    twenty = read_configurations(write_file(frame(" ".join(f"key{k:02d}={k}" for k in range(20))))).report
    with pytest.raises(UserError, match=r"key19 \(info, 1\)\. Name"):
        require_labels(twenty, ["energy"])


def test_converted_labels_count_where_there_is_a_volume(write_file: Callable[..., str]) -> None:
    virials = 'REF_virials="1 0 0 0 1 0 0 0 1"'
    report = read_configurations(write_file(frame(f"{CELL} {virials}") + frame(CELL))).report
    assert report.total("stress") == report.total("virials") == 1 and report.frames == 2
    require_labels(report, ["stress", "virials"])
    apart = read_configurations(write_file(frame(f'{CELL} {virials} pbc="T T F"'))).report
    with pytest.raises(UserError, match="the labels there cannot become stress, because no structure repeats in all"):
        require_labels(apart, ["stress"])


def test_isolated_atoms_alone_are_nothing_to_learn_from(write_file: Callable[..., str]) -> None:
    file = write_file(frame("config_type=IsolatedAtom REF_energy=-1", "H 0 0 0\n"))
    report = read_configurations(file).report
    assert report.lines() == ["train.xyz: 1 isolated atom, 1 with an energy"]
    with pytest.raises(UserError, match="train.xyz: there is no structure to learn from, isolated atoms only"):
        require_labels(report)


def test_keys_that_come_into_question() -> None:
    keys = LabelKeys(energy="E", virials=None)
    assert keys.candidates("energy") == ("E",) and keys.given("forces") is None
    assert keys.candidates("virials") == ("REF_virials", "virials", "virial")
    assert keys.candidates("charges") == ("REF_charges", "charges")


def test_rows_of_the_table(write_file: Callable[..., str]) -> None:
    virials = 'REF_virials="1 0 0 0 1 0 0 0 1"'
    report = read_configurations(write_file(frame(f"{CELL} {virials} REF_energy=-3") + frame(CELL))).report
    rows = {row[1]: row for row in report.rows()}
    assert rows["energy"] == ("train.xyz", "energy", "REF_energy", "info", 1, 0, 2)
    assert rows["stress"] == ("train.xyz", "stress", "-", "-", 0, 1, 2)
    assert rows["charges"] == ("train.xyz", "charges", "-", "-", 0, 0, 2)
