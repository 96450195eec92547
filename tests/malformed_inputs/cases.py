"""How a case of the corpus is described, and the sound data that the cases spoil."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mace.structures.reading import ReadResult

Build = Callable[[Path], list[str]]
"""Writes files into a folder and returns the flags to train with; it may be called once per folder."""

Check = Callable[[ReadResult], None]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: Unique.
        outcome: ``refused``: exit status 2 and one sentence. ``noted``: accepted, with a sentence in the log. ``read``:
            accepted and read right. ``suspect``: only statistics of the data can notice; the first of `words` is the
            name of the finding.
        build: Makes it.
        words: What the sentence says.
        check: Of a case that is read right: what the training file must have become.
    """

    name: str
    outcome: Literal["refused", "noted", "read", "suspect"]
    build: Build
    words: tuple[str, ...] = ()
    check: Check | None = None


CASES: list[Case] = []
E0S = "--E0s={1: -13.6, 8: -432.0}"
CUBE = 'Lattice="8 0 0 0 8 0 0 0 8" '


def add(
    outcome: Literal["refused", "noted", "read", "suspect"],
    name: str,
    build: Build,
    *words: str,
    check: Check | None = None,
) -> None:
    """Add a case to the corpus."""
    assert all(case.name != name for case in CASES), f"{name} is there twice"
    CASES.append(Case(name, outcome, build, words, check))


def refused(name: str, *words: str) -> Callable[[Build], Build]:
    """Register a function as a case that must be refused with a sentence that has these words."""
    return lambda build: (add("refused", name, build, *words), build)[1]


def noted(name: str, *words: str) -> Callable[[Build], Build]:
    """Register a function as a case that is accepted with a sentence in the log."""
    return lambda build: (add("noted", name, build, *words), build)[1]


def read(name: str, check: Check | None = None) -> Callable[[Build], Build]:
    """Register a function as a case that is read right."""
    return lambda build: (add("read", name, build, check=check), build)[1]


def suspect(name: str, finding: str, *words: str) -> Callable[[Build], Build]:
    """Register a function as a case that only statistics can notice, by a finding with these words."""
    return lambda build: (add("suspect", name, build, finding, *words), build)[1]


def waters(count: int = 6, seed: int = 0) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Energies, positions and forces of distorted water molecules bound by springs."""
    rng = np.random.default_rng(seed)
    rest = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
    result = []
    for _ in range(count):
        moved = rng.normal(0.0, 0.05, (3, 3))
        moved -= moved.mean(0)
        result.append((-469.2 + 5.0 * float((moved**2).sum()), rest + moved, -10.0 * moved))
    return result


def frame(
    item: tuple[float, np.ndarray, np.ndarray],
    info: str = "",
    energy: str | None = None,
    properties: str = "species:S:1:pos:R:3:REF_forces:R:3",
    row: Callable[[str, np.ndarray, np.ndarray], str] | None = None,
) -> str:
    """One molecule as extended XYZ.

    Args:
        item: One of `waters`.
        info: More entries of the comment line.
        energy: Its entry for the energy; the true one under ``REF_energy`` if None.
        properties: Its columns.
        row: Writes the line of an atom from symbol, position and force.
    """
    value, positions, forces = item
    if row is None:
        row = plain_row
    entry = f"REF_energy={value:.8f}" if energy is None else energy
    lines = [row(symbol, p, f) for symbol, p, f in zip("OHH", positions, forces, strict=True)]
    return "\n".join(["3", f"{info} {entry} Properties={properties}".strip(), *lines]) + "\n"


def plain_row(symbol: str, position: np.ndarray, force: np.ndarray) -> str:
    """The line of an atom with its force."""
    return f"{symbol} " + " ".join(f"{x:.8f}" for x in (*position, *force))


def sound(count: int = 6, seed: int = 0, **changes: object) -> str:
    """Several molecules as extended XYZ."""
    return "".join(frame(item, **changes) for item in waters(count, seed))  # type: ignore[arg-type]


def spoilt(place: int = 2, **changes: object) -> str:
    """Six molecules, one of which is changed."""
    items = waters(6)
    return "".join(frame(item, **(changes if i == place else {})) for i, item in enumerate(items))  # type: ignore[arg-type]


def write(folder: Path, content: str | bytes, name: str = "train.xyz") -> str:
    """Write a file and return its path as text."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def trained_on(folder: Path, content: str | bytes, *flags: str, name: str = "train.xyz") -> list[str]:
    """Flags of a training on a file with this content, with E0s."""
    return [f"--train_file={write(folder, content, name)}", E0S, *flags]


def text_case(content: str | bytes, *flags: str, name: str = "train.xyz") -> Build:
    """A case made of one file."""
    return lambda folder: trained_on(folder, content, *flags, name=name)


def flags_case(*flags: str) -> Build:
    """A case made of sound data and flags."""
    return lambda folder: trained_on(folder, sound(), *flags)


def has_waters(count: int = 6) -> Check:
    """The training file must have become these molecules, with all their labels."""

    def check(result: ReadResult) -> None:
        assert len(result.configurations) == count
        for configuration, (energy, positions, forces) in zip(result.configurations, waters(count), strict=True):
            assert abs((configuration.energy or 0.0) - energy) < 1e-6
            assert configuration.forces is not None
            np.testing.assert_allclose(configuration.positions, positions, atol=1e-6)
            np.testing.assert_allclose(configuration.forces, forces, atol=1e-6)

    return check


def number_of(sequence: Sequence[object]) -> int:
    """Length of a sequence, for checks written as expressions."""
    return len(sequence)
