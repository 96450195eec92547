"""Which of two labels of the same name counts, where a file has them in several places?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mace.formats.frame import Frame
from mace.structures.labels import LabelKeys
from mace.structures.reading import ReadResult, read_configurations

FORCES = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])


def both(folder: Path, form: str = "traj", **info: object) -> str:
    """A file whose structure has labels in ``info``, in ``arrays`` and from a calculator."""
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.0]], info=dict(info), cell=[4.0, 4.0, 4.0], pbc=True)
    stress = 0.01 * np.arange(6)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=FORCES, stress=stress, dipole=[0.1, 0.2, 0.3])
    write(folder / f"a.{form}", atoms)
    return str(folder / f"a.{form}")


def places(result: ReadResult, name: str) -> dict[str, int]:
    return result.report.files[0].of(name).places


@pytest.mark.parametrize("keys", [LabelKeys(), LabelKeys(energy="energy")])
def test_info_wins_over_the_calculator(tmp_path: Path, keys: LabelKeys) -> None:
    result = read_configurations(both(tmp_path, energy=-7.0), keys)
    assert result.configurations[0].energy == -7.0 and places(result, "energy") == {"info": 1}
    np.testing.assert_array_equal(result.configurations[0].forces, FORCES)
    assert places(result, "forces") == {"calculator": 1}


def test_info_wins_for_stress_and_dipole_too(tmp_path: Path) -> None:
    stress = 0.02 * np.eye(3)
    (found,) = read_configurations(both(tmp_path, stress=stress.ravel(), dipole=[1.0, 2.0, 3.0])).configurations
    np.testing.assert_allclose(found.stress, stress)
    np.testing.assert_allclose(found.dipole, [1.0, 2.0, 3.0])
    assert found.energy == -1.0


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("info", "arrays", "results"), "info"),
        (("info", "arrays"), "info"),
        (("info", "results"), "info"),
        (("arrays", "results"), "arrays"),
        (("results",), "results"),
    ],
)
def test_the_order_of_the_places(
    there: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of structures in memory, because few file formats have a column beside a calculator."""
    values = {"info": 1.0 * FORCES, "arrays": 2.0 * FORCES, "results": 3.0 * FORCES}
    frame = Frame(np.array([8, 1]), np.array([[0, 0, 0], [0, 0, 1.0]]), np.zeros((3, 3)), (False, False, False))
    for place in there:
        getattr(frame, place)["forces"] = values[place]
    monkeypatch.setattr("mace.structures.sources.iterate_frames", lambda *part: iter([frame]))
    (tmp_path / "a.xyz").write_text("not read")
    result = read_configurations(tmp_path / "a.xyz")
    np.testing.assert_array_equal(result.configurations[0].forces, values[expected])
    assert places(result, "forces") == {"calculator" if expected == "results" else expected: 1}


def test_an_empty_value_in_info_leaves_it_to_the_calculator(tmp_path: Path) -> None:
    result = read_configurations(both(tmp_path, energy=None))
    assert result.configurations[0].energy == -1.0 and places(result, "energy") == {"calculator": 1}
