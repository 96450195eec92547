"""Do parts of a set add up to what the whole set shows, in bounded memory, and can they be stored?"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from labeled_crystals import changed, crystals
from spoiled_data import CASES, Sets
from training_runs import copper, isolated_atoms, labeled

from mace.errors import UserError
from mace.files.documents import from_document, to_document
from mace.inspection import parts
from mace.inspection.distributions import Tally, distribution, tally
from mace.inspection.findings import Finding
from mace.inspection.flat import flatten
from mace.inspection.geometry import nearest_neighbors
from mace.inspection.groups import MOST_GROUPS, gather_groups, tally_groups
from mace.inspection.identity import identities
from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.inspection.parts import FileSummary, PartReport, divide, inspect_part, merge_parts
from mace.structures.collection import ListedStructures, Names, StructureCollection
from mace.structures.configuration import Configuration
from mace.structures.flat import FlatStructures
from mace.structures.labels import LabelReport
from mace.structures.reading import ReadResult, read_configurations

DECIDED_BY_PART = {"contradicting-forces", "suspicious-forces", "contradicting-stress", "suspicious-stress"}


def told(findings: Iterable[Finding]) -> list[tuple[str, tuple[int, ...], int]]:
    return [(item.name, item.structures, item.count) for item in findings if item.name not in DECIDED_BY_PART]


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(parts, "MOST_STRUCTURES", size)


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_parts_and_what_is_stored_show_what_the_whole_shows(
    inspect: Callable[..., DataReport], in_parts: Callable[[int], None], name: str, problem: Callable[[], Sets]
) -> None:
    given = problem()
    whole = inspect(**given)
    roles = [role for role in ("training", "validation", "test") if given.get(role)]
    results = {role: read_configurations(f"{role}.xyz", skip_non_finite=True) for role in roles}
    demands = {key: value for key, value in given.items() if key not in ("training", "validation", "test")}

    def again(sets: list[StructureSet], track: Any = None) -> DataReport:
        return inspect_sets(sets, Demands(**{"r_max": 4.0, "E0s": "average", **demands}), track)

    assert again([StructureSet(role, result, seen_before(result)) for role, result in results.items()], refuse) == whole
    in_parts(12)
    divided = again([StructureSet(role, result) for role, result in results.items()])
    assert told(divided.findings) == told(whole.findings)
    if name.startswith("contradicting-") and name in DECIDED_BY_PART:  # of fewer structures it is but suspicious
        either = {name, name.replace("contradicting", "suspicious")}
        assert any(item.name in either and "parts of the file" in item.sentence for item in divided.findings)
    for one, other in zip(whole.files, divided.files, strict=True):
        for group, of_parts in zip((one.whole, *one.groups), (other.whole, *other.groups), strict=True):
            counts = [{k: v for k, v in vars(each).items() if k not in LABELS} for each in (group, of_parts)]
            assert counts[0] == counts[1]
            assert all(alike(getattr(group, label), getattr(of_parts, label)) for label in LABELS)


def seen_before(result: ReadResult) -> PartReport:
    """Inspect structures, write the report as JSON and read it."""
    (labels,) = result.report.files
    names = [entry.name for entry in labels.coverage if entry.labeled]
    report = inspect_part(result.configurations, result.isolated_atoms, names, {labels.file: labels.constrained})
    assert same(stored(report), report)
    return stored(report)


def stored(report: PartReport) -> PartReport:
    return PartReport.from_document(json.loads(json.dumps(report.as_document(), allow_nan=False)), report.columns)


def same(one: PartReport, other: PartReport) -> bool:
    return one.files == other.files and all((one.columns[k] == other.columns[k]).all() for k in one.columns)


def refuse(work: Any, words: str) -> Iterator[Any]:
    assert not len(work), "nothing is inspected again"
    return iter(())


LABELS = ("energies", "forces", "stresses")


def alike(one: Any, other: Any) -> bool:
    """Whether two distributions are the same but for the rounding of their histograms."""
    if one is None or other is None:
        return one is other
    numbers = [(each.count, each.smallest, each.mean, each.rms, each.largest) for each in (one, other)]
    return bool(np.allclose(*numbers, rtol=1e-12, atol=1e-12)) and sum(one.counts) == sum(other.counts)


def test_what_is_wrong_in_one_part_is_not_diluted(
    inspect: Callable[..., DataReport], in_parts: Callable[[int], None]
) -> None:
    in_parts(40)
    report = inspect([*copper(40), *copper(40, seed=1), *changed(copper(40, seed=2), forces=-1.0)], r_max=3.0)
    (finding,) = (item for item in report.errors)
    assert finding.name == "contradicting-forces"
    assert "the sign is opposite (in 1 of 3 parts of the file, first in structures 80 to 119; the" in finding.sentence
    assert "numbers are those of the clearest part); convert" in finding.sentence


def test_zeros_of_several_parts_are_added_up(
    inspect: Callable[..., DataReport], in_parts: Callable[[int], None]
) -> None:
    frames = crystals(24)
    frames[3].info["REF_energy"] = 0.0
    in_parts(12)
    assert "zero-energies" not in [item.name for item in inspect(frames, r_max=3.0).findings]
    frames[20].info["REF_energy"] = 0.0
    (finding,) = (item for item in inspect(frames, r_max=3.0).findings if item.name == "zero-energies")
    assert finding.structures == (3, 20)
    assert "structures 3, 20 (2 of 24) have labels 'energy' that are exactly zero; leave" in finding.sentence


def test_labels_that_whole_parts_lack_are_missed(
    inspect: Callable[..., DataReport], in_parts: Callable[[int], None]
) -> None:
    frames = crystals(24)
    for atoms in frames[12:]:
        del atoms.info["REF_stress"]
    in_parts(6)
    (finding,) = inspect(frames, r_max=3.0).findings
    assert (finding.name, finding.structures) == ("partly-labeled", tuple(range(12, 24)))


def test_places_are_bounded(inspect: Callable[..., DataReport], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mace.inspection.findings.MOST_PLACES", 7)
    monkeypatch.setattr("mace.inspection.flat.MOST_PLACES", 7)
    monkeypatch.setattr(parts, "MOST_STRUCTURES", 5)
    (finding,) = inspect(crystals(24), r_max=5.0).findings
    assert finding.structures == tuple(range(7)) and finding.count == 24
    assert "structures 0, 1, 2, 3, 4 and 19 more (24 of 24) have cells thinner" in finding.sentence


def test_a_set_is_divided_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [configuration(place, file="ab"[place >= 7]) for place in range(10)]
    monkeypatch.setattr(parts, "MOST_STRUCTURES", 4)
    assert [chosen.tolist() for chosen in divide(ListedStructures(made))] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    monkeypatch.setattr(parts, "MOST_ATOMS", int(sum(one.n_atoms for one in made[:7]) / 3))
    assert len([chosen for chosen in divide(ListedStructures(made)) if chosen[0] < 7]) >= 3


def configuration(seed: int, pbc: tuple[bool, bool, bool] = (True,) * 3, file: str = "a", **more: Any) -> Configuration:
    rng = np.random.default_rng(seed)
    n_atoms = int(rng.integers(1, 7))
    cell = rng.uniform(2.0, 9.0) * (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3)))
    positions = rng.uniform(-1.0, 2.0, (n_atoms, 3)) @ cell
    return Configuration(rng.integers(1, 9, n_atoms), positions, cell, pbc, file=file, index=seed, **more)


def slow_nearest(one: Configuration, farthest: float) -> np.ndarray:
    """Nearest neighbors by trying all images."""
    images = [(range(-9, 10) if repeats else (0,)) for repeats in one.pbc]
    shifts = np.array(list(itertools.product(*images))) @ one.cell
    steps = one.positions[None, :, None] + shifts[None, None] - one.positions[:, None, None]
    distances = np.linalg.norm(steps, axis=3)
    here = np.arange(one.n_atoms)
    distances[here, here, np.flatnonzero(~shifts.any(axis=1))] = np.inf
    nearest = distances.min(axis=(1, 2))
    return np.where(nearest < farthest, nearest, np.inf)


@pytest.mark.parametrize(("exact_from", "farthest"), [(3.0, 12.0), (0.5, 6.0)])
def test_nearest_neighbors_are_those_of_a_slow_search(exact_from: float, farthest: float) -> None:
    kinds = list(itertools.product((True, False), repeat=3))
    made = [configuration(seed, kinds[seed % 8]) for seed in range(160)]
    # wrapped positions are what a slow search with few images needs
    made = [dataclasses.replace(one, positions=wrapped(one)) for one in made]
    skewed = np.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 4.9, 0.2]])
    made.append(Configuration(np.array([29]), np.zeros((1, 3)), skewed, (True,) * 3, file="a"))
    found = nearest_neighbors(flatten("a", ListedStructures(made)), exact_from, farthest).distance
    expected = np.concatenate([slow_nearest(one, farthest) for one in made])
    is_exact = (expected >= exact_from) | (expected < 0.3)
    assert is_exact.sum() > 20 and np.isinf(expected).any() and (expected < 0.3).any()
    np.testing.assert_allclose(found[is_exact], expected[is_exact], rtol=1e-9)
    assert ((found >= 0.3) & (found < exact_from))[~is_exact].all()
    assert (found[~is_exact] >= expected[~is_exact] - 1e-9).all()


def wrapped(one: Configuration) -> np.ndarray:
    fractions = one.positions @ np.linalg.inv(one.cell)
    return np.where(one.pbc, fractions % 1.0, fractions) @ one.cell


@pytest.mark.parametrize("r_max", [2.0, 2.4, 2.6, 5.0, 11.0, 14.0])
def test_lone_atoms_are_found_for_any_cutoff(inspect: Callable[..., DataReport], r_max: float) -> None:
    pairs = [labeled(Atoms("Cu2", positions=[[0, 0, 0], [distance, 0, 0]])) for distance in (2.2, 2.5, 10.0, 13.0)]
    small = labeled(Atoms("Cu", positions=[[0, 0, 0]], cell=[2.5, 3.0, 12.5], pbc=True))
    findings = inspect([*crystals(8), *pairs, small], r_max=r_max).findings
    places = [place for item in findings if item.name == "lone-atoms" for place in item.structures]
    made = read_configurations("training.xyz").configurations
    assert places == [one.index for one in made if slow_nearest(one, 20.0).max() >= r_max]
    assert bool(places) == (r_max < 14.0)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).exponential(1.0, 5000),
        np.random.default_rng(1).normal(-5.2, 0.01, 5000),
        np.concatenate([np.random.default_rng(2).normal(0.0, 1.0, 999), [1.0e4]]),
        np.full(50, -3.25),
        np.array([0.0, np.nan, 0.0]),
        np.array([1.0e-300, 2.0e-300]),
    ],
)
def test_histograms_add_up_however_numbers_are_divided(values: np.ndarray) -> None:
    def added(pieces: list[np.ndarray]) -> Tally:
        tallies = [one for piece in pieces if (one := tally(piece)) is not None]
        total = tallies[0]
        for one in tallies[1:]:
            total = total.with_later(one)
        return total

    expected = distribution(values)
    assert expected is not None
    assert added([values]).distribution() == expected
    halves, many = added(np.array_split(values, 2)), added(np.array_split(values, min(len(values), 17)))
    assert (halves.exponent, halves.first, halves.counts) == (many.exponent, many.first, many.counts)
    found = many.distribution()
    assert len(many.counts) <= 514
    assert alike(found, expected) and found.edges == pytest.approx(expected.edges)
    off = np.abs(np.cumsum(found.counts) - np.cumsum(expected.counts))
    assert off.max() <= 0.02 * len(values) + 1


def test_numbers_of_many_types_are_bounded() -> None:
    made = [configuration(seed, config_type=f"type {seed}") for seed in range(MOST_GROUPS + 300)]
    halves = [tally_groups(flatten("a", ListedStructures(half))) for half in (made[:700], made[700:])]
    groups = gather_groups([*halves[0], *halves[1]])
    assert len(groups) == MOST_GROUPS + 1
    assert (groups[-1].config_type, groups[-1].frames) == ("other types", 300)


def test_identities_do_not_change_with_versions() -> None:
    """They are stored with prepared data."""
    water = Configuration(np.array([8, 1, 1]), np.diag([0.1, 0.7, -0.3]), np.zeros((3, 3)), (False,) * 3)
    turned = Configuration(np.array([1, 8, 1]), np.diag([0.1, 0.7, -0.3])[[1, 0, 2]], np.eye(3), (False,) * 3)
    found = identities(FlatStructures.of([water, turned, configuration(3)]))
    assert found.dtype == np.uint64
    assert found.tolist() == [8743774162577610103, 8743774162577610103, 12124932885118715981]


class Made(StructureCollection):
    """Random structures that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._n_atoms = np.random.default_rng(0).integers(3, 20, count)

    def __len__(self) -> int:
        return len(self._n_atoms)

    @property
    def n_atoms(self) -> np.ndarray:
        return self._n_atoms

    @cached_property
    def config_types(self) -> Names:
        return Names(("a", "b"), np.arange(len(self), dtype=np.int32) % 2)

    @cached_property
    def heads(self) -> Names:
        return Names(("Default",), np.zeros(len(self), dtype=np.int32))

    @cached_property
    def files(self) -> Names:
        return Names(("made.xyz",), np.zeros(len(self), dtype=np.int32))

    @cached_property
    def file_index(self) -> np.ndarray:
        return np.arange(len(self))

    def flat(self, structures: Any) -> FlatStructures:
        n_atoms = self.n_atoms[structures]
        rng, total = np.random.default_rng(int(structures[0])), int(n_atoms.sum())
        sides = np.cbrt(20.0 * n_atoms)
        columns = {
            "numbers": rng.integers(1, 9, total),
            "positions": rng.random((total, 3)) * np.repeat(sides, n_atoms)[:, None],
            "cell": sides[:, None, None] * np.eye(3),
            "pbc": np.full((len(n_atoms), 3), True),
            "label/energy": rng.normal(-3.0 * n_atoms, 1.0),
            "label/forces": rng.normal(0.0, 1.0, (total, 3)),
        }
        return FlatStructures(n_atoms, columns)

    def labeled(self, name: str) -> np.ndarray:
        return np.full(len(self), name in ("energy", "forces"))

    def has_weight(self, name: str) -> np.ndarray:
        return self.labeled(name)

    def changed(self, factor: float = 1.0, head: str | None = None) -> StructureCollection:
        raise NotImplementedError

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ()


def test_memory_grows_by_a_few_numbers_of_each_structure(
    inspect: Callable[..., DataReport], in_parts: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(crystals(4))
    of_crystals = read_configurations("training.xyz").report.files[0]
    in_parts(300)
    monkeypatch.setattr(StructureCollection.blocks, "__defaults__", (300,))
    peaks = []
    for count in (1200, 4200):
        labels = dataclasses.replace(of_crystals, file="made.xyz", frames=count)
        made = ReadResult(Made(count), [], LabelReport((labels,)))
        tracemalloc.start()
        report = inspect_sets([StructureSet("training", made)], Demands(5.0, E0s=dict.fromkeys(range(1, 9), 0.0)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.files[0].whole.frames == count
        assert any(item.count > 100 for item in report.findings)
    assert peaks[1] - peaks[0] < 3000 * 150, peaks  # a flat structure has 700 bytes, and checks need much more


def test_a_stored_report_is_judged_by_the_demands_of_each_run(inspect: Callable[..., DataReport]) -> None:
    frames = [*isolated_atoms(["Cu"]), *crystals(12), *crystals(12)[3:5]]
    expected = [inspect(frames, r_max=r_max, E0s=E0s) for r_max, E0s in ((3.0, None), (5.0, {29: 1.0}))]
    result = read_configurations("training.xyz", skip_non_finite=True)
    pieces = [inspect_part(result.configurations[:5], result.isolated_atoms), inspect_part(result.configurations[5:])]
    for r_max, E0s, report in ((3.0, None, expected[0]), (5.0, {29: 1.0}, expected[1])):
        one = StructureSet("training", result, stored(merge_parts(pieces)))
        found = inspect_sets([one], Demands(r_max, E0s=E0s))
        assert told(found.findings) == told(report.findings)
        assert found.reference_energies == report.reference_energies
        assert found.files[0].groups[-1] == report.files[0].groups[-1]
        assert found.files[0].whole.energies == report.files[0].whole.energies


def test_it_does_not_matter_in_which_steps_parts_are_added() -> None:
    made = [configuration(seed, energy=float(seed), file="ab"[seed % 2]) for seed in range(30)]
    pieces = [inspect_part(made[start : start + 6]) for start in range(0, 30, 6)]
    at_once = merge_parts(pieces)
    one_by_one = PartReport()
    for piece in pieces:
        one_by_one = merge_parts([one_by_one, piece])
    assert same(at_once, one_by_one)
    assert [(file.file, file.frames, file.parts) for file in at_once.files] == [("a", 15, 5), ("b", 15, 5)]
    assert (at_once.columns["identity"] == identities(FlatStructures.of(made))).all()


def test_a_report_of_another_version_is_refused() -> None:
    document = inspect_part([configuration(1)]).as_document() | {"format": 0}
    with pytest.raises(UserError, match="prepare the data again"):
        PartReport.from_document(document, {})


def test_documents_of_another_form_are_refused() -> None:
    with pytest.raises(TypeError, match="is no int"):
        from_document(tuple[int, ...], ["one"])
    with pytest.raises(TypeError, match="no mapping"):
        from_document(FileSummary, 3)
    with pytest.raises(TypeError, match="has no form in JSON"):
        to_document({"a": {1, 2}})
