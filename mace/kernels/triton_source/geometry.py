"""Triton kernels of what depends on the geometry alone: vectors of pairs, radial functions, harmonics; forces, strain.

Names, arrays and dimensions are those of `mace.kernels.c_source.geometry`. There, the padding is the last pair; here,
any number of pairs may be padding, which is told by its two slots being equal. Every program has a tile of pairs, one
for each of its threads; it computes in double precision and rounds once. Units that C goes through one by one, atoms,
have a program each.

Rows of harmonics are rounded up to whole vectors of four numbers, see `harmonics_width`. ``geometry_gradient`` takes
one array of gradients of the harmonics, or none. In place of ``strain_value`` there is ``strain_of_atoms``, whose rows,
``[atoms, 9]``, are to be added up for each structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch

from mace.equivariant.spherical_harmonics import harmonic_polynomials
from mace.kernels.c_source.geometry import GRAPH_POINTERS, GeometryShape
from mace.kernels.radial_table import HERMITE, SHORTEST
from mace.kernels.triton_source.launching import DeviceKernel, Number, load_text, number_type
from mace.kernels.triton_source.radial import basis_function, basis_start, envelope, named_number, repulsion, transform
from mace.kernels.triton_source.tiles import columns, joined, split

_PAIRS = 64
"""Pairs of a program."""
_CHUNK = 8
"""Radial functions that are read or written together."""
_SLOTS = 32
"""Slots of an atom that are summed together."""


def harmonics_width(l_max: int) -> int:
    """Return the number of harmonics rounded up to whole vectors, the length of a slot's row."""
    return -(-((l_max + 1) ** 2) // 4) * 4


@cache
def geometry_kernels(shape: GeometryShape, dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return all kernels of this module.

    Args:
        shape: What they depend on.
        dtype: Precision of the arrays.
    """
    number = number_type(dtype)
    of_pairs = {
        "pair_vectors": _pair_vectors(),
        "radial_coefficients": _radial_coefficients(number),
        "geometry_gradient": _gradient(shape, number),
        "forces_adjoint": _forces_adjoint(),
        "strain_adjoint": _strain_adjoint(),
        "repulsion_value": _repulsion_value(shape.num_cutoff_basis, number),
        "repulsion_gradient": _repulsion_gradient(),
    }
    of_pairs_and_slots = {"geometry_value": _value(shape, number), "geometry_tangent": _tangent(shape, number)}
    of_atoms = {
        "forces_value": _forces_value(),
        "strain_of_atoms": _strain_of_atoms(),
        "repulsion_rows": _repulsion_rows(),
    }
    found = {}
    for texts, grid, warps in (
        (of_pairs, _tiles_of_pairs, 2),
        (of_pairs_and_slots, _tiles_of_pairs_and_slots, 2),
        (of_atoms, _atoms, 1),
    ):
        for name, text in texts.items():
            found[name] = DeviceKernel(getattr(load_text(name, text), name), grid, warps)
    return found


def _tiles_of_pairs(dimensions: Sequence[Number]) -> tuple[int, ...]:
    return (-(-int(dimensions[2]) // _PAIRS),)


def _tiles_of_pairs_and_slots(dimensions: Sequence[Number]) -> tuple[int, ...]:
    """Each program has a tile of pairs, and as many slots of which it clears the empty ones as pairs have."""
    n_atoms, n_neighbors, n_pairs = map(int, dimensions[:3])
    return (max(-(-n_pairs // _PAIRS), -(-n_atoms * n_neighbors // (2 * _PAIRS))),)


def _atoms(dimensions: Sequence[Number]) -> tuple[int, ...]:
    return (int(dimensions[0]),)


def _kernel(
    name: str, pointers: str, lines: Sequence[str], constants: Sequence[str] = (), sizes: Sequence[str] = ()
) -> str:
    """Return a kernel; its own dimensions are constants, then sizes that differ from graph to graph."""
    arguments = [*GRAPH_POINTERS, pointers, "N", "K", "P", "r_max: tl.constexpr"]
    arguments += [*(f"{constant}: tl.constexpr" for constant in constants), *sizes]
    return "\n".join(
        [
            f"PAIRS, SLOTS = tl.constexpr({_PAIRS}), tl.constexpr({_SLOTS})",
            f"@triton.jit(do_not_specialize={['N', 'K', 'P', *sizes]})",
            f"def {name}({', '.join(arguments)}):",
            *_indented(lines),
            "",
        ]
    )


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


_PAIR = [
    "q = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)",
    "exists = q < P",
    "slot_a = tl.load(slots_of_pair + 2 * q, mask=exists, other=0).to(tl.int64)",
    "slot_b = tl.load(slots_of_pair + 2 * q + 1, mask=exists, other=0).to(tl.int64)",
    "real = slot_a != slot_b",
]
"""The pairs of a program, which of them exist, their slots, and which are not padding."""

_ATOMS = [
    "i = tl.load(pair_sender + q, mask=exists, other=0).to(tl.int64)",
    "j = tl.load(pair_receiver + q, mask=exists, other=0).to(tl.int64)",
]

_DIRECTION = [
    *(
        f"v{axis} = tl.load(vectors + 3 * q + {k}, mask=exists, other=1.0).to(tl.float64)"
        for k, axis in enumerate("xyz")
    ),
    "r = tl.sqrt(vx * vx + vy * vy + vz * vz)",
    "per_length = 1.0 / r",
    "ux, uy, uz = vx * per_length, vy * per_length, vz * per_length",
]


def _radii() -> list[str]:
    """Return lines for the sum ``s`` of the radii of both atoms, ``i`` and ``j``."""
    return [
        "element_i = tl.load(element + i, mask=exists, other=0).to(tl.int64)",
        "element_j = tl.load(element + j, mask=exists, other=0).to(tl.int64)",
        "s = tl.load(radii + element_i) + tl.load(radii + element_j)",
    ]


def _radial(
    shape: GeometryShape,
    number: str,
    use: Sequence[str],
    chunk_start: Sequence[str] = (),
    chunk_end: Sequence[str] = (),
    of_envelope: Sequence[str] = (),
) -> list[str]:
    """Return lines that go through the radial functions of every pair, if anything is wanted of them.

    Args:
        shape: What they depend on.
        number: Precision of arrays.
        use: Lines for each function: ``{b}`` is the function, ``{d}`` its derivative by the length.
        chunk_start: Lines before the functions of each chunk, of which ``column`` are the numbers.
        chunk_end: Lines after them.
        of_envelope: Lines for the envelope ``e`` and its derivative ``e_slope``.
    """
    n, transformed = shape.num_radial_basis, shape.distance_transform != "None"
    width = min(columns(n), _CHUNK)
    looped = n > width
    functions = []
    for place in range(width):
        k = f"(first + {place})" if looped else str(place)
        if not looped and place >= n:
            break
        functions += basis_function(shape.radial_type, k, place, last=not looped and place == n - 1)
        functions.append(f"d{place} = d{place} * stretch")
        if not shape.cutoff_after_network:
            functions.append(f"b{place}, d{place} = b{place} * e, d{place} * e + b{place} * e_slope")
        functions += [line.format(b=f"b{place}", d=f"d{place}", place=place) for line in use]
    column = [
        f"column = {'first + ' if looped else ''}tl.arange(0, {width})[None, :]",
        f"inside = exists[:, None] & (column < {n})",
    ]
    chunk = [*column, *chunk_start, *functions, *chunk_end]
    return [
        "if of_basis is not None or of_envelope is not None:",
        *_indented(
            [
                *([*_ATOMS, *_radii()] if transformed else []),
                # compared as rounded, so that the padding, as long as the cutoff, lies outside
                *envelope(shape.num_cutoff_basis, "r_max", f"real & (r.to({number}) < r_max)"),
                "if of_basis is not None:",
                *_indented(
                    [
                        *transform(shape.distance_transform),
                        *basis_start(shape.radial_type, n),
                        *([f"for first in range(0, {n}, {width}):", *_indented(chunk)] if looped else chunk),
                    ]
                ),
                "if of_envelope is not None:",
                *_indented(of_envelope),
            ]
        ),
    ]


def _monomials(degree: int) -> Iterator[str]:
    """Yield definitions of all products of the components of ``u`` up to a degree, as ``m<powers>``."""
    yield "m000 = tl.full([PAIRS], 1.0, tl.float64)"
    for total in range(1, degree + 1):
        for x in range(total + 1):
            for y in range(total - x + 1):
                powers = [x, y, total - x - y]
                axis = next(axis for axis in range(3) if powers[axis])
                lower = [power - (place == axis) for place, power in enumerate(powers)]
                factor = f" * {_monomial(lower)}" if any(lower) else ""
                yield f"{_monomial(powers)} = u{'xyz'[axis]}{factor}"


def _monomial(powers: Sequence[int]) -> str:
    return "m" + "".join(map(str, powers))


def _harmonics(l_max: int) -> Iterator[tuple[str, list[str | None]]]:
    """Yield expressions for each harmonic and for its derivatives by the components, None where it is zero."""
    for l in range(l_max + 1):
        for polynomial in harmonic_polynomials(l):
            value = " + ".join(f"{factor!r} * {_monomial(powers)}" for powers, factor in polynomial.items())
            slopes: list[str | None] = []
            for axis in range(3):
                terms = [
                    f"{factor * powers[axis]!r} * "
                    + _monomial([power - (place == axis) for place, power in enumerate(powers)])
                    for powers, factor in polynomial.items()
                    if powers[axis]
                ]
                slopes.append(" + ".join(terms) or None)
            yield value, slopes


def _places_of_rows(l_max: int) -> list[str]:
    """Return lines for the columns of a tile of harmonics, and which of them have an odd degree."""
    odd = [f"((place >= {l * l}) & (place < {(l + 1) ** 2}))" for l in range(1, l_max + 1, 2)]
    return [
        f"place = tl.arange(0, {columns(harmonics_width(l_max))})[None, :]",
        f"odd = {' | '.join(odd) or 'place < 0'}",
    ]


def _write_rows(l_max: int, number: str) -> list[str]:
    """Return lines that write harmonics ``y<n>`` to both slots of each pair, and zeros to empty slots."""
    width = harmonics_width(l_max)
    return [
        *joined("tile", [f"y{n}" for n in range((l_max + 1) ** 2)], columns(width), number),
        *_places_of_rows(l_max),
        f"kept = real[:, None] & (place < {width})",
        f"tl.store(rows + slot_a[:, None] * {width} + place, tile, mask=kept)",
        # the other direction of an edge has odd harmonics of opposite sign
        f"tl.store(rows + slot_b[:, None] * {width} + place, tl.where(odd, -tile, tile), mask=kept)",
        # arrays of slots do not fit into memory where their number is not one of 32 bits
        "slot = tl.program_id(0) * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)",
        "listed = slot < N * K",
        "empty = listed & (slot % K >= tl.load(neighbor_count + slot // K, mask=listed, other=0))",
        f"tl.store(rows + slot.to(tl.int64)[:, None] * {width} + place, "
        f"tl.zeros([2 * PAIRS, {columns(width)}], {number}), mask=empty[:, None] & (place < {width}))",
    ]


def _write_basis(n: int, number: str, values: str) -> list[str]:
    """Return lines that write a chunk of numbers ``<values><place>`` to the rows of the basis."""
    names = [f"{values}{place}" for place in range(min(n, _CHUNK))]
    return [
        *joined("chunk", names, min(columns(n), _CHUNK), number),
        f"tl.store(of_basis + q[:, None] * {n} + column, chunk, mask=inside)",
    ]


def _pair_vectors() -> str:
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
        *_PAIR,
        *_ATOMS,
        "box = cell + 9 * tl.load(structure_of_atom + i, mask=exists, other=0).to(tl.int64)",
        *(f"n{row} = tl.load(pair_shift + 3 * q + {row}, mask=exists, other=0).to(tl.float64)" for row in range(3)),
        *components,
    ]
    return _kernel("pair_vectors", "positions, cell, pair_shift, vectors", lines)


def _value(shape: GeometryShape, number: str) -> str:
    lines = [
        *_PAIR,
        *_DIRECTION,
        "tl.store(lengths + q, r, mask=exists)",
        *_radial(
            shape,
            number,
            [],
            chunk_end=_write_basis(shape.num_radial_basis, number, "b"),
            of_envelope=["tl.store(of_envelope + q, e, mask=exists)"],
        ),
        *_monomials(shape.l_max),
        *(f"y{n} = {value}" for n, (value, _) in enumerate(_harmonics(shape.l_max))),
        *_write_rows(shape.l_max, number),
    ]
    return _kernel("geometry_value", "vectors, lengths, of_basis, of_envelope, rows", lines)


def _tangent(shape: GeometryShape, number: str) -> str:
    slopes = []
    for n, (_, of_components) in enumerate(_harmonics(shape.l_max)):
        terms = [f"turn_{axis} * ({slope})" for axis, slope in zip("xyz", of_components, strict=True) if slope]
        slopes.append(f"y{n} = {' + '.join(terms) or 'tl.zeros([PAIRS], tl.float64)'}")
    lines = [
        *_PAIR,
        *_DIRECTION,
        *(
            f"t{axis} = tl.load(changes + 3 * q + {k}, mask=real, other=0.0).to(tl.float64)"
            for k, axis in enumerate("xyz")
        ),
        "along = ux * tx + uy * ty + uz * tz",
        "if lengths is not None:",
        "    tl.store(lengths + q, along, mask=exists)",
        *_radial(
            shape,
            number,
            ["{d} = {d} * along"],
            chunk_end=_write_basis(shape.num_radial_basis, number, "d"),
            of_envelope=["tl.store(of_envelope + q, e_slope * along, mask=exists)"],
        ),
        *(f"turn_{axis} = (t{axis} - u{axis} * along) * per_length" for axis in "xyz"),
        *_monomials(max(shape.l_max - 1, 0)),
        *slopes,
        *_write_rows(shape.l_max, number),
    ]
    return _kernel("geometry_tangent", "vectors, changes, lengths, of_basis, of_envelope, rows", lines)


def _gradient(shape: GeometryShape, number: str) -> str:
    n, width, tile = shape.num_radial_basis, harmonics_width(shape.l_max), columns(harmonics_width(shape.l_max))
    turns = [
        f"turn_{axis} += y{n_harmonic} * ({slope})"
        for n_harmonic, (_, of_components) in enumerate(_harmonics(shape.l_max))
        for axis, slope in zip("xyz", of_components, strict=True)
        if slope
    ]
    chunk = min(columns(n), _CHUNK)
    lines = [
        *_PAIR,
        *_DIRECTION,
        "along = tl.zeros([PAIRS], tl.float64)",
        "if lengths is not None:",
        "    along += tl.load(lengths + q, mask=real, other=0.0).to(tl.float64)",
        *_radial(
            shape,
            number,
            ["along += g{place} * {d}"],
            chunk_start=[
                f"chunk = tl.load(of_basis + q[:, None] * {n} + column, mask=inside, other=0.0).to(tl.float64)",
                *split("chunk", [f"g{place}" for place in range(chunk)]),
            ],
            of_envelope=["along += e_slope * tl.load(of_envelope + q, mask=exists, other=0.0).to(tl.float64)"],
        ),
        "if parts is not None:",
        *_indented(
            [
                *_places_of_rows(shape.l_max),
                f"kept = real[:, None] & (place < {width})",
                f"a = parts + slot_a[:, None] * {width} + place",
                f"b = parts + slot_b[:, None] * {width} + place",
                f"sum_a, sum_b = tl.zeros([PAIRS, {tile}], {number}), tl.zeros([PAIRS, {tile}], {number})",
                f"step_of_shares = tl.cast(N, tl.int64) * K * {width}",
                "for _ in range(shares):",
                "    sum_a += tl.load(a, mask=kept, other=0.0)",
                "    sum_b += tl.load(b, mask=kept, other=0.0)",
                "    a += step_of_shares",
                "    b += step_of_shares",
                "tile = sum_a.to(tl.float64) + tl.where(odd, -sum_b, sum_b).to(tl.float64)",
                *split("tile", [f"y{m}" for m in range(tile)]),
                "if by_length:",
                "    along += y0",
                *_monomials(max(shape.l_max - 1, 0)),
                *(f"turn_{axis} = tl.zeros([PAIRS], tl.float64)" for axis in "xyz"),
                *turns,
                "radial_part = ux * turn_x + uy * turn_y + uz * turn_z",
                *(f"g{axis} = along * u{axis} + (turn_{axis} - radial_part * u{axis}) * per_length" for axis in "xyz"),
            ]
        ),
        "else:",
        *(f"    g{axis} = along * u{axis}" for axis in "xyz"),
        *(
            f"tl.store(of_vectors + 3 * q + {k}, tl.where(real, g{axis}, 0.0), mask=exists)"
            for k, axis in enumerate("xyz")
        ),
    ]
    pointers = "vectors, lengths, of_basis, of_envelope, of_vectors, parts"
    return _kernel("geometry_gradient", pointers, lines, ["by_length", "arrays"], ["shares"])


def _radial_coefficients(number: str) -> str:
    rows = []
    for k, (h0, h1, h2, h3, h4, h5) in enumerate(HERMITE):
        rows += [
            f"f{k} = {h0} + t * ({h1} + t * ({h2} + t * ({h3} + t * ({h4} + t * {h5}))))",
            f"f{6 + k} = ({h1} + t * ({2 * h2} + t * ({3 * h3} + t * ({4 * h4} + t * {5 * h5})))) / step",
        ]
    lines = [
        *_PAIR,
        "length = tl.load(lengths + q, mask=exists, other=0.0)",
        named_number("step", f"(r_max - {SHORTEST}) / (n_nodes - 1)"),
        f"node = (length.to(tl.float64) - {SHORTEST}) / step",
        # a length that is no number must not become an index
        "interval = tl.where(node > 0.0, tl.minimum(tl.floor(node), n_nodes - 2.0), 0.0)",
        "interval = tl.where(node == node, interval, 0.0)",
        "t = node - interval",
        "tl.store(intervals + q, interval.to(tl.int64), mask=exists)",
        *rows,
        *joined("tile", [f"f{k}" for k in range(12)], 16, number),
        "tile = tl.where((length < r_max)[:, None], tile, 0.0)",
        "place = tl.arange(0, 16)[None, :]",
        "tl.store(factors + q[:, None] * 12 + place, tile, mask=exists[:, None] & (place < 12))",
    ]
    return _kernel("radial_coefficients", "lengths, intervals, factors", lines, ["n_nodes"])


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
        *_indented(
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


def _forces_value() -> str:
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
    return _kernel("forces_value", "gradient, forces", lines)


def _forces_adjoint() -> str:
    lines = [*_PAIR, *_ATOMS]
    for k in range(3):
        lines += [
            "if forces is not None:",
            f"    g = tl.load(forces + 3 * i + {k}, mask=real, other=0.0)",
            f"    g -= tl.load(forces + 3 * j + {k}, mask=real, other=0.0)",
            f"    tl.store(of_gradient + 3 * q + {k}, g, mask=exists)",
            "else:",
            f"    tl.store(of_gradient + 3 * q + {k}, tl.zeros([PAIRS], of_gradient.dtype.element_ty), mask=exists)",
        ]
    return _kernel("forces_adjoint", "forces, of_gradient", lines)


def _strain_of_atoms() -> str:
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
    return _kernel("strain_of_atoms", "vectors, gradient, strain", lines)


def _strain_adjoint() -> str:
    lines = [
        *_PAIR,
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
    return _kernel("strain_adjoint", "vectors, of_strain, of_gradient", lines)


def _repulsion_value(num_cutoff_basis: int, number: str) -> str:
    lines = [
        *_PAIR,
        *_ATOMS,
        *_radii(),
        "charge_a, charge_b = tl.load(charges + element_i), tl.load(charges + element_j)",
        "length = tl.load(lengths + q, mask=exists, other=1.0)",
        "r = length.to(tl.float64)",
        "near = real & (length < r_max)",
        *repulsion(num_cutoff_basis),
        "tl.store(halves + q, energy, mask=exists)",
        "tl.store(slopes + q, slope, mask=exists)",
    ]
    return _kernel("repulsion_value", "lengths, halves, slopes", lines)


def _repulsion_rows() -> str:
    add = ["energy += tl.load(halves + pair, mask=listed, other=0.0).to(tl.float64)"]
    lines = [
        "row = tl.program_id(0).to(tl.int64)",
        *_sum_over_slots("row", ["energy"], add),
        "tl.store(energies + row, energy)",
    ]
    return _kernel("repulsion_rows", "halves, energies", lines)


def _repulsion_gradient() -> str:
    lines = [
        *_PAIR,
        *_ATOMS,
        "row_i = tl.load(row_of_atom + i, mask=exists, other=0).to(tl.int64)",
        "row_j = tl.load(row_of_atom + j, mask=exists, other=0).to(tl.int64)",
        "both = tl.load(cotangents + row_i, mask=real, other=0.0) + tl.load(cotangents + row_j, mask=real, other=0.0)",
        "tl.store(of_lengths + q, tl.load(slopes + q, mask=real, other=0.0) * both, mask=exists)",
    ]
    return _kernel("repulsion_gradient", "slopes, cotangents, of_lengths", lines)
