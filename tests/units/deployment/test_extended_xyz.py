"""Is the text of a structure the one ASE writes?"""

from __future__ import annotations

import io

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io.extxyz import write_xyz

import mace.evaluation.extended_xyz as extended_xyz
from mace.evaluation.extended_xyz import frame_texts
from mace.formats.frame import Frame


def _of_ase(atoms: Atoms) -> str:
    stream = io.StringIO()
    write_xyz(stream, [atoms], write_results=False)
    return stream.getvalue()


def _structures() -> dict[str, Atoms]:
    rng = np.random.default_rng(0)
    plain = ase.build.molecule("CH3OH")
    rich = ase.build.bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    rich.pbc = (True, False, True)
    rich.arrays.update(
        charges=rng.normal(size=4),
        forces=rng.normal(size=(4, 3)) * 1e4,
        tags=np.array([1, -2, 300, 4]),
        single=np.arange(4.0)[:, None],
        pairs=np.arange(8).reshape(4, 2),
        flag=np.array([True, False, True, False]),
        axes=rng.random((4, 3)) < 0.5,
        words=np.array(["a", "bcd", "é", "f"]),
        half=np.arange(4, dtype=np.float32) / 3,
    )
    rich.info.update(energy=-1.5, note="two words", table=np.eye(3), numbers=[1, 2], on=True, **{"odd key": "x=1"})
    fixed = plain.copy()
    fixed.set_constraint(FixAtoms([0]))
    nothing = Atoms(cell=np.eye(3))
    unusual = plain.copy()
    unusual.arrays["objects"] = np.array(["x", "yz", "w", "v", "u", "t"], dtype=object)
    return {
        "plain": plain,
        "rich": rich,
        "fixed": fixed,
        "one atom": Atoms("H"),
        "no atom": nothing,
        "objects": unusual,
    }


@pytest.mark.parametrize("name", _structures())
def test_it_is(name: str) -> None:
    assert frame_texts([Frame.of_atoms(_structures()[name])]) == [_of_ase(_structures()[name])]


def test_together_as_alone() -> None:
    """Structures with the same columns are written together, in their order."""
    structures = [atoms for _ in range(3) for atoms in _structures().values() for _ in range(2)]
    assert frame_texts([Frame.of_atoms(atoms) for atoms in structures]) == list(map(_of_ase, structures))
    assert frame_texts([]) == []


def test_ase_is_not_asked_for_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(extended_xyz, "write_xyz")
    for name in ("plain", "rich", "one atom"):
        frame_texts([Frame.of_atoms(_structures()[name])])


def test_what_the_format_cannot_hold_is_refused_as_by_ase() -> None:
    atoms = Atoms("HH")
    atoms.arrays["tensor"] = np.zeros((2, 3, 3))
    with pytest.raises((ValueError, TypeError, KeyError)):
        _of_ase(atoms)
    with pytest.raises((ValueError, TypeError, KeyError)):
        frame_texts([Frame.of_atoms(atoms)])
