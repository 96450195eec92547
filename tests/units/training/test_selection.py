"""Are structures filtered, counted, drawn and filled up as the rule says, and is everything that was done said?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from mace.errors import UserError
from mace.finetuning.descriptor_files import StoredDescriptors, write_descriptors
from mace.finetuning.farthest_points import ElementRows, farthest_points
from mace.finetuning.selection import Selection, SelectionRule, elements_in, select_structures
from mace.finetuning.structure_descriptors import describe_structures
from mace.model.model_file import save_model
from mace.potential.descriptors import descriptors
from mace.potential.potential import Potential, open_potential
from mace.structures.configuration import Configuration
from mace.structures.reading import read_sources
from mace.structures.sources import FileUnits, Source

NAMES = ("H2O", "CH3OH", "CH4", "CO2", "H2")
WATER, METHANOL = frozenset({1, 8}), frozenset({1, 6, 8})


@pytest.fixture
def replay(tmp_path: Path) -> Path:
    """Forty molecules, eight of each kind, in turn."""
    rng, frames = np.random.default_rng(0), []
    for place in range(40):
        atoms = molecule(NAMES[place % 5])
        atoms.rattle(0.1, rng=rng)
        atoms.info |= {"REF_energy": -1.0 * place, "number": place}
        frames.append(atoms)
    write(tmp_path / "replay.xyz", frames)
    return tmp_path / "replay.xyz"


def chosen(selection: Selection) -> list[int]:
    """The numbers of the selected structures."""
    return [int(frame.info["number"]) for _, frame in selection.frames()]


def select(path: Path, *arguments: Any, **more: Any) -> Selection:
    return select_structures([Source(path)], SelectionRule(*arguments, **more))


@pytest.mark.parametrize(
    ("filter_type", "elements", "kinds"),
    [
        ("none", (), {0, 1, 2, 3, 4}),
        ("combinations", WATER, {0, 4}),
        ("combinations", {6}, set()),
        ("inclusive", WATER, {0, 1}),
        ("inclusive", {6}, {1, 2, 3}),
        ("exclusive", WATER, {0}),
        ("exclusive", METHANOL, {1}),
        ("exclusive", {1, 8, 9}, set()),
    ],
)
def test_filters(replay: Path, filter_type: Any, elements: Any, kinds: set[int]) -> None:
    if not kinds:
        with pytest.raises(UserError, match="0 of 40 structures contain .* nothing is left; choose other elements"):
            select(replay, filter_type, frozenset(elements))
        return
    selection = select(replay, filter_type, frozenset(elements))
    assert chosen(selection) == [place for place in range(40) if place % 5 in kinds]
    assert (selection.n_structures, selection.n_passing, selection.n_random) == (40, 8 * len(kinds), 0)


def test_random_selections_follow_the_seed(replay: Path) -> None:
    first, again, other = (chosen(select(replay, n_samples=15, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 15 and first == sorted(first), "in the order of the file"


def test_others_are_added_at_random(replay: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mace"):
        selection = select(replay, "exclusive", WATER, 12, seed=3)
    numbers = chosen(selection)
    assert len(set(numbers)) == 12 and set(range(0, 40, 5)) <= set(numbers)
    assert (selection.n_passing, selection.n_selected, selection.n_random) == (8, 12, 4)
    assert "40 structures in" in caplog.text and "of which 8 contain exactly H, O" in caplog.text
    assert "4 that do not pass the filter are added at random, with seed 3, which makes 12" in caplog.text
    assert [record.levelname for record in caplog.records if "do not pass" in record.message] == ["WARNING"]


def test_too_few_without_others(replay: Path) -> None:
    with pytest.raises(UserError, match=r"8 of 40 structures contain exactly H, O, fewer than --num_samples_pt=12; .*"):
        select(replay, "exclusive", WATER, 12, random_padding=False)
    assert len(chosen(select(replay, "exclusive", WATER, 12, random_padding=False, at_most=True))) == 8


def test_more_than_there_are(replay: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="--num_samples_pt=41 is more than the 40 structures there are"):
        select(replay, n_samples=41)
    with caplog.at_level(logging.INFO, logger="mace"):
        assert len(chosen(select(replay, n_samples=41, at_most=True))) == 40
    assert "all 40 are taken; there are fewer than --num_samples_pt=41" in caplog.text
    assert len(chosen(select(replay, "exclusive", WATER, 41, at_most=True))) == 40


def test_a_filter_needs_elements(replay: Path) -> None:
    with pytest.raises(UserError, match="--filter_type_pt=inclusive needs elements; name them with --atomic_numbers"):
        select(replay, "inclusive")


def test_isolated_atoms_are_kept_beside(tmp_path: Path, replay: Path) -> None:
    atoms = [Atoms(symbol, info={"config_type": kind, "number": 0}) for symbol, kind in
             (("H", "IsolatedAtom"), ("O", "isolated_atom"), ("C", "IsolatedAtom"), ("H", "radical"))]  # fmt: skip
    write(tmp_path / "atoms.xyz", atoms)
    rule = SelectionRule("combinations", WATER, 17)
    selection = select_structures([Source(tmp_path / "atoms.xyz"), Source(replay)], rule)
    assert (selection.n_structures, selection.n_passing, selection.n_isolated) == (41, 17, 2), "not that of carbon"
    read = read_sources(selection.sources)
    assert len(read.configurations) == 17 == selection.n_selected
    assert [int(each.atomic_numbers[0]) for each in read.isolated_atoms] == [1, 8]


def test_what_was_selected_is_read_alone(replay: Path, tmp_path: Path) -> None:
    write(tmp_path / "more.xyz", [Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]], info={"number": 99})] * 3)
    selection = select_structures([Source([replay, tmp_path / "more.xyz"])], SelectionRule(n_samples=20, seed=5))
    read = read_sources(selection.sources).configurations
    numbers = chosen(selection)
    assert [-1.0 * n for n in numbers if n != 99] == [each.energy for each in read if each.file == str(replay)]
    assert [each.index for each in read if each.file == str(replay)] == [n for n in numbers if n != 99]
    assert sum(each.file != str(replay) for each in read) == numbers.count(99) > 0
    again = select_structures(selection.sources, SelectionRule(n_samples=7))
    assert set(chosen(again)) <= set(numbers) and again.n_structures == 20, "of a selection a smaller one"


def test_heads_are_named_by_all_that_are_read_or_by_none(replay: Path) -> None:
    """Whether structures of a file name their heads is told by the first that is read, whichever it is."""
    frames = read(replay, ":")
    for place, frame in enumerate(frames[1:]):
        frame.info["head"] = "low" if place % 2 else "high"
    write(replay, frames)
    wanted = {"head": "low", "head_key": "head", "heads": ("low", "high")}
    with pytest.raises(UserError, match="structure 1 names its head in head=, but structure 0 does not"):
        read_sources([Source(replay)], **wanted)
    found = read_sources([Source(replay, only=frozenset(range(3, 9)))], **wanted).configurations
    assert [each.index for each in found] == [4, 6, 8]


def test_elements_in_files(replay: Path) -> None:
    assert elements_in([Source(replay)]) == METHANOL


@pytest.fixture
def potential(tmp_path: Path) -> Potential:
    return open_potential(save_model(tmp_path / "heads.model", files.model(files.with_heads("one", "two"))))


def configurations(path: Path) -> list[Configuration]:
    return read_sources([Source(path)]).configurations


def test_descriptors_are_means_by_element(replay: Path, potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = configurations(replay)
    rows = describe_structures(potential, structures)
    assert list(rows) == [1, 6, 8] and all(each.values.dtype == np.float32 for each in rows.values())
    for element, of_element in rows.items():
        has = [k for k, each in enumerate(structures) if element in each.atomic_numbers]
        assert of_element.structures.tolist() == has
        for k, row in zip(has, of_element.values, strict=True):
            head = Configuration(**{**vars(structures[k]), "head": "two"})
            alone = descriptors(potential.evaluate([head], features=True)[0]).numpy()
            mean = alone[structures[k].atomic_numbers == element].mean(axis=0)
            np.testing.assert_allclose(row, mean, rtol=1e-6, atol=1e-9)
    monkeypatch.setattr("mace.finetuning.structure_descriptors._MOST_ATOMS", 1)
    for element, of_element in describe_structures(potential, structures).items():
        np.testing.assert_allclose(of_element.values, rows[element].values, rtol=1e-6, atol=1e-9)


def test_farthest_points_of_what_passes(replay: Path, potential: Potential) -> None:
    rule = SelectionRule("combinations", WATER, 6, "fps", seed=9)
    selection = select_structures([Source(replay)], rule, lambda places, n, each: describe_structures(potential, each))
    passing = [place for place in range(40) if place % 5 in (0, 4)]
    rows = describe_structures(potential, [configurations(replay)[place] for place in passing])
    first = int(np.random.default_rng(9).integers(16))
    assert chosen(selection) == sorted(passing[k] for k in farthest_points(rows, 16, 6, first))


def test_units_and_geometry_count_for_descriptors(replay: Path) -> None:
    found: list[Configuration] = []

    def describe(places: Any, n_structures: int, structures: Any) -> dict[int, ElementRows]:
        found.extend(structures)
        return {1: ElementRows(np.arange(len(found)), np.zeros((len(found), 1), dtype=np.float32))}

    source = Source(replay, units=FileUnits(length="nm"))
    select_structures([source], SelectionRule(n_samples=2, subselect="fps"), describe)
    np.testing.assert_allclose(found[3].positions, 10 * configurations(replay)[3].positions)


def test_an_unknown_element_is_named(tmp_path: Path, potential: Potential) -> None:
    write(tmp_path / "iron.xyz", [molecule("H2O"), Atoms("Fe2", positions=np.eye(3)[:2])])
    with pytest.raises(UserError, match=r"iron.xyz: structure 1 contains Fe, which the model was not trained on"):
        describe_structures(potential, configurations(tmp_path / "iron.xyz"))


def test_stored_descriptors(replay: Path, potential: Potential, tmp_path: Path) -> None:
    structures = configurations(replay)
    rows = describe_structures(potential, structures)
    write_descriptors(tmp_path / "all.npz", rows, range(40), 40)
    stored = StoredDescriptors(tmp_path / "all.npz")
    places = list(range(1, 40, 3))
    some = [structures[place] for place in places]
    for element, of_element in describe_structures(potential, some).items():
        found = stored(places, 40, some)[element]
        assert found.structures.tolist() == of_element.structures.tolist()
        np.testing.assert_allclose(found.values, of_element.values, rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="are those of 40 structures, not of these 41; leave the file out"):
        stored(places, 41, some)
    with pytest.raises(UserError, match="are those of structures with more elements|of other structures"):
        stored([place + 1 for place in places[:-1]], 40, some[:-1])
    write_descriptors(tmp_path / "some.npz", describe_structures(potential, some), places, 40)
    assert list(StoredDescriptors(tmp_path / "some.npz")(places, 40, some)) == [1, 6, 8]
    with pytest.raises(UserError, match="other structures"):
        StoredDescriptors(tmp_path / "some.npz")([*places, 5], 40, [*some, structures[5]])


def test_descriptors_of_mace_torch_are_read_without_being_run(
    replay: Path, potential: Potential, tmp_path: Path
) -> None:
    """It pickles a list of dictionaries: vectors by symbol, which is a scalar of NumPy."""
    structures = configurations(replay)
    rows = describe_structures(potential, structures)
    symbols = {1: "H", 6: "C", 8: "O"}
    table: list[dict[Any, np.ndarray]] = [{} for _ in structures]
    for element, of_element in rows.items():
        for place, value in zip(of_element.structures, of_element.values, strict=True):
            table[place][np.str_(symbols[element])] = value.astype(np.float64)
    np.save(tmp_path / "theirs.npy", table, allow_pickle=True)
    found = StoredDescriptors(tmp_path / "theirs.npy")(range(40), 40, structures)
    assert all((found[element].values == rows[element].values).all() for element in rows)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00", None])
def test_what_is_no_file_of_descriptors(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "wrong.npz"
    if content is None:
        np.save(tmp_path / "wrong.npy", np.eye(3))
        path = tmp_path / "wrong.npy"
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="this is no file of descriptors .*; leave it out"):
        StoredDescriptors(path)


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (eval, (f"open({str(tmp_path / 'trace')!r}, 'w')",))

    array = np.empty(1, dtype=object)
    array[0] = {"H": Harmful()}
    np.save(tmp_path / "harmful.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="no file of descriptors"):
        StoredDescriptors(tmp_path / "harmful.npy")
    assert not (tmp_path / "trace").exists()
