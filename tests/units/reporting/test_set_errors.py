"""Do errors that are added up batch by batch equal those of all values at once, in memory that does not grow?"""

from __future__ import annotations

import pickle
import tracemalloc
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from predicted_sets import Made, batch_of, errors_of

from mace.elements import chemical_symbol
from mace.properties import PROPERTIES
from mace.reporting.predictions import BINS, OTHER, PredictedSet, summarize_predictions
from mace.reporting.set_errors import (
    MOST_VALUES,
    MOST_WORST,
    WORST_VALUES,
    Compared,
    SetErrors,
    chosen_values,
)
from mace.reporting.spread import Spread, percentile
from mace.reporting.worst import worst_structures
from mace.structures.configuration import DEFAULT_HEAD, Configuration

ENERGIES = {DEFAULT_HEAD: {1: -13.0, 6: -1000.0, 8: -400.0}}
MOLECULES = ([1, 1, 8], [6, 1, 1, 1, 1], [8, 8], [6, 8])


def made(count: int, seed: int = 0) -> tuple[list[Configuration], dict[str, Compared]]:
    """Molecules in three files; some lack labels of forces or of single atoms, few have a stress."""
    rng = np.random.default_rng(seed)
    structures = [
        Configuration(
            np.array(MOLECULES[k % 4]),
            np.zeros((len(MOLECULES[k % 4]), 3)),
            np.eye(3),
            (True,) * 3,
            config_type=("hot", "cold", "warm")[k % 7 % 3],
            file=f"{k % 3}.xyz",
            index=k // 3,
        )
        for k in rng.permutation(count).tolist()
    ]
    sizes = np.array([c.n_atoms for c in structures])
    structure, atom = np.repeat(np.arange(count), sizes), np.concatenate([np.arange(n) for n in sizes])
    kept = (rng.random(count) < 0.9)[structure] & (rng.random(len(structure)) < 0.95)
    stressed = np.flatnonzero(rng.random(count) < 0.3)
    base = np.array([sum(ENERGIES[DEFAULT_HEAD][z] for z in c.atomic_numbers.tolist()) for c in structures])
    compared = {}
    rows_of = {"energy": np.arange(count), "forces": structure[kept], "stress": stressed}
    for name, rows in rows_of.items():
        atoms = atom[kept] if name == "forces" else None
        reference = rng.normal(size=(len(rows), *PROPERTIES[name].shape)) + (base if name == "energy" else 0.0)
        error = 0.1 * rng.standard_t(3, size=reference.shape)
        compared[name] = Compared(reference, reference + error, rows, atoms)
    return structures, compared


def every_value(structures: list[Configuration], compared: dict[str, Compared], name: str) -> list[dict[str, Any]]:
    """List all values of a property one by one, without any of the means of the package."""
    found = []
    one = compared[name]
    for row, place in enumerate(one.structure.tolist()):
        c = structures[place]
        per_atom = c.n_atoms if name == "energy" else 1
        isolated = sum(ENERGIES[DEFAULT_HEAD][z] for z in c.atomic_numbers.tolist()) if name == "energy" else 0.0
        numbers = c.atomic_numbers if one.atom is None else c.atomic_numbers[one.atom[row]]
        for label, guess in zip(one.reference[row].ravel().tolist(), one.prediction[row].ravel().tolist(), strict=True):
            found.append(
                {
                    "reference": (label - isolated) / per_atom,
                    "error": (guess - label) / per_atom,
                    "type": c.config_type,
                    "part": " ".join(chemical_symbol(z) for z in np.unique(numbers).tolist()),
                    "file": c.file,
                    "index": c.index,
                }
            )
    return found


def in_cells(values: list[dict[str, Any]]) -> dict[tuple[str, str], np.ndarray]:
    cells = defaultdict(list)
    for value in values:
        cells[value["type"], value["part"]].append(value["error"])
    return {key: np.array(errors) for key, errors in cells.items()}


@pytest.fixture(scope="module")
def small() -> tuple[list[Configuration], dict[str, Compared], PredictedSet]:
    structures, compared = made(900)
    errors = errors_of(structures, compared, ENERGIES)
    return structures, compared, PredictedSet("train", "train", Made(structures), errors)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_a_small_set_is_exact(small: tuple[Any, ...], name: str) -> None:
    structures, compared, one = small
    values, summary = every_value(structures, compared, name), summarize_predictions([one])
    errors = next(p for p in summary.properties if p.name == name)
    limit = 1.5 * float(np.percentile(np.abs([v["error"] for v in values]), 99.0))
    assert errors.limit == limit
    expected = in_cells(values)
    assert {(summary.types[c.type], errors.parts[c.part]) for c in errors.cells} == set(expected)
    for cell in errors.cells:
        own = expected[summary.types[cell.type], errors.parts[cell.part]]
        sums = [np.abs(own).sum(), np.square(own).sum(), own.sum(), np.abs(own).max()]
        assert [cell.absolute, cell.squared, cell.signed, cell.largest] == pytest.approx(sums, rel=1e-12)
        edges = np.linspace(-limit, limit, BINS + 1)
        counts = np.histogram(np.clip(own, -limit, limit), edges)[0]
        assert cell.count == len(own) and cell.histogram.tolist() == counts.tolist()
    points = errors.points
    if len(values) <= 10_000:  # all of them, in order
        assert points.error.tolist() == [v["error"] for v in values]
        assert points.reference.tolist() == [v["reference"] for v in values]
    known = {(v["file"], v["index"], v["error"]): v for v in values}
    for k in range(0, len(points.error), 7):
        value = known[summary.files[points.file[k]], int(points.index[k]), float(points.error[k])]
        where = summary.types[points.type[k]], errors.parts[points.part[k]], points.reference[k]
        assert where == (value["type"], value["part"], value["reference"])


def test_the_worst_structures_are_those_of_all(small: tuple[Any, ...]) -> None:
    structures, compared, one = small
    found, forces = worst_structures([one]), compared["forces"]
    lengths = np.zeros(len(structures))
    np.maximum.at(lengths, forces.structure, np.linalg.norm(forces.prediction - forces.reference, axis=1))
    order = np.argsort(-lengths)[:MOST_WORST]
    assert [s.configuration for s in found["forces"]] == [structures[k] for k in order]
    assert [s.errors["forces"] for s in found["forces"]] == lengths[order].tolist()
    energy, sizes = compared["energy"], np.array([c.n_atoms for c in structures])
    error = (energy.prediction - energy.reference) / sizes
    order = np.argsort(-np.abs(error))[:MOST_WORST]
    assert [s.errors["energy"] for s in found["energy"]] == error[order].tolist()
    for suspect in (s for of_property in found.values() for s in of_property):
        place = next(k for k, c in enumerate(structures) if c is suspect.configuration)
        rows = np.flatnonzero(forces.structure == place)
        if not len(rows):
            assert suspect.force_errors is None and "forces" not in suspect.errors
            continue
        assert suspect.errors["energy"] == error[place] and suspect.force_errors is not None
        labeled = ~np.isnan(suspect.force_errors).any(axis=1)
        assert np.flatnonzero(labeled).tolist() == forces.atom[rows].tolist()
        np.testing.assert_array_equal(suspect.force_errors[labeled], forces.prediction[rows] - forces.reference[rows])


def test_the_errors_of_each_type(small: tuple[Any, ...]) -> None:
    structures, compared, one = small
    found = one.errors.errors_by_type()
    assert list(found) == ["cold", "hot", "warm"]
    kinds = np.array([c.config_type for c in structures])[compared["forces"].structure]
    error = compared["forces"].prediction - compared["forces"].reference
    for kind, metrics in found.items():
        assert metrics["rmse_f"] == pytest.approx(float(np.sqrt(np.mean(np.square(error[kinds == kind])))))
        assert "q95_f" not in metrics


@pytest.fixture(scope="module")
def large() -> tuple[list[Configuration], dict[str, Compared], SetErrors]:
    structures, compared = made(25_000)
    return structures, compared, errors_of(structures, compared, ENERGIES, batch_size=100)


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_a_large_set_has_exact_sums_and_nearly_exact_histograms(large: tuple[Any, ...], name: str) -> None:
    structures, compared, errors = large
    summary = summarize_predictions([PredictedSet("train", "train", Made(structures), errors)])  # type: ignore[arg-type]
    (of_property,) = (p for p in summary.properties if p.name == name)
    values = every_value(structures, compared, name)
    every = np.array([v["error"] for v in values])
    assert of_property.limit == pytest.approx(1.5 * np.percentile(np.abs(every), 99.0), rel=2e-3)
    expected = in_cells(values)
    edges = np.linspace(-of_property.limit, of_property.limit, BINS + 1)
    for cell in of_property.cells:
        own = expected[summary.types[cell.type], of_property.parts[cell.part]]
        sums = [np.abs(own).sum(), np.square(own).sum(), np.abs(own).max()]
        assert [cell.absolute, cell.squared, cell.largest] == pytest.approx(sums, rel=1e-12)
        counts = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0]
        assert cell.count == len(own) == cell.histogram.sum()
        assert (np.abs(cell.histogram - counts) <= 3.0 * np.sqrt(counts + 1.0)).all()
    # the worst tenth of the points are the largest errors of all, and the others are a fair sample
    size, drawn = np.sort(np.abs(every)), np.abs(of_property.points.error)
    assert len(drawn) == 10_000
    np.testing.assert_array_equal(np.sort(drawn)[-1000:], size[-1000:])
    middle = np.median(size[:-1000])
    assert np.mean(drawn[:-1000] < middle) == pytest.approx(0.5, abs=0.02)
    kinds = [v["type"] for v in values]
    share = np.mean(of_property.points.type[:-1000] == summary.types.index("hot"))
    assert share == pytest.approx(kinds.count("hot") / len(kinds), abs=0.02)


def test_what_is_drawn_depends_neither_on_batches_nor_on_processes(large: tuple[Any, ...]) -> None:
    structures, compared, whole = large
    places = np.random.default_rng(0).permutation(len(structures))
    parts = [
        errors_of(structures, compared, ENERGIES, size, np.sort(places[k::3])) for k, size in enumerate((64, 1000, 333))
    ]
    sent = [pickle.loads(pickle.dumps(part)) for part in parts]  # as to another process
    together = SetErrors(whole.types, (1, 6, 8), np.zeros((1, 3)))
    for part in sent:
        together.merge(part)
    assert together.worst == whole.worst and together.compositions == whole.compositions
    assert together.of_structures.keys() == whole.of_structures.keys()
    for structure, found in whole.of_structures.items():
        assert together.of_structures[structure].errors == pytest.approx(found.errors, rel=1e-12)
    for name, tally in whole.tallies.items():
        other = together.tallies[name]
        np.testing.assert_array_equal(np.sort(other.values["lot"]), np.sort(tally.values["lot"]))
        for most in (10_000, MOST_VALUES):
            ours, theirs = (chosen_values([t], most, WORST_VALUES)[0] for t in (tally, other))
            np.testing.assert_array_equal(np.sort(ours["lot"]), np.sort(theirs["lot"]))
        np.testing.assert_array_equal(tally.limits, other.limits)
        assert other.cells.keys() == tally.cells.keys()
        for key, cell in tally.cells.items():
            assert other.cells[key].count == cell.count
            assert other.cells[key].squared == pytest.approx(cell.squared, rel=1e-12)
            limit = 0.4
            np.testing.assert_array_equal(
                other.cells[key].spread.histogram(limit, BINS).sum(), cell.spread.histogram(limit, BINS).sum()
            )
    assert together.errors_by_type().keys() == whole.errors_by_type().keys()


def test_many_compositions_are_not_told_apart() -> None:
    numbers = [[1 + k, 1 + (k * 7 + 3) % 80] for k in range(80)]
    structures = [
        Configuration(np.array(z), np.zeros((2, 3)), np.zeros((3, 3)), (False,) * 3, index=k)
        for k, z in enumerate(numbers)
    ]
    energies = {DEFAULT_HEAD: dict.fromkeys(range(1, 81), 0.0)}
    reference = np.arange(80.0)
    compared = {"energy": Compared(reference, reference + 1.0, np.arange(80))}
    parts = [errors_of(structures, compared, energies, 7, np.arange(80)[k::2]) for k in range(2)]
    assert all(part.compositions is not None for part in parts)
    parts[0].merge(parts[1])
    whole = errors_of(structures, compared, energies, 7)
    for errors in (parts[0], whole):
        assert errors.compositions is None and len(errors.tallies["energy"].cells) == 1
        summary = summarize_predictions([PredictedSet("x", "train", Made(structures), errors)])  # type: ignore[arg-type]
        (energy,) = summary.properties
        assert energy.parts == ("",) and [cell.count for cell in energy.cells] == [80] and not energy.points.part.any()


def test_rare_types_are_one() -> None:
    structures, compared = made(300)
    kinds = [f"t{k % 40 if k < 200 else k}" for k in range(300)]
    structures = [Configuration(**{**vars(c), "config_type": kind}) for c, kind in zip(structures, kinds, strict=True)]
    found = errors_of(structures, compared, ENERGIES, most_types=30)
    assert len(found.types) == 31 and found.types[-1] == OTHER
    assert list(found.errors_by_type())[-1] == OTHER
    summary = summarize_predictions([PredictedSet("x", "train", Made(structures), found)])  # type: ignore[arg-type]
    energy = summary.properties[0]
    assert len(summary.types) == 41 and summary.types[-1] == OTHER
    counts = np.bincount([c.type for c in energy.cells], [c.count for c in energy.cells])
    assert counts.sum() == 300 and counts[40] == 300 - 30 * 5


def batches(first: int, count: int, n_atoms: int = 12) -> Any:
    """Made batches of a thousand structures without any structure being made."""
    for start in range(first, first + count, 1000):
        rng = np.random.default_rng(start)
        places = np.arange(start, start + 1000)
        element = rng.integers(0, 3, 1000 * n_atoms)
        forces = rng.normal(size=(1000 * n_atoms, 3))
        atom = np.tile(np.arange(n_atoms), 1000)
        yield (
            batch_of(places, np.full(1000, n_atoms), element),
            rng.integers(0, 2, 1000),
            {
                "energy": Compared(rng.normal(size=1000), rng.normal(size=1000), places),
                "forces": Compared(forces, forces + rng.normal(size=forces.shape), np.repeat(places, n_atoms), atom),
            },
        )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set() -> None:
    errors = SetErrors(("a", "b"), (1, 6, 8), np.zeros((1, 3)))
    sizes = {}
    tracemalloc.start()
    try:
        for end in (40_000, 200_000):
            for batch, types, rows in batches(40_000 if sizes else 0, end - (40_000 if sizes else 0)):
                errors.add(batch, types, rows)
            errors.settle()
            sizes[end] = len(pickle.dumps(errors))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert errors.tallies["forces"].count == 200_000 * 36
    assert sizes[200_000] - sizes[40_000] < 3 * 160_000 and sizes[200_000] < 4e6
    assert peak < 60e6


@pytest.mark.parametrize("kept", [None, 3000])
def test_percentiles_and_histograms_of_a_spread(kept: int | None) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000) * 10.0 ** rng.uniform(-6, 1, 20_000)
    spread, other = Spread(12, kept), Spread(12, kept)
    for place, part in enumerate(np.array_split(values, 50)):
        (spread, other)[place % 2].add(part)
    both = percentile([spread, other], 95.0)
    spread.merge(other)
    assert spread.is_exact == (kept is None)
    exact = np.percentile(np.abs(values), 95.0)
    assert percentile([spread], 95.0) == both == (exact if kept is None else pytest.approx(exact, rel=2**-12))
    limit = 0.1
    counts = np.histogram(np.clip(values, -limit, limit), np.linspace(-limit, limit, BINS + 1))[0]
    found = spread.histogram(limit, BINS)
    assert found.sum() == len(values) and np.abs(found - counts).max() <= (0 if kept is None else 2)


def test_a_spread_of_what_is_not_a_number() -> None:
    spread = Spread(5)
    spread.add(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]))
    for _ in range(2):
        found = spread.histogram(2.0, 5)
        assert found.sum() == 6 and found[0] == 1 and found[2] >= 2
        spread.settle()
    assert percentile([spread], 0.0) == pytest.approx(0.0, abs=1e-300)
