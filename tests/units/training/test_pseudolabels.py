"""Are labels by a foundation model its predictions, and are stored ones used exactly as long as they hold?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mace.errors import UserError
from mace.finetuning import pseudolabels
from mace.finetuning.foundation import Foundation
from mace.finetuning.pseudolabels import label_with_foundation
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.potential.potential import Potential, open_potential
from mace.structures.configuration import Configuration
from mace.training.memory import EdgeLimit

FOUNDATION = Foundation("the foundation", files.model().requires_grad_(False))
DIPOLES = Foundation(
    "dipoles",
    files.model(
        ModelPlan.model_validate(
            files.PLAN.model_dump() | {"model": "EnergyDipolesMACE", "readout_vectors": 2, "scale": 1.0, "shift": 0.0}
        )
    ).requires_grad_(False),
)
CONDITIONS = Foundation(
    "conditions",
    files.model(files.PLAN.model_copy(update={"conditions": (files.CHARGE,)})).requires_grad_(False),
)


def structure(name: str, seed: int, pbc: tuple[bool, bool, bool] = (False,) * 3, **labels: Any) -> Configuration:
    """A distorted molecule, in a cell where it is periodic."""
    atoms: Atoms = molecule(name)
    rng = np.random.default_rng(seed)
    positions = atoms.positions + rng.normal(0.0, 0.1, (len(atoms), 3))
    cell = np.diag([4.0, 4.5, 5.0]) if any(pbc) else np.zeros((3, 3))
    return Configuration(atoms.numbers.astype(np.int64), positions, cell, pbc, file="replay.xyz", index=seed, **labels)


BULK = (True, True, True)


def structures() -> list[Configuration]:
    """With and without labels, of all kinds of periodicity."""
    one = np.ones((3, 3))
    return [
        structure("H2O", 0),
        structure("CH4", 1, energy=3.0, forces=np.ones((5, 3)), dipole=np.ones(3)),
        structure("CH3OH", 2, BULK, energy=3.0, stress=one),
        structure("CO2", 3, BULK, energy=3.0),
        structure("H2O", 4, (True, True, False), virials=one),
        structure("CO", 5, BULK, stress=one, property_weights={"stress": 0.0, "energy": 0.0, "forces": 0.25}),
    ]


def predicted(potential: Potential, configuration: Configuration) -> Any:
    """What the model says of a structure alone, by another way."""
    (prediction,) = potential.evaluate([replace(configuration, stress=None)], stress=True)
    return prediction


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_labels_are_predictions(batch_size: int) -> None:
    given = structures()
    labeled = label_with_foundation(FOUNDATION, given, batch_size)
    potential = open_potential(FOUNDATION.model)
    for old, new in zip(given, labeled, strict=True):
        expected = predicted(potential, old)
        assert new.energy == pytest.approx(float(expected.energy[0]), abs=1e-10)
        assert new.forces is not None
        np.testing.assert_allclose(new.forces, expected.forces.numpy(), atol=1e-12)
        assert new.dipole is None, "a label of something else would be left"
        for name in ("stress", "virials"):
            if (found := getattr(new, name)) is not None:
                np.testing.assert_allclose(found, getattr(expected, name)[0].numpy(), atol=1e-12)
    assert [c.stress is not None for c in labeled] == [False, False, True, False, False, False]
    assert [c.virials is not None for c in labeled] == [False, False, False, False, True, False]
    assert given[1].energy == 3.0, "what was given is not changed"


def test_every_stress_is_of_what_repeats_in_three_directions() -> None:
    labeled = label_with_foundation(FOUNDATION, structures(), 4, every_stress=True)
    assert [c.stress is not None for c in labeled] == [False, False, True, True, False, True]
    assert [c.virials is not None for c in labeled] == [False, False, True, True, True, True]


def test_weights_stay_and_a_weight_of_zero_becomes_one() -> None:
    atoms = {"forces": np.array([0.0, 1.0]), "charges": np.zeros(2)}
    given = [
        structure("CO", 0, weight=0.3, config_type="slab", head="low", property_weights={"energy": 0.0, "forces": 0.5}),
        structure("CO", 1, atom_weights=atoms, forces=np.ones((2, 3))),
        structure("CO", 2, atom_weights={"forces": np.zeros(2)}),
        structure("CO", 3, BULK, stress=np.ones((3, 3)), property_weights={"stress": 0.2}),
        structure("CO", 4, BULK, property_weights={"stress": 0.0}),
    ]
    found = label_with_foundation(FOUNDATION, given, 5, every_stress=True)
    assert (found[0].weight, found[0].config_type, found[0].head) == (0.3, "slab", "low")
    assert found[0].property_weights == {"energy": 1.0, "forces": 0.5}
    assert found[1].atom_weights["forces"].tolist() == [0.0, 1.0] and not found[1].atom_weights["charges"].any()
    assert found[2].atom_weights == {} and found[2].has_weight("forces")
    assert found[3].property_weights == {"stress": 0.2} and found[4].property_weights == {"stress": 1.0}
    assert all(c.has_weight("energy") and c.has_weight("forces") for c in found)
    assert given[0].property_weights["energy"] == 0.0


def test_dipoles_depend_on_charges() -> None:
    charges = np.array([0.4, -0.4])
    given = [structure("CO", 0), structure("CO", 0, charges=charges)]
    labeled = label_with_foundation(DIPOLES, given, 2)
    assert labeled[0].dipole is not None and labeled[1].dipole is not None
    of_charges = charges @ given[0].positions
    np.testing.assert_allclose(labeled[1].dipole - labeled[0].dipole, of_charges, atol=1e-12)
    assert labeled[1].charges is charges and labeled[1].energy == labeled[0].energy


def test_conditions_are_given_to_the_model(tmp_path: Path) -> None:
    given = [structure("H2O", 0, conditions={"total_charge": np.array([float(charge)])}) for charge in (0, 1)]
    for folder in (None, tmp_path, tmp_path):
        energies = [c.energy for c in label_with_foundation(CONDITIONS, given, 1, folder=folder)]
        assert energies[0] != energies[1]


def test_a_small_memory_gives_the_same() -> None:
    whole = label_with_foundation(FOUNDATION, structures(), 100)
    parts = label_with_foundation(FOUNDATION, structures(), 100, limit=EdgeLimit(50, "labeling"))
    for one, other in zip(whole, parts, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-10)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)  # type: ignore[arg-type]


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of structures of every evaluation that is made."""
    made: list[int] = []
    predict = pseudolabels.predict

    def counted(model: MACE, graph: Any, **more: Any) -> Any:
        made.append(graph.n_structures)
        return predict(model, graph, **more)

    monkeypatch.setattr(pseudolabels, "predict", counted)
    monkeypatch.setattr(pseudolabels, "PER_FILE", 4)
    return made


def same(one: list[Configuration], other: list[Configuration]) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) if getattr(a, name) is not None else getattr(b, name) is None
        for a, b in zip(one, other, strict=True)
        for name in ("energy", "forces", "stress", "virials", "dipole")
    )


def test_a_second_time_nothing_is_evaluated(tmp_path: Path, evaluations: list[int]) -> None:
    first = label_with_foundation(FOUNDATION, structures(), 3, folder=tmp_path / "made")
    assert evaluations == [3, 1, 2] and len(list((tmp_path / "made").iterdir())) == 2
    again = label_with_foundation(FOUNDATION, structures(), 5, folder=tmp_path / "made")
    assert sum(evaluations) == 6 and same(first, again)
    # another choice of stresses, other labels and weights need no evaluation
    changed = [replace(c, energy=7.0, weight=2.0, head="other") for c in structures()]
    every = label_with_foundation(FOUNDATION, changed, 3, every_stress=True, folder=tmp_path / "made")
    assert sum(evaluations) == 6 and [c.energy for c in every] == [c.energy for c in first]
    assert [c.stress is not None for c in every] == [False, False, True, True, False, True]


def test_what_changed_is_evaluated_again(tmp_path: Path, evaluations: list[int]) -> None:
    first = label_with_foundation(FOUNDATION, structures(), 3, folder=tmp_path)
    for change in (
        {"positions": structures()[5].positions + [[0.0, 0.0, 1e-9], [0.0] * 3]},
        {"cell": np.diag([4.0, 4.5, 5.1])},
        {"pbc": (True, True, False)},
        {"atomic_numbers": np.array([6, 6])},
        {"charges": np.array([1.0, -1.0])},
    ):
        evaluations.clear()
        moved = [*structures()[:5], replace(structures()[5], stress=None, **change)]
        label_with_foundation(FOUNDATION, moved, 3, folder=tmp_path)
        assert evaluations == [2], f"{list(change)}: the second file, and not the first"
    evaluations.clear()
    other = MACE(FOUNDATION.plan, torch.float64)
    other.load_state_dict(FOUNDATION.model.state_dict())
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1e-12
    label_with_foundation(Foundation("the foundation", other), structures(), 3, folder=tmp_path)
    single = deepcopy(FOUNDATION.model).to_precision(torch.float32)
    label_with_foundation(Foundation("the foundation", single), structures(), 3, folder=tmp_path)
    shifted = MACE(FOUNDATION.plan.model_copy(update={"shift": 0.4}), torch.float64)
    shifted.load_state_dict(FOUNDATION.model.state_dict())
    found = label_with_foundation(Foundation("the foundation", shifted), structures(), 3, folder=tmp_path)
    assert sum(evaluations) == 18 and found[0].energy != first[0].energy


def damages(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name contents that a file must not be read as."""
    content = path.read_bytes()
    yield "torn", content[: len(content) // 2]
    yield "empty", b""
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 0x10
    yield "one bit", bytes(flipped)
    yield "text", b"no archive"
    yield "pickle", b"\x80\x04K\x01."
    other = next(each for each in path.parent.iterdir() if each != path)
    yield "another file's", other.read_bytes()


def test_damaged_files_are_made_anew(tmp_path: Path, evaluations: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    first = label_with_foundation(FOUNDATION, structures() + structures()[:2], 4, folder=tmp_path)
    path = max(tmp_path.iterdir())
    whole = path.read_bytes()
    for word, content in damages(path):
        path.write_bytes(content)
        caplog.clear()
        evaluations.clear()
        again = label_with_foundation(FOUNDATION, structures() + structures()[:2], 4, folder=tmp_path)
        assert same(first, again) and evaluations == [4], word
        assert f"{path} cannot be used" in caplog.text and "anew" in caplog.text, word
        assert path.read_bytes() == whole, f"{word}: it is whole again"


def test_what_was_done_before_an_interruption_is_kept(tmp_path: Path, evaluations: list[int]) -> None:
    class Stop(Exception):
        """Stands for a signal."""

    def interrupted(batches: Any) -> Iterator[int]:
        for number in batches:
            if number == 2:
                raise Stop
            yield number

    with pytest.raises(Stop):
        label_with_foundation(FOUNDATION, structures(), 2, folder=tmp_path, progress=interrupted)
    assert evaluations == [2, 2]
    label_with_foundation(FOUNDATION, structures(), 2, folder=tmp_path)
    assert evaluations == [2, 2, 2]


def test_progress_counts_what_is_computed(tmp_path: Path, evaluations: list[int]) -> None:
    asked: list[int] = []

    def progress(batches: Any) -> Any:
        asked.append(len(batches))
        return batches

    label_with_foundation(FOUNDATION, structures()[:4], 2, folder=tmp_path, progress=progress)
    label_with_foundation(FOUNDATION, structures(), 1, folder=tmp_path, progress=progress)
    assert asked == [2, 2]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    labeled = label_with_foundation(FOUNDATION, structures(), 4, folder=tmp_path / "file")
    assert labeled[0].energy is not None
    assert "labels by the foundation model cannot be kept" in caplog.text


def test_no_structures() -> None:
    assert label_with_foundation(FOUNDATION, [], 4) == []


def test_bad_input_is_named() -> None:
    strange = [structure("CO", 0), structure("HCl", 7)]
    with pytest.raises(UserError, match="replay.xyz: structure 7 contains Cl, which the foundation model the founda"):
        label_with_foundation(FOUNDATION, strange, 4)
    broken = MACE(FOUNDATION.plan, torch.float64)
    broken.load_state_dict(FOUNDATION.model.state_dict())
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match="replay.xyz: structure 0: the model gives .* NaN"):
        label_with_foundation(Foundation("broken", broken), strange[:1], 4)
