"""HDF5 in the layouts of mace-torch: labels, weights, heads and types of structures, and what is wrong with files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mace.errors import UserError
from mace.formats.reading import count_frames, iterate_frames
from mace.structures.configuration import Configuration
from mace.structures.labels import LabelKeys
from mace.structures.reading import read_configurations, read_sources
from mace.structures.sources import FileUnits, Source

NUMBERS = np.array([8, 1, 1])
POSITIONS = np.arange(9.0).reshape(3, 3)
FORCES = 0.1 * np.arange(9.0).reshape(3, 3)
NAMES = ("energy", "forces", "stress", "virials", "dipole", "charges", "polarizability", "head")


def put(group: h5py.Group, entries: dict[str, Any]) -> None:
    for name, value in entries.items():
        group[name] = "None" if value is None else value


def write_recent(file: str, structures: list[dict[str, Any]], batches: tuple[int, ...] = (0,)) -> str:
    """Write structures as version 0.3.16 does: ``more`` and ``weights`` of each beside its labels."""
    with h5py.File(file, "w") as target:
        for batch in batches:
            group = target.create_group(f"config_batch_{batch}")
            for place, given in enumerate(structures):
                labels, weights = dict(given), given.get("weights", {})
                weights = {name: weights.get(name, float(labels.get(name) is not None)) for name in NAMES}
                more = {"config_type": "Default", "weight": 1.0, "cell": np.eye(3), "pbc": np.array([True] * 3)}
                structure = group.create_group(f"config_{place}")
                put(structure, {"atomic_numbers": NUMBERS, "positions": POSITIONS, **more, **given.get("more", {})})
                put(structure.create_group("properties"), {name: labels.get(name) for name in NAMES})
                put(structure.create_group("property_weights"), weights)
    return file


def write_earlier(file: str, structures: list[dict[str, Any]], batch: int = 0) -> str:
    """Write structures as earlier versions do: what is missing is zero and has a weight of zero."""
    zeros = {"energy": 0.0, "forces": np.zeros((3, 3)), "stress": np.zeros(6), "virials": np.zeros((3, 3))}
    with h5py.File(file, "w") as target:
        group = target.create_group(f"config_batch_{batch}")
        for place, given in enumerate(structures):
            structure = group.create_group(f"config_{place}")
            put(structure, {"atomic_numbers": NUMBERS, "positions": POSITIONS, "cell": None, "pbc": None})
            put(structure, {"dipole": np.zeros(3), "charges": np.zeros(3), "config_type": "wet", "weight": 2.0})
            put(structure, {"head": given.get("head", "Default")})
            put(structure, {name: given.get(name, zero) for name, zero in zeros.items()})
            put(structure, {f"{name}_weight": float(name in given) for name in zeros})
    return file


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"energy": -7.5}, lambda c: c.energy == -7.5 and c.forces is c.stress is c.dipole is c.charges is None),
        ({"forces": FORCES}, lambda c: c.energy is None and np.array_equal(c.forces, FORCES)),
        ({"stress": np.arange(6.0)}, lambda c: c.stress[1, 2] == 3.0 and c.virials[1, 2] == -3.0),
        ({"virials": np.eye(3)}, lambda c: np.array_equal(c.virials, np.eye(3))),
        ({"dipole": np.arange(3.0)}, lambda c: np.array_equal(c.dipole, [0, 1, 2])),
        ({"charges": np.arange(3.0)}, lambda c: np.array_equal(c.charges, [0, 1, 2])),
        ({"polarizability": np.eye(3)}, lambda c: np.array_equal(c.polarizability, np.eye(3))),
        ({"more": {"config_type": "wet", "weight": 2.5}}, lambda c: (c.config_type, c.weight) == ("wet", 2.5)),
        ({"energy": -1.0, "weights": {"energy": 0.5}}, lambda c: c.property_weights == {"energy": 0.5}),
        ({"energy": -1.0, "weights": {"energy": 0.0}}, lambda c: c.energy == -1.0 and not c.has_weight("energy")),
        ({"energy": -1.0}, lambda c: not c.property_weights and c.weight == 1.0 and c.pbc == (True, True, True)),
        ({"head": "", "energy": 0.0}, lambda c: c.head == "Default" and c.energy == 0.0),
        ({"more": {"pbc": None, "cell": None}}, lambda c: c.pbc == (False,) * 3 and not c.cell.any()),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_a_structure_says(given: dict[str, Any], check: Callable[[Configuration], bool]) -> None:
    result = read_configurations(write_recent("train_0.h5", [given, {"energy": -1.0}]))
    assert check(result.configurations[0])
    assert np.array_equal(result.configurations[0].positions, POSITIONS)
    assert result.configurations[0].atomic_numbers.tolist() == NUMBERS.tolist()
    assert [c.index for c in result.configurations] == [0, 1]


def test_missing_and_zero_are_told_apart_in_earlier_files() -> None:
    given = [{"energy": -2.0}, {"energy": 0.0, "forces": np.zeros((3, 3))}, {"stress": np.ones(6)}]
    first, second, third = read_configurations(write_earlier("train_3.h5", given, batch=3)).configurations
    assert (first.energy, first.forces, first.stress, first.virials, first.dipole, first.charges) == (-2.0, *[None] * 5)
    assert second.energy == 0.0 and np.array_equal(second.forces, np.zeros((3, 3)))
    assert third.energy is None and third.forces is None and third.stress is not None
    assert (first.config_type, first.weight, first.head, first.pbc) == ("wet", 2.0, "Default", (False,) * 3)


def test_batches_follow_each_other() -> None:
    structures = [{"energy": -1.0 * place} for place in range(11)]  # config_10 comes after config_9, not after config_1
    file = write_recent("train.hdf5", structures, batches=(0, 2, 10))
    assert count_frames(file) == 33
    energies = [-1.0 * place for place in range(11)] * 3
    for start, stop in [(0, None), (0, 3), (9, 14), (21, 40), (32, 33), (11, 22)]:
        assert [frame.info["energy"] for frame in iterate_frames(file, start, stop)] == energies[start:stop]


def test_keys_are_those_of_properties_whatever_was_given() -> None:
    file = write_recent("train.h5", [{"energy": -1.0, "forces": FORCES, "dipole": np.ones(3)}])
    keys = LabelKeys(energy="dft_energy", forces="REF_forces", dipole="")
    (configuration,) = read_configurations(file, keys, units=FileUnits("Hartree", "bohr")).configurations
    assert configuration.energy == pytest.approx(-27.211386) and configuration.dipole is None
    np.testing.assert_allclose(configuration.forces, FORCES * 51.422067, rtol=1e-6)


def test_weights_of_types_multiply_those_of_the_file() -> None:
    file = write_recent("train.h5", [{"energy": -1.0, "more": {"config_type": "wet", "weight": 3.0}}])
    result = read_configurations(file, config_type_weights={"wet": 2.0})
    assert result.configurations[0].weight == 6.0
    assert any("multiplies the weights that this file holds" in note for note in result.report.notes)
    assert not read_configurations(file, config_type_weights={"Default": 1.0}).report.notes


@pytest.mark.parametrize("write", [write_recent, write_earlier])
def test_structures_go_to_the_head_they_name(write: Callable[..., str]) -> None:
    file = write("train.h5", [{"energy": -1.0, "head": "low"}, {"energy": -2.0, "head": "high"}])
    for head, energy in [("low", -1.0), ("high", -2.0)]:
        found = read_sources([Source(file)], head=head, head_key="level", heads=("low", "high")).configurations
        assert [(c.head, c.energy) for c in found] == [(head, energy)]
    with pytest.raises(UserError, match="train.h5: structure 1 is for the head 'high'"):
        read_sources([Source(file)], head="low", head_key="head", heads=("low", "pbe"))


def test_a_part_without_structures_is_no_mistake() -> None:
    parts = [write_recent("train_0.h5", [{"energy": -1.0}]), write_recent("train_1.h5", [])]
    assert len(read_configurations(parts).configurations) == 1


def spoil(name: str, change: Callable[[bytes], bytes]) -> None:
    Path(name).write_bytes(change(Path(name).read_bytes()))


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (
            lambda: spoil("train.h5", lambda data: data[: len(data) // 2]),
            r"not a readable HDF5 file \(OSError: .*truncated",
        ),
        (lambda: spoil("train.h5", lambda data: b"PK" + data[2:]), r"not a readable HDF5 file \(OSError: .*signature"),
        (lambda: h5py.File("train.h5", "w").create_group("config_0"), "not one of mace_prepare_data of mace-torch"),
        (lambda: h5py.File("train.h5", "a").pop("config_batch_0/config_1/positions"), "structure 1 cannot be read"),
        (lambda: h5py.File("train.h5", "a").pop("config_batch_0/config_1"), "structure 1 cannot be read"),
        (lambda: spoil("train.h5", lambda data: b""), "the file is empty"),
    ],
    ids=["truncated", "no HDF5", "another layout", "an array is missing", "a structure is missing", "empty"],
)
def test_damaged_files_are_named(spoiled: Callable[[], object], message: str) -> None:
    write_recent("train.h5", [{"energy": -1.0}] * 3)
    spoiled()
    with pytest.raises(UserError, match=f"train.h5: .*{message}"):
        read_configurations("train.h5")


def test_the_way_out_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    write_recent("train.h5", [{"energy": -1.0}])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"train.h5: .* h5py; install it with pip install 'mace-train\[hdf5\]'"):
        read_configurations("train.h5")
