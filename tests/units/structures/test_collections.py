"""Does what is computed of many structures depend on where they are, or in which blocks they are gone through?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_sets import assert_same_structures, write_set

from mace.elements import ElementTable
from mace.errors import UserError
from mace.structures.collection import Joined, ListedStructures, Names, StructureCollection, in_blocks, together
from mace.structures.configuration import Configuration
from mace.structures.prepared import StoredStructures
from mace.structures.reference_energies import fit_reference_energies, fit_residuals, resolve_reference_energies
from mace.structures.splitting import check_elements, check_heads, split_validation, write_valid_indices
from mace.structures.statistics import interaction_energies_per_atom, summarize

FREE = (False, False, False)
TRUE_E0S = {1: -13.6, 6: -1029.0, 8: -2041.0, 9: -2715.0}


def structures(count: int = 60, elements: Sequence[int] = (1, 6, 8), seed: int = 5) -> list[Configuration]:
    """Structures of random composition whose energies are mostly those of their atoms; some lack labels or weight."""
    rng, found = np.random.default_rng(seed), []
    for index in range(count):
        numbers = rng.choice(elements, int(rng.integers(2, 9)))
        labels: dict[str, Any] = {}
        if rng.random() < 0.8:
            labels["energy"] = sum(TRUE_E0S[number] for number in numbers.tolist()) + float(rng.normal())
        if rng.random() < 0.7:
            labels["forces"] = rng.normal(size=(len(numbers), 3))
        found.append(
            Configuration(
                numbers, rng.normal(size=(len(numbers), 3)), np.zeros((3, 3)), FREE, **labels,
                weight=float(rng.choice([0.0, 1.0, 2.5])), property_weights={"energy": float(rng.choice([0.5, 1.0]))},
                config_type=str(rng.choice(["bulk", "gas", "slab"])), head=str(rng.choice(["one", "other"])),
                file=f"{index % 2}.xyz", index=index // 2,
            )
        )  # fmt: skip
    return found


@pytest.fixture(params=["blocks of 4", "one block"])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "blocks of 4":
        monkeypatch.setattr(StructureCollection.blocks, "__defaults__", (4,))


def elsewhere(folder: Path, given: list[Configuration]) -> list[StructureCollection]:
    """The same structures on disk, partly on disk, and chosen from more of them."""
    stored = StoredStructures(write_set(folder / "set", given, 7))
    more = StoredStructures(write_set(folder / "more", [*given[::-1], *structures(5, seed=9)], 9))
    parts = [stored.take(np.arange(10)), ListedStructures(given[10:30]), stored.take(np.arange(30, len(given)))]
    return [stored, Joined(parts), more.take(np.arange(len(given))[::-1])]


@pytest.mark.usefixtures("small_blocks")
def test_statistics(tmp_path: Path) -> None:
    given = structures()
    direct = [
        (c.energy - sum(TRUE_E0S[n] for n in c.atomic_numbers.tolist())) / c.n_atoms
        for c in given
        if c.energy is not None
    ]
    forces = np.concatenate([c.forces for c in given if c.forces is not None])
    for found in elsewhere(tmp_path, given):
        energies = interaction_energies_per_atom(found, TRUE_E0S)
        np.testing.assert_allclose(energies, direct, rtol=1e-10, atol=1e-10)
        assert energies.tolist() == interaction_energies_per_atom(given, TRUE_E0S).tolist()
        summary = summarize(found, TRUE_E0S)
        assert summary.mean_energy == pytest.approx(np.mean(direct), rel=1e-10)
        assert summary.std_energy == pytest.approx(np.std(direct, ddof=1), rel=1e-10)
        assert summary.rms_forces == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-13)
        assert found.elements == (1, 6, 8)
        assert found.label_counts() == ListedStructures(given).label_counts()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("known", [{}, {6: -1029.0}, {1: -13.0, 8: -2040.0}])
def test_reference_energies_are_fitted(tmp_path: Path, known: dict[int, float]) -> None:
    """As one least-squares problem over all structures gives them."""
    given, elements = structures(), ElementTable((1, 6, 8))
    used = [c for c in given if c.has_weight("energy")]
    free = [number for number in elements if number not in known]
    counts = np.array([[(c.atomic_numbers == number).sum() for number in free] for c in used])
    rest = [c.energy - sum(known.get(n, 0.0) for n in c.atomic_numbers.tolist()) for c in used if c.energy is not None]
    weights = np.sqrt([c.weight * c.property_weights["energy"] for c in used])
    solution = np.linalg.lstsq(counts * weights[:, None], np.array(rest) * weights, rcond=None)[0]
    expected = known | dict(zip(free, solution.tolist(), strict=True))
    for found in elsewhere(tmp_path, given):
        energies, warnings = fit_reference_energies(found, elements, known)
        assert not warnings
        assert energies == pytest.approx(expected, rel=1e-10)
        assert fit_residuals(found, TRUE_E0S) == fit_residuals(given, TRUE_E0S)
        E0s = resolve_reference_energies("average", [], found, elements)
        same = resolve_reference_energies("average", [], given, elements)
        assert E0s.energies == pytest.approx(same.energies, rel=1e-10) and E0s.source == same.source
        typed, in_memory = (resolve_reference_energies(TRUE_E0S, [], each, elements) for each in (found, given))
        assert typed.warnings == in_memory.warnings


@pytest.mark.usefixtures("small_blocks")
def test_elements_that_are_determined_only_by_several_blocks(tmp_path: Path) -> None:
    """Some first blocks determine nothing, the last structure everything; without it, fluorine stays open."""
    elements, rng = ElementTable((1, 8, 9)), np.random.default_rng(0)

    def made(numbers: list[int]) -> Configuration:
        energy = sum(TRUE_E0S[number] for number in numbers)
        return Configuration(
            np.array(numbers), rng.normal(size=(len(numbers), 3)), np.zeros((3, 3)), FREE, energy=energy
        )

    given = [made([8, 1, 1]) for _ in range(13)] + [made([9, 1]) for _ in range(9)] + [made([1, 1])]
    for found in [ListedStructures(given), *elsewhere(tmp_path, given)[:1]]:
        energies, warnings = fit_reference_energies(found, elements)
        assert not warnings and energies == pytest.approx({n: TRUE_E0S[n] for n in elements}, rel=1e-10)
    open_ones = [made([8, 8, 8]), *given[13:-1]]
    for found in [ListedStructures(open_ones), StoredStructures(write_set(tmp_path / "open", open_ones, 3))]:
        energies, warnings = fit_reference_energies(found, elements)
        assert energies[8] == pytest.approx(TRUE_E0S[8], rel=1e-10)
        assert len(warnings) == 1 and "do not determine the reference energies of H, F" in warnings[0]
        smallest = np.linalg.lstsq(np.array([[1.0, 1.0]]), np.array([TRUE_E0S[1] + TRUE_E0S[9]]), rcond=None)[0]
        assert [energies[1], energies[9]] == pytest.approx(smallest.tolist(), rel=1e-9)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rare", [False, True])
def test_the_split(tmp_path: Path, rare: bool) -> None:
    """The same structures, also where the only ones with some element, head, type or label have to stay."""
    given = structures()
    if rare:
        indices = split_validation(given, 0.2, 3, ["energy", "forces"]).indices
        gold = structures(3, elements=(9,))
        for place, one in zip(indices[:3], gold, strict=True):
            given[place] = one
    expected = split_validation(given, 0.2, 3, ["energy", "forces"])
    for number, found in enumerate(elsewhere(tmp_path, given)):
        split = split_validation(found, 0.2, 3, ["energy", "forces"])
        assert split.indices == expected.indices and split.notes == expected.notes
        assert_same_structures(split.train, expected.train)
        assert_same_structures(split.valid, expected.valid)
        path = write_valid_indices(tmp_path, f"run{number}", 3, split.valid)
        listed = write_valid_indices(tmp_path, "listed", 3, list(expected.valid))
        assert path.read_bytes() == listed.read_bytes()


def test_what_is_wrong_is_said_of_the_same_structure(tmp_path: Path) -> None:
    given = structures()
    checks = (
        lambda each: check_elements((1, 8), each),
        lambda each: check_heads(("one", "third"), each),
        lambda each: fit_reference_energies(each.changed(0.0), ElementTable((1, 6, 8))),
        lambda each: split_validation(each, 1.5, 3),
    )
    for check in checks:
        with pytest.raises(UserError) as expected:
            check(ListedStructures(given))
        for found in elsewhere(tmp_path, given):
            with pytest.raises(UserError) as said:
                check(found)
            assert str(said.value) == str(expected.value)


def test_names() -> None:
    names = Names.of(["b", "a", "b", "c"])
    assert names.names == ("b", "a", "c") and names.present() == ("b", "a", "c")
    assert [names[place] for place in range(4)] == ["b", "a", "b", "c"]
    some = names.take(np.array([3, 0]))
    assert some.present() == ("b", "c") and some.count("a") == 0 and some.where("c").tolist() == [True, False]
    assert Names.of([]).present() == () and not Names.of([]).count("a")


def test_together() -> None:
    given = structures(6)
    lists = [ListedStructures(given[:2]), ListedStructures([]), ListedStructures(given[2:])]
    whole = together(lists)
    assert isinstance(whole, ListedStructures)
    assert_same_structures(whole, ListedStructures(given))
    assert len(together([ListedStructures([]), ListedStructures([])])) == 0
    assert [places.tolist() for places in in_blocks(5, 2)] == [[0, 1], [2, 3], [4]] and not list(in_blocks(0, 2))


def test_places_beyond_the_end() -> None:
    whole = ListedStructures(structures(4))
    for place in (4, -5):
        with pytest.raises(IndexError):
            whole[place]
    assert whole[-4].index == 0 and len(whole[4:]) == 0 and [c.index for c in whole[::-1]] == [1, 1, 0, 0]
