"""Whatever ASE writes is read back with the labels it was given."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedLine
from ase.io import write
from hypothesis import given, settings

from mace.structures.configuration import Configuration
from mace.structures.reading import read_configurations
from mace.structures.stress import full_tensor

PRINTED = 0.51e-8
"""Columns of extended XYZ have eight decimals."""

numbers = st.floats(-1e3, 1e3, allow_nan=False)
letters = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
words = letters.filter(lambda word: not word.endswith(("=", "\\")))  # ASE writes these without quotes; they are refused


def vectors(count: int) -> st.SearchStrategy[np.ndarray]:
    rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=count, max_size=count)
    return rows.map(lambda values: np.array(values, dtype=np.float64))


@st.composite
def structures(draw: st.DrawFn) -> tuple[Atoms, dict[str, Any]]:
    """A structure with labels in a calculator or under ``REF_`` names, and what they are."""
    n_atoms = draw(st.integers(1, 5))
    z = draw(st.lists(st.integers(1, 118), min_size=n_atoms, max_size=n_atoms))
    atoms = Atoms(z, positions=draw(vectors(n_atoms)) + np.arange(3.0 * n_atoms).reshape(-1, 3))
    pbc = draw(st.sampled_from([(False,) * 3, (True,) * 3, (True, True, False)]))
    if any(pbc):
        skew = draw(vectors(3)) / 1e3
        atoms.set_cell(np.diag([7.0, 8.0, 9.0]) + skew)
        atoms.pbc = pbc
    labels: dict[str, Any] = {"energy": draw(st.floats(-1e6, 1e6))}
    if draw(st.booleans()):
        labels["forces"] = draw(vectors(n_atoms))
    if all(pbc) and draw(st.booleans()):
        labels["stress"] = draw(vectors(2)).ravel()
    if draw(st.booleans()):
        atoms.calc = SinglePointCalculator(atoms, **labels)
    else:
        for name, value in labels.items():
            place = atoms.arrays if name == "forces" else atoms.info
            place[f"REF_{name}"] = full_tensor(value) if name == "stress" else value
    if draw(st.booleans()):
        atoms.set_constraint(draw(st.sampled_from([FixAtoms([0]), FixedLine(0, [1, 0, 0])])))
    if draw(st.booleans()):
        atoms.info["config_type"] = draw(words.filter(lambda word: word.lower() not in ("isolatedatom",)))
    if draw(st.booleans()):
        atoms.info["note"] = draw(words)
    return atoms, labels


def compare(found: Configuration, atoms: Atoms, labels: dict[str, Any], tolerance: float) -> None:
    """Make sure a configuration is a structure with its labels, and has no others."""
    np.testing.assert_array_equal(found.atomic_numbers, atoms.numbers)
    np.testing.assert_allclose(found.positions, atoms.positions, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(found.cell, atoms.cell.array, rtol=0.0, atol=tolerance)
    assert found.pbc == tuple(atoms.pbc)
    assert found.energy == labels["energy"]
    for name in ("forces", "stress"):
        value = getattr(found, name)
        assert (value is None) == (name not in labels)
        if value is not None:
            expected = full_tensor(labels[name]) if name == "stress" else labels[name]
            np.testing.assert_allclose(value, expected, rtol=0.0, atol=tolerance)
    assert found.dipole is None and found.charges is None and found.weight == 1.0


@pytest.mark.parametrize("suffix", ["xyz", "xyz.gz"])
@settings(deadline=None, max_examples=60)
@given(items=st.lists(structures(), min_size=1, max_size=3))
def test_extended_xyz_is_read_back_to_the_printed_digits(
    items: list[tuple[Atoms, dict[str, Any]]], suffix: str
) -> None:
    for item in items:  # one file each: in one file, some structures with REF_ names would settle it for all
        check([item], f"all.{suffix}", PRINTED, "extxyz")


@settings(deadline=None, max_examples=60)
@given(item=structures())
def test_trajectories_are_read_back_bit_for_bit(item: tuple[Atoms, dict[str, Any]]) -> None:
    atoms, labels = item
    if atoms.calc is None:  # a trajectory has no place for columns of other names
        atoms = atoms.copy()
        for name in labels:
            (atoms.arrays if name == "forces" else atoms.info).pop(f"REF_{name}")
        atoms.calc = SinglePointCalculator(atoms, **labels)
    check([(atoms, labels)], "all.traj", 0.0, "traj")


@pytest.mark.parametrize(("suffix", "format"), [("json", "json"), ("db", "db")])
@settings(deadline=None, max_examples=10)
@given(item=structures().filter(lambda item: item[0].calc is not None))
def test_databases_are_read_back_bit_for_bit(item: tuple[Atoms, dict[str, Any]], suffix: str, format: str) -> None:
    atoms, labels = item
    check([(atoms, labels)], f"all.{suffix}", 0.0, format)


def check(items: list[tuple[Atoms, dict[str, Any]]], name: str, tolerance: float, format: str) -> None:
    """Write structures, read them, compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path, [atoms for atoms, _ in items], format=format)
        result = read_configurations(str(path))
        assert len(result.configurations) == len(items) and not result.isolated_atoms
        for found, (atoms, labels) in zip(result.configurations, items, strict=True):
            compare(found, atoms, labels, tolerance)
