"""Triton kernels of pairs that depend on no radial functions or harmonics, and what all kernels of pairs start with.

Names, arrays and dimensions are those of `mace.kernels.c_source.geometry`; there, too, padding is told by its two slots
being equal. Every program has a tile of pairs, one for each of its threads, or an atom; it computes in double precision
and rounds once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from mace.kernels.c_source.geometry import GRAPH_POINTERS
from mace.kernels.triton_source.launching import DeviceKernel, Number, load_text, number_type
from mace.kernels.triton_source.radial import repulsion

PAIRS = 64
"""Pairs of a program."""
_SLOTS = 32
"""Slots of an atom that are summed together."""


@cache
def pair_kernels(num_cutoff_basis: int, dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return ``pair_vectors`` and the kernels of forces, strain and repulsion.

    In place of ``strain_value`` there is ``strain_of_atoms``, whose rows, ``[atoms, 9]``, are to be added up for each
    structure.

    Args:
        num_cutoff_basis: Exponent of the cutoff polynomial.
        dtype: Precision of the arrays.
    """
    number = number_type(dtype)
    return {
        "pair_vectors": _pair_vectors(),
        "forces_value": _forces_value(),
        "forces_adjoint": _forces_adjoint(),
        "strain_of_atoms": _strain_of_atoms(),
        "strain_adjoint": _strain_adjoint(),
        "repulsion_value": _repulsion_value(num_cutoff_basis, number),
        "repulsion_rows": _repulsion_rows(),
        "repulsion_gradient": _repulsion_gradient(),
    }


def tiles_of_pairs(dimensions: Sequence[Number]) -> tuple[int, ...]:
    """Return the grid of kernels whose programs have `PAIRS` pairs each."""
    return (-(-int(dimensions[2]) // PAIRS),)


def atoms(dimensions: Sequence[Number]) -> tuple[int, ...]:
    """Return the grid of kernels whose programs have an atom each."""
    return (int(dimensions[0]),)


def kernel(
    name: str,
    pointers: str,
    lines: Sequence[str],
    constants: Sequence[str] = (),
    sizes: Sequence[str] = (),
    grid: Callable[[Sequence[Number]], tuple[int, ...]] = tiles_of_pairs,
) -> DeviceKernel:
    """Return a kernel that gets the arrays and dimensions of the graph.

    Args:
        name: Its name.
        pointers: Names of its own arrays.
        lines: What it does.
        constants: Its own dimensions that never change for a model.
        sizes: Its own dimensions that differ from graph to graph, which come last.
        grid: Number of its programs.
    """
    arguments = [*GRAPH_POINTERS, pointers, "N", "K", "P", "r_max: tl.constexpr"]
    arguments += [*(f"{constant}: tl.constexpr" for constant in constants), *sizes]
    text = [
        f"PAIRS, SLOTS = tl.constexpr({PAIRS}), tl.constexpr({_SLOTS})",
        f"@triton.jit(do_not_specialize={['N', 'K', 'P', *sizes]})",
        f"def {name}({', '.join(arguments)}):",
        *indented(lines),
    ]
    return DeviceKernel(getattr(load_text(name, "\n".join(text)), name), grid, 1 if grid is atoms else 2)


def indented(lines: Sequence[str]) -> list[str]:
    """Return lines as the body of what stands before them."""
    return [f"    {line}" for line in lines]


PAIR = [
    "q = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)",
    "exists = q < P",
    "slot_a = tl.load(slots_of_pair + 2 * q, mask=exists, other=0).to(tl.int64)",
    "slot_b = tl.load(slots_of_pair + 2 * q + 1, mask=exists, other=0).to(tl.int64)",
    "real = slot_a != slot_b",
]
"""The pairs of a program, which of them exist, their slots, and which are not padding."""

ATOMS = [
    "i = tl.load(pair_sender + q, mask=exists, other=0).to(tl.int64)",
    "j = tl.load(pair_receiver + q, mask=exists, other=0).to(tl.int64)",
]
"""The atoms of the pairs."""

DIRECTION = [
    *(
        f"v{axis} = tl.load(vectors + 3 * q + {k}, mask=exists, other=1.0).to(tl.float64)"
        for k, axis in enumerate("xyz")
    ),
    "r = tl.sqrt(vx * vx + vy * vy + vz * vz)",
    "per_length = 1.0 / r",
    "ux, uy, uz = vx * per_length, vy * per_length, vz * per_length",
]
"""Vectors, their lengths and directions."""


def radii() -> list[str]:
    """Return lines for the sum ``s`` of the radii of both atoms, ``i`` and ``j``."""
    return [
        "element_i = tl.load(element + i, mask=exists, other=0).to(tl.int64)",
        "element_j = tl.load(element + j, mask=exists, other=0).to(tl.int64)",
        "s = tl.load(radii + element_i) + tl.load(radii + element_j)",
    ]


def _pair_vectors() -> DeviceKernel:
    components = []
    for k, axis in enumerate("xyz"):
        components += [
            f"along = tl.load(positions + 3 * j + {k}, mask=exists, other=0.0).to(tl.float64)",
            f"along -= tl.load(positions + 3 * i + {k}, mask=exists, other=0.0).to(tl.float64)",
            *(
                f"along += n{row} * tl.load(box + {3 * row + k}, mask=exists, other=0.0).to(tl.float64)"
                for row in range(3)
            ),
            f"tl.store(vectors + 3 * q + {k}, tl.where(real, along, {'r_max' if axis == 'y' else '0.0'}), mask=exists)",
        ]
    lines = [
        *PAIR,
        *ATOMS,
        "box = cell + 9 * tl.load(structure_of_atom + i, mask=exists, other=0).to(tl.int64)",
        *(f"n{row} = tl.load(pair_shift + 3 * q + {row}, mask=exists, other=0).to(tl.float64)" for row in range(3)),
        *components,
    ]
    return kernel("pair_vectors", "positions, cell, pair_shift, vectors", lines)


def _sum_over_slots(row: str, sums: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return lines that add to some sums in double precision, over the slots of a row, of which ``pair`` is the pair.

    Args:
        row: The row.
        sums: Names of the sums, which become single numbers in the end.
        lines: Lines that add to the sums; ``listed`` says which slots are not empty.
    """
    return [
        f"count = tl.load(neighbor_count + {row})",
        *(f"{name} = tl.zeros([SLOTS], tl.float64)" for name in sums),
        "for first in range(0, count, SLOTS):",
        *indented(
            [
                "number = first + tl.arange(0, SLOTS)",
                "listed = number < count",
                f"slot = {row} * K + number",
                "pair = tl.load(pair_of_slot + slot, mask=listed, other=0).to(tl.int64)",
                *lines,
            ]
        ),
        *(f"{name} = tl.sum({name}, axis=0)" for name in sums),
    ]


_ROW_OF_ATOM = ["atom = tl.program_id(0).to(tl.int64)", "row = tl.load(row_of_atom + atom).to(tl.int64)"]


def _forces_value() -> DeviceKernel:
    add = ["sign = tl.load(sign_of_slot + slot, mask=listed, other=0.0).to(tl.float64)"]
    add += [
        f"f{axis} -= sign * tl.load(gradient + 3 * pair + {k}, mask=listed, other=0.0).to(tl.float64)"
        for k, axis in enumerate("xyz")
    ]
    lines = [
        *_ROW_OF_ATOM,
        *_sum_over_slots("row", ["fx", "fy", "fz"], add),
        *(f"tl.store(forces + 3 * atom + {k}, f{axis})" for k, axis in enumerate("xyz")),
    ]
    return kernel("forces_value", "gradient, forces", lines, grid=atoms)


def _forces_adjoint() -> DeviceKernel:
    lines = [*PAIR, *ATOMS]
    for k in range(3):
        lines += [
            "if forces is not None:",
            f"    g = tl.load(forces + 3 * i + {k}, mask=real, other=0.0)",
            f"    g -= tl.load(forces + 3 * j + {k}, mask=real, other=0.0)",
            f"    tl.store(of_gradient + 3 * q + {k}, g, mask=exists)",
            "else:",
            f"    tl.store(of_gradient + 3 * q + {k}, tl.zeros([PAIRS], of_gradient.dtype.element_ty), mask=exists)",
        ]
    return kernel("forces_adjoint", "forces, of_gradient", lines)


def _strain_of_atoms() -> DeviceKernel:
    # the pairs of a structure are those of the slots in the direction of their pair
    add = ["listed = listed & (tl.load(sign_of_slot + slot, mask=listed, other=-1.0) > 0.0)"]
    for name, array in (("v", "vectors"), ("g", "gradient")):
        add += [
            f"{name}{k} = tl.load({array} + 3 * pair + {k}, mask=listed, other=0.0).to(tl.float64)" for k in range(3)
        ]
    upper = [(a, b) for a in range(3) for b in range(a, 3)]
    add += [f"s{a}{b} += 0.5 * (v{a} * g{b} + v{b} * g{a})" for a, b in upper]
    lines = [
        *_ROW_OF_ATOM,
        *_sum_over_slots("row", [f"s{a}{b}" for a, b in upper], add),
        *(f"tl.store(strain + 9 * atom + {3 * a + b}, s{min(a, b)}{max(a, b)})" for a in range(3) for b in range(3)),
    ]
    return kernel("strain_of_atoms", "vectors, gradient, strain", lines, grid=atoms)


def _strain_adjoint() -> DeviceKernel:
    lines = [
        *PAIR,
        "i = tl.load(pair_sender + q, mask=exists, other=0).to(tl.int64)",
        "own = of_strain + 9 * tl.load(structure_of_atom + i, mask=exists, other=0).to(tl.int64)",
    ]
    for name, place in (("c", "own"), ("v", "vectors + 3 * q")):
        count = 9 if name == "c" else 3
        lines += [f"{name}{k} = tl.load({place} + {k}, mask=real, other=0.0).to(tl.float64)" for k in range(count)]
    for k in range(3):
        terms = " + ".join(f"(c{3 * n + k} + c{3 * k + n}) * v{n}" for n in range(3))
        lines += [
            f"before = tl.load(of_gradient + 3 * q + {k}, mask=real, other=0.0).to(tl.float64)",
            f"tl.store(of_gradient + 3 * q + {k}, before + 0.5 * ({terms}), mask=real)",
        ]
    return kernel("strain_adjoint", "vectors, of_strain, of_gradient", lines)


def _repulsion_value(num_cutoff_basis: int, number: str) -> DeviceKernel:
    lines = [
        *PAIR,
        *ATOMS,
        *radii(),
        "charge_a, charge_b = tl.load(charges + element_i), tl.load(charges + element_j)",
        "length = tl.load(lengths + q, mask=exists, other=1.0)",
        "r = length.to(tl.float64)",
        "near = real & (length < r_max)",
        *repulsion(num_cutoff_basis),
        "tl.store(halves + q, energy, mask=exists)",
        "tl.store(slopes + q, slope, mask=exists)",
    ]
    return kernel("repulsion_value", "lengths, halves, slopes", lines)


def _repulsion_rows() -> DeviceKernel:
    add = ["energy += tl.load(halves + pair, mask=listed, other=0.0).to(tl.float64)"]
    lines = [
        "row = tl.program_id(0).to(tl.int64)",
        *_sum_over_slots("row", ["energy"], add),
        "tl.store(energies + row, energy)",
    ]
    return kernel("repulsion_rows", "halves, energies", lines, grid=atoms)


def _repulsion_gradient() -> DeviceKernel:
    lines = [
        *PAIR,
        *ATOMS,
        "row_i = tl.load(row_of_atom + i, mask=exists, other=0).to(tl.int64)",
        "row_j = tl.load(row_of_atom + j, mask=exists, other=0).to(tl.int64)",
        "both = tl.load(cotangents + row_i, mask=real, other=0.0) + tl.load(cotangents + row_j, mask=real, other=0.0)",
        "tl.store(of_lengths + q, tl.load(slopes + q, mask=real, other=0.0) * both, mask=exists)",
    ]
    return kernel("repulsion_gradient", "slopes, cotangents, of_lengths", lines)
