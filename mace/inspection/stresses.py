r"""Does the stress go with energies and forces?

Cells with the same fractional coordinates and different lattice vectors are strained copies of each other: between two
of them the energy changes by :math:`\tfrac12 (V_1 \sigma_1 + V_2 \sigma_2) : \varepsilon`. Where atoms are moved, too,
`mace.inspection.distortions` takes the forces into account; where neither is there, the stress is compared with that of
a pair interaction fitted to the forces, as the order of its components always is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np

from mace.inspection.distortions import LARGEST_STRAIN, SMALLEST_STRAIN, strain_between
from mace.inspection.findings import Evidence
from mace.inspection.flat import FlatFile, grouped, mixed, spread
from mace.inspection.pair_interaction import MOST_ATOMS, SAMPLE, fit_pair_interaction
from mace.inspection.unit_guesses import (
    EXPLAINED_WITHIN,
    STRESS_EXPLANATIONS,
    Comparison,
    compare,
    contradiction,
    explain,
)
from mace.structures.stress import disagree

_FRACTIONAL = 1.0e-3
_SOME_FORCE = 1.0e-3
_IN_ORDER, _BETTER_BY = 0.85, 0.25
_OFF_DIAGONAL = ((1, 2), (0, 2), (0, 1))
_OFF_DIAGONAL_NAMES = ("yz", "xz", "xy")


def check_stress(file: FlatFile, distorted: Comparison, trust_forces: bool = True) -> Iterator[Evidence]:
    """Compare the stress with energies of strained cells, and with a pair interaction where these say nothing.

    Args:
        file: The structures.
        distorted: What energies of strained cells with displaced atoms say, see `mace.inspection.distortions`.
        trust_forces: Whether the forces may be compared with; if they are wrong themselves, they prove nothing.
    """
    pairs = strained_pairs(file)
    result = compare(*strain_energies(file, file.stresses, pairs))
    as_virials = compare(*strain_energies(file, _from_virials(file), pairs))
    is_told = result.is_clear or as_virials.is_clear or distorted.is_rough
    if result.is_clear or as_virials.is_clear:
        if not (result.is_clear and result.is_alike):
            yield _strain_finding(file, result, as_virials)
    elif distorted.contradicts:
        volume = float(np.nanmedian(file.volumes))
        yield _strain_finding(file, distorted, replace(distorted, ratio=-volume * distorted.ratio))
    if not trust_forces:
        return
    forces = file.sums(np.abs(file.forces).sum(axis=1))
    usable = file.has_stress & np.isfinite(forces) & (forces > _SOME_FORCE) & (file.n_atoms <= MOST_ATOMS)
    chosen = spread(np.flatnonzero(usable), SAMPLE)
    fit = fit_pair_interaction(file, chosen.tolist())
    if fit is None:
        return
    yield from _check_order(file, file.stresses[chosen], fit[0])
    if is_told:
        return
    fitted = _without_trace(fit[0])
    result = compare(fitted, _without_trace(file.stresses[chosen]))
    as_virials = compare(fitted, _without_trace(_from_virials(file)[chosen]))
    if (result.is_rough or as_virials.is_rough) and not result.is_plausible:
        reasons = [explain(result.ratio, STRESS_EXPLANATIONS, EXPLAINED_WITHIN)]
        if _is_one(as_virials):
            reasons.append(_virials_reason(as_virials))
        yield file.saw(
            "suspicious-stress",
            f"a pair interaction fitted to the forces of {len(chosen)} structures gives {result.ratio:.3g} times the "
            f"labeled stress without its trace (correlation {abs(result.correlation):.2f}); it looks as if "
            f"{' or '.join(filter(None, reasons)) or 'the sign or the unit is another one'}",
            key="by forces",
            severity=abs(result.correlation),
        )


def _from_virials(file: FlatFile) -> np.ndarray:
    """The stress if the labels were virials, ``[structures, 3, 3]``."""
    return -file.stresses / file.volumes[:, None, None]


def _strain_finding(file: FlatFile, result: Comparison, as_virials: Comparison) -> Evidence:
    reason = explain(result.ratio, STRESS_EXPLANATIONS) if result.is_rough else None
    is_better = abs(as_virials.correlation) > abs(result.correlation) or not reason
    if as_virials.is_rough and is_better and _is_one(as_virials):
        reason, result = _virials_reason(as_virials), replace(result, correlation=as_virials.correlation)
    return contradiction(file, "stress", "strained cells", result, reason)


def _is_one(result: Comparison) -> bool:
    return 0.5 < abs(result.ratio) < 2.0


def _virials_reason(as_virials: Comparison) -> str:
    return "it is the virials, -volume * stress" if as_virials.ratio > 0 else "it is volume * stress"


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def strained_pairs(file: FlatFile) -> Pairs:
    """Find pairs of strained copies of the same cell: with the same atoms at the same fractional coordinates.

    Returns:
        Both structures and the strain between them, ``[pairs]``, ``[pairs]``, ``[pairs, 3, 3]``.
    """
    usable = np.isfinite(file.energies) & file.has_stress
    inverse = np.linalg.inv(np.where(usable[:, None, None], file.cells, np.eye(3)))
    fractional = np.einsum("ai,aij->aj", file.positions, inverse[file.structure_of_atom])
    relative = fractional - fractional[file.first][file.structure_of_atom]
    steps = np.rint((relative - np.floor(relative + 0.5 * _FRACTIONAL)) / _FRACTIONAL).astype(np.int64)
    marks = file.marks + file.sums(mixed(file.ranks, *steps.T))
    found = [np.zeros((0, 2), dtype=np.int64)]
    for group in grouped(np.flatnonzero(usable), marks[usable], fewest=2):
        for order in (group, group[np.argsort(file.volumes[group], kind="stable")]):  # neighbors in file, and in volume
            found.append(np.sort(np.column_stack([order[:-1], order[1:]]), axis=1))
    one, other = np.unique(np.concatenate(found), axis=0).T
    strain, _ = strain_between(file.cells[one], file.cells[other])
    size = np.abs(strain).max(axis=(1, 2))
    small = (size < LARGEST_STRAIN) & (size > SMALLEST_STRAIN)
    return one[small], other[small], strain[small]


def strain_energies(file: FlatFile, stresses: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Compare energies of strained copies of a cell with the work of a stress.

    Args:
        file: The structures.
        stresses: +dE/dstrain/V in eV/Angstrom^3, ``[structures, 3, 3]``.
        pairs: The copies, see `strained_pairs`.

    Returns:
        Differences of the energies in eV, and what the stress says in eV, ``[pairs]``.
    """
    one, other, strain = pairs
    work = file.volumes[:, None, None] * stresses
    expected = 0.5 * ((work[one] + work[other]) * strain).sum(axis=(1, 2))
    return file.energies[other] - file.energies[one], expected


def _check_order(file: FlatFile, labels: np.ndarray, fitted: np.ndarray) -> Iterator[Evidence]:
    """Try all orders of the three components off the diagonal."""
    label = np.stack([labels[:, a, b] for a, b in _OFF_DIAGONAL], axis=1)
    expected = np.stack([fitted[:, a, b] for a, b in _OFF_DIAGONAL], axis=1)
    fits = {order: compare(expected, label[:, order]).correlation for order in permutations(range(3))}
    best = max(fits, key=lambda order: abs(fits[order]))
    correlation = abs(fits[best])
    as_given = fits[0, 1, 2] * np.sign(fits[best])  # the sign of all may be opposite
    if correlation < _IN_ORDER or as_given > correlation - _BETTER_BY:
        return
    written = " ".join(_OFF_DIAGONAL_NAMES[best.index(place)] for place in range(3))
    yield file.saw(
        "swapped-stress",
        f"the stress goes with the forces if its last three components are taken as {written} (correlation "
        f"{correlation:.2f}) instead of yz xz xy ({as_given:.2f})",
        severity=correlation,
    )


def _without_trace(tensors: np.ndarray) -> np.ndarray:
    return tensors - np.trace(tensors, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3.0


def check_virials(file: FlatFile) -> Iterator[Evidence]:
    """Compare labeled virials with -volume * labeled stress."""
    virials, from_stress = file.values("virials"), -file.volumes[:, None, None] * file.stresses
    bad = disagree(file.stresses, virials, file.volumes)
    if not bad.any():
        return
    result = compare(virials[bad], from_stress[bad])
    sign = "; the sign of one of them is opposite" if result.is_clear and -1.6 < result.ratio < -0.6 else ""
    times = f"they are {result.ratio:.4g} times that{sign}" if result.is_clear else "they are unrelated to it"
    text = f"have virials that are not -volume * stress ({times})"
    yield file.saw("contradicting-virials", text, bad, severity=float(bad.sum()))
