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
from mace.inspection.findings import Finding, found
from mace.inspection.flat import FlatFile
from mace.inspection.pair_interaction import (
    FEWEST_FITTED,
    LEAST_EXPLAINED,
    MOST_ATOMS,
    SAMPLE,
    fit_pair_interaction,
)
from mace.inspection.unit_guesses import EXPLAINED_WITHIN, STRESS_EXPLANATIONS, Comparison, compare, explain
from mace.structures.stress import disagree

_FRACTIONAL = 1.0e-3
_SOME_FORCE = 1.0e-3
_IN_ORDER, _BETTER_BY = 0.85, 0.25
_OFF_DIAGONAL = ((1, 2), (0, 2), (0, 1))
_OFF_DIAGONAL_NAMES = ("yz", "xz", "xy")


def check_stress(file: FlatFile, distorted: Comparison, trust_forces: bool = True) -> Iterator[Finding]:
    """Compare the stress with energies of strained cells, and with a pair interaction where these say nothing.

    Args:
        file: The structures.
        distorted: What energies of strained cells with displaced atoms say, see `mace.inspection.distortions`.
        trust_forces: Whether the forces may be compared with; if they are wrong themselves, they prove nothing.
    """
    measured, expected = strain_energies(file, file.stresses)
    result = compare(measured, expected)
    as_virials = compare(measured, strain_energies(file, _from_virials(file))[1])
    is_told = True
    if result.is_clear or as_virials.is_clear:
        if not (result.is_clear and result.is_alike):
            yield _strain_finding(file, result, as_virials)
    elif distorted.is_rough:
        if distorted.contradicts:
            volume = float(np.nanmedian(file.volumes))
            yield _strain_finding(file, distorted, replace(distorted, ratio=-volume * distorted.ratio))
    else:
        is_told = False
    if trust_forces:
        yield from _check_against_pairs(file, order_only=is_told)


def _from_virials(file: FlatFile) -> np.ndarray:
    """The stress if the labels were virials, ``[structures, 3, 3]``."""
    return -file.stresses / file.volumes[:, None, None]


def _strain_finding(file: FlatFile, result: Comparison, as_virials: Comparison) -> Finding:
    reason = explain(result.ratio, STRESS_EXPLANATIONS) if result.is_rough else None
    is_better = abs(as_virials.correlation) > abs(result.correlation) or not reason
    if as_virials.is_rough and is_better and _is_one(as_virials):
        reason, result = _virials_reason(as_virials), replace(result, correlation=as_virials.correlation)
    name = "contradicting-stress" if reason and result.is_overwhelming else "suspicious-stress"
    guess = f"; it looks as if {reason}" if reason else ""
    return found(
        name,
        file.file,
        f"over {result.count} pairs of strained cells, energies change by {result.ratio:.4g} times what the stress "
        f"says (correlation {abs(result.correlation):.3f}){guess}",
    )


def _is_one(result: Comparison) -> bool:
    return 0.5 < abs(result.ratio) < 2.0


def _virials_reason(as_virials: Comparison) -> str:
    return "it is the virials, -volume * stress" if as_virials.ratio > 0 else "it is volume * stress"


def strain_energies(file: FlatFile, stresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure pairs of strained copies of the same cell.

    Args:
        file: The structures.
        stresses: +dE/dstrain/V in eV/Angstrom^3, ``[structures, 3, 3]``.

    Returns:
        Differences of the energies in eV, and what the stress says in eV, ``[pairs]``.
    """
    usable = np.flatnonzero(
        np.isfinite(file.energies) & np.isfinite(stresses).all(axis=(1, 2)) & np.isfinite(file.volumes)
    )
    one, other = _strained_pairs(file, usable)
    if not len(one):
        return np.zeros(0), np.zeros(0)
    strain, _ = strain_between(file.cells[one], file.cells[other])
    size = np.abs(strain).max(axis=(1, 2))
    small = (size < LARGEST_STRAIN) & (size > SMALLEST_STRAIN)
    one, other, strain = one[small], other[small], strain[small]
    work = file.volumes[:, None, None] * stresses
    expected = 0.5 * ((work[one] + work[other]) * strain).sum(axis=(1, 2))
    return file.energies[other] - file.energies[one], expected


def _strained_pairs(file: FlatFile, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair cells with the same atoms at the same fractional coordinates: neighbors in file, and in volume."""
    boxes = np.linalg.inv(file.cells[usable]) if len(usable) else np.zeros((0, 3, 3))
    members: dict[tuple[bytes, bytes], list[int]] = {}
    for place, inverse in zip(usable.tolist(), boxes, strict=True):
        atoms = file.atoms_of(place)
        fractional = file.positions[atoms] @ inverse
        relative = fractional - fractional[0]
        steps = np.rint((relative - np.floor(relative + 0.5 * _FRACTIONAL)) / _FRACTIONAL).astype(np.int64)
        members.setdefault((file.identity_of_atoms(place), steps.tobytes()), []).append(place)
    volumes = file.volumes
    pairs: set[tuple[int, int]] = set()
    for group in members.values():
        by_volume = sorted(group, key=lambda place: float(volumes[place]))
        for order in (group, by_volume):
            pairs.update((min(pair), max(pair)) for pair in zip(order[:-1], order[1:], strict=True))
    chosen = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def _check_against_pairs(file: FlatFile, order_only: bool) -> Iterator[Finding]:
    labeled = np.isfinite(file.stresses).all(axis=(1, 2)) & np.isfinite(file.volumes)
    forces = np.add.reduceat(np.abs(file.forces).sum(axis=1), file.first) if len(file) else np.zeros(0)
    usable = np.flatnonzero(labeled & np.isfinite(forces) & (forces > _SOME_FORCE) & (file.n_atoms <= MOST_ATOMS))
    if len(usable) < FEWEST_FITTED:
        return
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(len(usable), SAMPLE)).astype(int))]
    fit = fit_pair_interaction(file, chosen.tolist())
    if fit is None or fit.explained < LEAST_EXPLAINED:
        return
    labels = file.stresses[chosen]
    fitted = _without_trace(fit.stresses)
    yield from _check_order(file, labels, fit.stresses)
    if order_only:
        return
    result = compare(fitted, _without_trace(labels))
    as_virials = compare(fitted, _without_trace(_from_virials(file)[chosen]))
    if (result.is_rough or as_virials.is_rough) and not result.is_plausible:
        yield found(
            "suspicious-stress",
            file.file,
            f"a pair interaction fitted to the forces of {len(chosen)} structures gives {result.ratio:.3g} times the "
            f"labeled stress without its trace (correlation {abs(result.correlation):.2f}); it looks as if "
            f"{_pair_reason(result, as_virials)}",
        )


def _pair_reason(result: Comparison, as_virials: Comparison) -> str:
    reasons = [explain(result.ratio, STRESS_EXPLANATIONS, EXPLAINED_WITHIN)]
    if _is_one(as_virials):
        reasons.append(_virials_reason(as_virials))
    return " or ".join(reason for reason in reasons if reason) or "the sign or the unit is another one"


def _check_order(file: FlatFile, labels: np.ndarray, fitted: np.ndarray) -> Iterator[Finding]:
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
    yield found(
        "swapped-stress",
        file.file,
        f"the stress goes with the forces if its last three components are taken as {written} (correlation "
        f"{correlation:.2f}) instead of yz xz xy ({as_given:.2f})",
    )


def _without_trace(tensors: np.ndarray) -> np.ndarray:
    return tensors - np.trace(tensors, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3.0


def check_virials(file: FlatFile) -> Iterator[Finding]:
    """Compare labeled virials with -volume * labeled stress."""
    bad = np.flatnonzero([disagree(configuration) for configuration in file.configurations])
    if not len(bad):
        return
    virials = np.array([file.configurations[place].virials for place in bad.tolist()])
    result = compare(virials, -file.volumes[bad, None, None] * file.stresses[bad])
    sign = "; the sign of one of them is opposite" if result.is_clear and -1.6 < result.ratio < -0.6 else ""
    times = f"they are {result.ratio:.4g} times that{sign}" if result.is_clear else "they are unrelated to it"
    yield found(
        "contradicting-virials",
        file.file,
        f"{'has' if len(bad) == 1 else 'have'} virials that are not -volume * stress ({times})",
        file.places(bad),
        len(file),
    )
