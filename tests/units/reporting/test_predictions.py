"""Do the numbers of the page equal those of the error tables, in every part of the data?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from predicted_sets import EnergiesOfHeads, predicted

from mace.reporting.metrics import ErrorAccumulator
from mace.reporting.predictions import BINS, MOST_SETS, PredictedSet, Predictions, summarize_predictions
from mace.reporting.set_errors import Compared
from mace.reporting.worst import MOST_LISTED, Suspect, worst_structures
from mace.structures.configuration import DEFAULT_HEAD, Configuration

ENERGIES = {1: -13.0, 8: -400.0}
MOLECULES = ([1, 1, 8], [1, 8], [8, 8])


@dataclass
class Raw:
    """A set with all its labels and predictions."""

    name: str
    role: str
    structures: list[Configuration]
    compared: dict[str, Compared]

    def added_up(self, energies: EnergiesOfHeads) -> PredictedSet:
        return predicted(self.name, self.role, self.structures, self.compared, energies)


def summary(sets: Sequence[Raw], energies: EnergiesOfHeads) -> Predictions:
    return summarize_predictions([one.added_up(energies) for one in sets])


def worst_of(sets: Sequence[Raw], energies: EnergiesOfHeads) -> dict[str, list[Suspect]]:
    return worst_structures([one.added_up(energies) for one in sets])


def raw_set(name: str, role: str, count: int, seed: int, stress: bool = False, head: str = DEFAULT_HEAD) -> Raw:
    rng = np.random.default_rng(seed)
    structures = []
    for index in range(count):
        numbers = np.array(MOLECULES[index % 3])
        kind = "cold" if index % 2 else "hot"
        positions = rng.normal(size=(len(numbers), 3))
        structures.append(
            Configuration(
                numbers,
                positions,
                np.eye(3),
                (True,) * 3,
                config_type=kind,
                head=head,
                file=f"{name}.xyz",
                index=index,
            )
        )
    sizes = np.array([c.n_atoms for c in structures])
    base = np.array([sum(ENERGIES[z] for z in c.atomic_numbers.tolist()) for c in structures])
    energies, forces = base + rng.normal(size=count), rng.normal(size=(sizes.sum(), 3))
    structure = np.repeat(np.arange(count), sizes)
    atom = np.concatenate([np.arange(size) for size in sizes])
    compared = {
        "energy": Compared(energies, energies + rng.normal(size=count), np.arange(count)),
        "forces": Compared(forces, forces + rng.normal(size=forces.shape), structure, atom),
    }
    if stress:
        values = rng.normal(size=(count, 3, 3))
        compared["stress"] = Compared(values, values + 0.1 * rng.normal(size=values.shape), np.arange(count))
    return Raw(name, role, structures, compared)


@pytest.fixture
def sets() -> list[Raw]:
    return [
        raw_set("train", "train", 30, 0, True),
        raw_set("valid", "valid", 9, 1),
        raw_set("t", "test", 14, 2),
    ]


NAMES = {"energy": "e_per_atom", "forces": "f", "stress": "stress"}


def test_errors_of_each_set_equal_those_of_the_tables(sets: list[Raw]) -> None:
    found = summary(sets, {DEFAULT_HEAD: ENERGIES})
    assert [errors.name for errors in found.properties] == ["energy", "forces", "stress"]
    for errors in found.properties:
        for place, one in enumerate(sets):
            if errors.name not in one.compared:
                continue
            compared, table = one.compared[errors.name], ErrorAccumulator()
            atoms = np.array([c.n_atoms for c in one.structures])[compared.structure]
            table.add(errors.name, compared.reference, compared.prediction, atoms)
            cells = [cell for cell in errors.cells if cell.set == place]
            count = sum(cell.count for cell in cells)
            metrics = table.result()
            assert np.sqrt(sum(c.squared for c in cells) / count) == pytest.approx(
                metrics[f"rmse_{NAMES[errors.name]}"]
            )
            assert sum(c.absolute for c in cells) / count == pytest.approx(metrics[f"mae_{NAMES[errors.name]}"])
            assert sum(int(c.histogram.sum()) for c in cells) == count == compared.reference.size


def test_elements_and_types_divide_forces(sets: list[Raw]) -> None:
    found = summary(sets, {DEFAULT_HEAD: ENERGIES})
    forces = found.properties[1]
    assert forces.parts == ("H", "O")
    one = sets[0]
    compared = one.compared["forces"]
    element = np.array(
        [one.structures[s].atomic_numbers[a] for s, a in zip(compared.structure, compared.atom, strict=True)]
    )
    kinds = np.array([one.structures[s].config_type for s in compared.structure])
    for part, number in ((0, 1), (1, 8)):
        for place, kind in enumerate(found.types):
            error = (compared.prediction - compared.reference)[(element == number) & (kinds == kind)]
            (cell,) = (c for c in forces.cells if (c.set, c.type, c.part) == (0, place, part))
            assert cell.count == error.size and cell.squared == pytest.approx(np.square(error).sum())
            assert cell.largest == pytest.approx(np.abs(error).max()) and cell.signed == pytest.approx(error.sum())


def test_energies_are_divided_by_composition(sets: list[Raw]) -> None:
    energy = summary(sets, {DEFAULT_HEAD: ENERGIES}).properties[0]
    assert energy.parts == ("H O", "O")
    assert sum(c.count for c in energy.cells if c.part == 1) == 10 + 3 + 4


def test_points_are_all_values_of_small_sets(sets: list[Raw]) -> None:
    energy = summary(sets, {DEFAULT_HEAD: ENERGIES}).properties[0]
    one = sets[2]
    chosen = energy.points.set == 2
    sizes = np.array([c.n_atoms for c in one.structures])
    errors = (one.compared["energy"].prediction - one.compared["energy"].reference) / sizes
    np.testing.assert_allclose(np.sort(energy.points.error[chosen]), np.sort(errors))
    assert np.abs(energy.points.reference).max() < 5.0  # without the isolated atoms
    assert energy.points.index[chosen].tolist() == list(range(14))


def test_outliers_lie_in_the_outermost_bins() -> None:
    reference = np.zeros(1000)
    prediction = np.full(1000, 0.01)
    prediction[0] = -50.0
    structures = [
        Configuration(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3, index=k) for k in range(1000)
    ]
    one = Raw("train", "train", structures, {"energy": Compared(reference, prediction, np.arange(1000))})
    (cell,) = summary([one], {DEFAULT_HEAD: {1: 0.0}}).properties[0].cells
    assert cell.histogram[0] == 1 and cell.histogram.sum() == 1000 and len(cell.histogram) == BINS


def test_the_worst_structures_are_found(sets: list[Raw]) -> None:
    worst = worst_of(sets, {DEFAULT_HEAD: ENERGIES})
    for name in ("energy", "forces", "stress"):
        values = [abs(suspect.errors[name]) for suspect in worst[name]]
        assert values == sorted(values, reverse=True)
    forces = sets[0].compared["forces"]
    lengths = np.linalg.norm(forces.prediction - forces.reference, axis=1)
    worst_of_training = next(suspect for suspect in worst["forces"] if suspect.role == "train")
    assert worst_of_training.errors["forces"] == pytest.approx(lengths.max())
    assert worst_of_training.configuration.index == forces.structure[lengths.argmax()]
    assert worst_of_training.force_errors is not None and worst_of_training.drawn
    assert np.linalg.norm(worst_of_training.force_errors, axis=1).max() == pytest.approx(lengths.max())
    assert len([s for s in worst["forces"] if s.role == "train"]) == 20


def test_a_label_missing_everywhere_leaves_no_property() -> None:
    one = raw_set("train", "train", 5, 0)
    without = Raw("train", "train", one.structures, {"forces": one.compared["forces"]})
    assert [errors.name for errors in summary([without], {DEFAULT_HEAD: ENERGIES}).properties] == ["forces"]
    assert list(worst_of([without], {DEFAULT_HEAD: ENERGIES})) == ["forces"]


def test_sets_of_heads_stay_apart_where_there_are_many() -> None:
    """Thirty heads have more sets than are told apart; those of one role and head are added up together."""
    heads = [f"h{number}" for number in range(30)]
    sets = [
        raw_set(f"{role}{k}_{head}", role, 6, 7, head=head)
        for role, copies in (("train", 1), ("valid", 1), ("test", 2))
        for head in heads
        for k in range(copies)
    ]
    energies = {head: {z: e + number for z, e in ENERGIES.items()} for number, head in enumerate(heads)}
    found = summary(sets, energies)
    assert len(found.sets) == len(found.heads) == MOST_SETS + (30 - MOST_SETS) + 30 + 30
    assert found.sets[-1] == ("all others of h29", "test") and found.heads[-1] == "h29"
    (energy, forces) = found.properties
    for number, (_, role) in enumerate(found.sets):
        assert sum(cell.count for cell in energy.cells if cell.set == number) == (12 if role == "test" else 6)
    assert forces.points.set.max() == len(found.sets) - 1
    # of each head its own E0s are subtracted
    first, second = (energy.points.reference[energy.points.set == number] for number in (0, 1))
    np.testing.assert_allclose(np.sort(first) - np.sort(second), 1.0)
    worst = worst_of(sets, energies)["forces"]
    counts = Counter((suspect.role, suspect.head) for suspect in worst)
    assert set(counts.values()) == {4} and len(counts) == 90 and len(worst) <= MOST_LISTED


def test_every_head_has_a_list_of_its_worst_structures() -> None:
    sets = [raw_set(f"train_{head}", "train", 30, seed, head=head) for seed, head in enumerate("ab")]
    energies = {"a": ENERGIES, "b": ENERGIES}
    sets[1].compared["forces"].prediction[:] = sets[1].compared["forces"].reference  # no errors at all
    worst = worst_of(sets, energies)["forces"]
    assert Counter(suspect.head for suspect in worst) == {"a": 20, "b": 20}
