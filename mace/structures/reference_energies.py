"""Reference energies E0: the energy of an isolated atom of each element, to which the model adds what it learns."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mace.elements import ElementTable, atomic_number, chemical_symbol
from mace.errors import UserError
from mace.formats.comment_line import first_repeated
from mace.structures.collection import collected
from mace.structures.configuration import Configuration
from mace.structures.statistics import interaction_energies_per_atom

HIGHEST_ATOMIZATION = 20.0
"""eV per atom; no substance is bound more strongly, carbon has 7 and tungsten 9."""

LOWEST_ATOMIZATION = -1.0
"""eV per atom; data that are on average less stable than isolated atoms have wrong E0s."""

SAME_ENERGY = 1.0e-3
"""eV; what is typed with a few digits less is not another energy."""

_FOUNDATION = "the foundation model"

FITTED = ("average", "estimated")
"""Words of ``--E0s`` that ask for a fit, of energies that are not known better."""

Fit = Callable[[Mapping[int, float]], tuple[dict[int, float], list[str]]]
"""From the energies of some elements, which are kept, to those of all, with warnings."""


@dataclass(frozen=True)
class Residual:
    """What the reference energies alone leave unexplained in the structures of one ``config_type``.

    Attributes:
        config_type: The type.
        structures: Number of its structures with an energy of nonzero weight.
        rms: Root mean square of (E - sum of E0) / atoms, eV.
        largest: The largest absolute value of the same quantity, eV.
        where: The structure with this largest value.
    """

    config_type: str
    structures: int
    rms: float
    largest: float
    where: str


@dataclass(frozen=True)
class ReferenceEnergies:
    """The reference energy of every element, and where it comes from.

    Attributes:
        energies: eV by atomic number, in ascending order of atomic numbers; exactly the elements asked for.
        source: ``IsolatedAtom frames``, ``command line``, ``file <name>``, ``the foundation model``, or how they were
            fitted.
        unused: Energies from the same source of elements that were not asked for, eV by atomic number.
        warnings: Warnings about what is probably wrong.
        overruled: Where isolated atoms and ``--E0s`` disagree: which was used, and how to get the other.
        residuals: By ``config_type``, if the energies were fitted; empty otherwise.
    """

    energies: dict[int, float]
    source: str
    unused: Mapping[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    overruled: tuple[str, ...] = ()
    residuals: tuple[Residual, ...] = ()


def resolve_reference_energies(
    E0s: str | Mapping[Any, float] | None,
    isolated_atoms: Sequence[Configuration],
    configurations: Sequence[Configuration],
    elements: ElementTable,
    foundation: Mapping[int, float] | None = None,
    fit: Fit | None = None,
) -> ReferenceEnergies:
    """Find the energy of every element as an isolated atom.

    Energies given as numbers, and those of a foundation model if requested, take precedence over isolated atoms.
    Isolated atoms take precedence over a fit, which is only used for elements that have none.

    Args:
        E0s: ``None`` or ``"isolated"`` to use the isolated atoms of the data; ``"average"`` to fit the labeled
            energies; ``"estimated"`` for ``fit``; ``"foundation"`` for ``foundation``; a mapping from symbols or atomic
            numbers to eV, such a mapping as text, or the name of a JSON file that contains one.
        isolated_atoms: Frames of isolated atoms in the training data.
        configurations: Training structures.
        elements: The elements that need an energy.
        foundation: Energies of the foundation model, if one is fine-tuned, eV by atomic number.
        fit: Computes the estimates; without it, the labeled energies are fitted.

    Raises:
        UserError: If an element has no energy, or ``E0s`` cannot be understood.
    """
    word = E0s.strip().lower() if isinstance(E0s, str) else None
    warnings: list[str] = []
    overruled: list[str] = []
    is_average = False
    if E0s is None or word == "isolated":
        energies, source = _from_isolated_atoms(isolated_atoms, elements), "IsolatedAtom frames"
        if missing := _names_missing(energies, elements):
            where = "the IsolatedAtom frames" if isolated_atoms else "the training data"
            words = "as 'average' (least squares)" if foundation is None else (
                "as 'foundation' (those of the foundation model, for data of the same method), 'estimated' (those, "
                "fitted to the data) or 'average' (least squares)"
            )  # fmt: skip
            raise UserError(
                f"The reference energies (E0s) of {missing} are not in {where}; add a frame of each as an isolated "
                "atom (config_type=IsolatedAtom) to the training file, or give --E0s as '{1: -13.6, ...}' by atomic "
                f"number, as a JSON file, or {words}."
            )
    elif word in FITTED:
        energies, source = _from_isolated_atoms(isolated_atoms, elements, only_labeled=True), "IsolatedAtom frames"
        overruled = _frames_before_fit(isolated_atoms, energies, elements, str(word))
        if _names_missing(energies, elements):
            kind = "least squares" if fit is None else "estimates by the foundation model"
            source, is_average = f"{source} and {kind}" if energies else kind, fit is None
            fit = fit or partial(fit_reference_energies, configurations, elements, asked=str(word))
            energies, warnings = fit(energies)
    else:
        energies, source = _typed(E0s, foundation, elements)
        overruled = _typed_before_frames(isolated_atoms, energies, source)
    unused = {number: energy for number, energy in sorted(energies.items()) if number not in elements}
    wanted = {number: energies[number] for number in elements}
    residuals: tuple[Residual, ...] = ()
    if is_average:
        residuals = fit_residuals(configurations, wanted)
    else:  # after a fit the mean is zero, whatever the data are
        warnings = [*warnings, *_judge(wanted, configurations)]
    return ReferenceEnergies(wanted, source, unused, tuple(warnings), tuple(overruled), residuals)


def _typed(
    E0s: str | Mapping[Any, float], foundation: Mapping[int, float] | None, elements: ElementTable
) -> tuple[dict[int, float], str]:
    """Return energies given as a mapping, text, a JSON file or a foundation model, and where they come from."""
    if E0s == "foundation" and foundation is not None:
        require_foundation(foundation, elements, E0s)
        return {number: foundation[number] for number in elements}, _FOUNDATION
    given, file = E0s, ""
    if isinstance(E0s, str):
        text = E0s.strip()
        if text.endswith(".json") or (text and not text.startswith("{") and Path(text).is_file()):
            file = text
            try:
                given = json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=_unrepeated)
            except OSError as error:
                raise UserError(f"{file}: this file, given as --E0s, cannot be opened ({error.strerror}).") from error
            except ValueError as error:
                raise UserError(f"{file}: this file, given as --E0s, is not JSON ({error}).") from error
        for parse in (ast.literal_eval, json.loads):
            if not file and not isinstance(given, Mapping):
                with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                    given = parse(text)
        if not file and not isinstance(given, Mapping):
            raise UserError(
                f"--E0s is {E0s!r}, which is neither 'isolated', 'average', 'foundation' or 'estimated', nor a JSON "
                "file, nor a mapping such as '{1: -13.6, 8: -432.1}'."
            )
    where = file or "--E0s"
    if not isinstance(given, Mapping) or not given:
        raise UserError(f'{where}: the reference energies are to map elements to eV, such as {{"H": -13.6}}.')
    energies: dict[int, float] = {}
    for element, energy in given.items():
        number = atomic_number(element)
        if isinstance(energy, bool) or not isinstance(energy, (int, float, np.number)) or not math.isfinite(energy):
            raise UserError(f"{where}: the reference energy of {element} is {energy!r}; it must be a number of eV.")
        if number in energies:
            raise UserError(f"{where}: {chemical_symbol(number)} has two reference energies; leave one out.")
        energies[number] = float(energy)
    if missing := _names_missing(energies, elements):
        where = f"--E0s (file {file})" if file else "--E0s"
        raise UserError(f"{where} gives no reference energy for {missing}, which the training data contain; add it.")
    return energies, f"file {file}" if file else "command line"


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing repeated keys, of which the last would otherwise silently win."""
    if (twice := first_repeated([key for key, _ in pairs])) is not None:
        raise ValueError(f"the key {twice!r} comes twice")
    return dict(pairs)


def require_foundation(foundation: Mapping[int, float], elements: ElementTable, word: str) -> None:
    """Check that a foundation model has the reference energies of all elements.

    Raises:
        UserError: If it does not.
    """
    if missing := _names_missing(foundation, elements):
        raise UserError(
            f"--E0s={word}: the foundation model has no energy of {missing}; give the energies of all elements as a "
            "dictionary, or use --E0s=average."
        )


def _frames_before_fit(
    isolated_atoms: Sequence[Configuration], energies: Mapping[int, float], elements: ElementTable, word: str
) -> list[str]:
    """Report that isolated atoms are used although a fit was requested."""
    sentences = []
    if known := [chemical_symbol(number) for number in elements if number in energies]:
        fitted = _names_missing(energies, elements)
        rest = f"; those of {fitted} are fitted, with these held fixed" if fitted else ""
        sentences.append(
            f"{_files_of(isolated_atoms)}: the E0s of {', '.join(known)} are those of the IsolatedAtom frames, which "
            f"come before --E0s={word}{rest}; take the frames out of the training file to have all fitted, or give "
            "--E0s=isolated to go without this warning."
        )
    for atom in isolated_atoms:
        number = int(atom.atomic_numbers[0])
        if atom.energy is None and number in elements and number not in energies:
            symbol = chemical_symbol(number)
            sentences.append(
                f"{atom.where()} is an isolated {symbol} atom without an energy, so the E0 of {symbol} is fitted; "
                "label it, or name the key with --energy_key."
            )
    return sentences


def _typed_before_frames(
    isolated_atoms: Sequence[Configuration], energies: Mapping[int, float], source: str
) -> list[str]:
    """Report where the energies of isolated atoms differ from those that were given."""
    different: dict[int, str] = {}
    for atom in _neutral_first(isolated_atoms):
        number = int(atom.atomic_numbers[0])
        if atom.energy is not None and abs(energies.get(number, atom.energy) - atom.energy) > SAME_ENERGY:
            words = f"{chemical_symbol(number)} {energies[number]:.10g} eV (the frame: {atom.energy:.10g})"
            different.setdefault(number, words)
    if not different:
        return []
    told = "the E0s that --E0s gives are taken though the IsolatedAtom frames have others:"
    way_out = "leave out --E0s to take those of the frames"
    if source == _FOUNDATION:  # by default, for the structures it was trained on
        told = "the E0s of the foundation model are taken though the IsolatedAtom frames have others:"
        way_out = "the labels should be of the method it was trained with"
    return [f"{_files_of(isolated_atoms)}: {told} {', '.join(different.values())}; {way_out}."]


def _files_of(isolated_atoms: Sequence[Configuration]) -> str:
    return " and ".join(dict.fromkeys(atom.file or "the training data" for atom in isolated_atoms))


def fit_reference_energies(
    configurations: Sequence[Configuration],
    elements: ElementTable,
    known: Mapping[int, float] | None = None,
    asked: str = "average",
) -> tuple[dict[int, float], list[str]]:
    """Fit the reference energies to the labeled energies.

    This is a least-squares fit over the structures with an energy, each with its weight (`Configuration.weight` times
    that of the energy; zero leaves it out). If there are several solutions, the one with the smallest norm is chosen:
    the limit of ridge regression as its penalty vanishes.

    Args:
        configurations: Structures.
        elements: The elements that need an energy.
        known: Energies that are kept fixed, eV by atomic number; the others are fitted to the remainder.
        asked: The value of ``--E0s`` that requested the fit, for messages.

    Returns:
        The energies in eV by atomic number, and a warning if the compositions leave some of them undetermined.

    Raises:
        UserError: If no structure has an energy of nonzero weight.
    """
    structures = collected(configurations)
    labeled = structures.take(np.flatnonzero(structures.has_weight("energy")))
    if not len(labeled):
        raise UserError(
            f"--E0s {asked} needs structures with an energy that has weight, and no training structure does."
        )
    solution = np.array([(known or {}).get(number, np.nan) for number in elements])
    is_open = np.isnan(solution)
    fitted, shares = _LeastSquares(int(is_open.sum())), _LeastSquares(int(is_open.sum()))
    for block in labeled.blocks():
        counts, weights = (
            block.compositions(elements.atomic_numbers),
            np.sqrt(block.weights() * block.weights("energy")),
        )
        energies = block.labels("energy") - counts[:, ~is_open] @ solution[~is_open]
        counts = counts[:, is_open]
        fitted.add(counts * weights[:, None], energies * weights)
        counts = counts[counts.any(axis=1)]
        shares.add(counts / np.linalg.norm(counts, axis=1, keepdims=True))
    solution[is_open] = fitted.solution()
    warnings = []
    undetermined = undetermined_elements(shares.rows, shares.n_rows)
    if undetermined:
        symbols = np.array(elements.symbols)[is_open]
        names = ", ".join(symbols[place] for place in undetermined)
        warnings.append(
            f"--E0s {asked}: the compositions of the {len(labeled)} structures with an energy do not determine the "
            f"reference energies of {names}; the smallest ones that fit were taken. Energies of other compositions "
            "will be wrong: give these elements' energies with --E0s."
        )
    return dict(zip(elements.atomic_numbers, solution.tolist(), strict=True)), warnings


def fit_residuals(configurations: Sequence[Configuration], energies: Mapping[int, float]) -> tuple[Residual, ...]:
    """Compute, by ``config_type``, what reference energies leave unexplained of the energies with nonzero weight.

    Returns:
        One entry for each type, in alphabetical order.
    """
    structures = collected(configurations)
    labeled = structures.take(np.flatnonzero(structures.has_weight("energy")))
    rest, types = np.abs(interaction_energies_per_atom(labeled, energies)), labeled.config_types
    residuals = []
    for kind in sorted(types.present()):
        places = np.flatnonzero(types.where(kind))
        worst = places[rest[places].argmax()]
        rms = float(np.sqrt(np.square(rest[places]).mean()))
        residuals.append(Residual(kind, len(places), rms, float(rest[worst]), labeled[int(worst)].where()))
    return tuple(residuals)


class _LeastSquares:
    """A least-squares fit to rows that come in blocks, of which only as many are kept as there are unknowns.

    A block is replaced by its triangular factor, which has the same normal equations. A single block is kept as it is.

    Attributes:
        rows: ``[rows, unknowns]``.
        n_rows: How many rows have been added.
    """

    def __init__(self, n_unknowns: int) -> None:
        self.rows, self._values, self.n_rows = np.zeros((0, n_unknowns)), np.zeros(0), 0

    def add(self, rows: np.ndarray, values: np.ndarray | None = None) -> None:
        """Add rows, and the values that they are to give, zero if None."""
        values, n_new = np.zeros(len(rows)) if values is None else values, len(rows)
        if self.n_rows and len(rows):
            both = np.column_stack([np.concatenate([self.rows, rows]), np.concatenate([self._values, values])])
            triangle = np.asarray(np.linalg.qr(both, mode="r"))
            self.rows, self._values = triangle[:, :-1], triangle[:, -1]
        elif len(rows):
            self.rows, self._values = rows, values
        self.n_rows += n_new

    def solution(self) -> np.ndarray:
        """Return the solution with the smallest norm."""
        tolerance = np.finfo(np.float64).eps * max(self.n_rows, self.rows.shape[1])
        return np.linalg.lstsq(self.rows, self._values, rcond=tolerance)[0]


def undetermined_elements(shares: np.ndarray, n_rows: int | None = None) -> list[int]:
    """Find the elements whose reference energy the compositions leave undetermined, whatever the energies are.

    Args:
        shares: Composition of each structure, ``[structures, elements]``, or rows that span the same.
        n_rows: Number of structures, if there are other rows in their place.

    Returns:
        Indices of the elements whose unit vector is not a combination of the rows.

    >>> undetermined_elements(np.array([[2.0, 1.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
    [0, 1]
    """
    padding = np.zeros((max(shares.shape[1] - len(shares), 0), shares.shape[1]))  # to get every direction
    _, values, directions = np.linalg.svd(np.concatenate([shares, padding]), full_matrices=False)
    rank = int((values > values[0] * max(n_rows or 0, *shares.shape) * np.finfo(np.float64).eps).sum())
    outside = np.linalg.norm(directions[rank:], axis=0)
    return [place for place in range(shares.shape[1]) if outside[place] > 1.0e-8]


def _from_isolated_atoms(
    isolated_atoms: Sequence[Configuration], elements: ElementTable, only_labeled: bool = False
) -> dict[int, float]:
    """Read the energies of isolated atoms.

    Args:
        isolated_atoms: The frames.
        elements: The elements that need an energy.
        only_labeled: Leave out frames without an energy, and elements that are not needed.

    Raises:
        UserError: If two frames contradict each other, or one lacks an energy that is required.
    """
    energies: dict[int, float] = {}
    origin: dict[int, Configuration] = {}
    for atom in _neutral_first(isolated_atoms):
        number = int(atom.atomic_numbers[0])
        if only_labeled and (atom.energy is None or number not in elements):
            continue
        if atom.energy is None:
            if number in elements:
                raise UserError(
                    f"{atom.where()} is an isolated {chemical_symbol(number)} atom without an energy under the key its "
                    "file is read with; label it, name the key with --energy_key, or give --E0s."
                )
            continue
        if number in energies and abs(energies[number] - atom.energy) > 1.0e-6:
            raise UserError(
                f"{atom.where()} gives an isolated {chemical_symbol(number)} atom {atom.energy:.6f} eV where "
                f"{origin[number].where()} gives {energies[number]:.6f} eV; keep one of them, or give the energies "
                "with --E0s."
            )
        energies.setdefault(number, atom.energy)
        origin.setdefault(number, atom)
    return energies


def _neutral_first(isolated_atoms: Sequence[Configuration]) -> list[Configuration]:
    """Leave out ions of elements whose neutral atom is also present."""
    charges = [float(c.conditions.get("total_charge", np.zeros(1))[0]) for c in isolated_atoms]
    atoms = list(zip(isolated_atoms, charges, strict=True))
    neutral = {int(c.atomic_numbers[0]) for c, charge in atoms if charge == 0.0}
    return [c for c, charge in atoms if charge == 0.0 or int(c.atomic_numbers[0]) not in neutral]


def _names_missing(energies: Mapping[int, float], elements: ElementTable) -> str:
    """Name the elements that have no energy."""
    return ", ".join(chemical_symbol(number) for number in elements if number not in energies)


def _judge(energies: Mapping[int, float], configurations: Sequence[Configuration]) -> list[str]:
    """Return warnings if the reference energies make some of the structures absurdly stable or unstable."""
    structures = collected(configurations)
    labeled = structures.take(np.flatnonzero(structures.labeled("energy")))
    atomization = -interaction_energies_per_atom(labeled, energies)
    if not len(atomization):
        return []
    mean, span = float(atomization.mean()), f"{LOWEST_ATOMIZATION:g} to {HIGHEST_ATOMIZATION:g}"
    if not LOWEST_ATOMIZATION <= mean <= HIGHEST_ATOMIZATION:
        return [
            f"With these reference energies the mean atomization energy of the training structures is {mean:.2f} eV "
            f"per atom, outside {span}; do E0s and data come from the same method, both in eV?"
        ]
    outside = np.flatnonzero((atomization < LOWEST_ATOMIZATION) | (atomization > HIGHEST_ATOMIZATION))
    if not len(outside):
        return []
    worst = outside[np.abs(atomization[outside] - mean).argmax()]
    return [
        f"With these reference energies the atomization energy of {len(outside)} training structures is outside {span} "
        f"eV per atom, most of all {atomization[worst]:.2f} of {labeled[int(worst)].where()}; are their energies right?"
    ]
