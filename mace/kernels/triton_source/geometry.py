"""Triton kernels of what depends on the geometry alone: radial functions and harmonics, with their derivatives.

Names, arrays and dimensions are those of `mace.kernels.c_source.geometry`; `mace.kernels.triton_source.pairs` says what
pairs and padding are. Rows of harmonics are rounded up to whole vectors of four numbers, see `harmonics_width`, and
``geometry_gradient`` takes one array of gradients of the harmonics, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from mace.kernels.c_source.geometry import GeometryShape, harmonic_expressions, monomials
from mace.kernels.radial_table import HERMITE, SHORTEST
from mace.kernels.triton_source.launching import DeviceKernel, Number, number_type
from mace.kernels.triton_source.pairs import ATOMS, DIRECTION, PAIR, PAIRS, indented, kernel, pair_kernels, radii
from mace.kernels.triton_source.radial import basis_function, basis_start, envelope, named_number, transform
from mace.kernels.triton_source.tiles import columns, joined, split

_CHUNK = 8
"""Radial functions that are read or written together."""


def harmonics_width(l_max: int) -> int:
    """Return the number of harmonics rounded up to whole vectors, the length of a slot's row."""
    return -(-((l_max + 1) ** 2) // 4) * 4


@cache
def geometry_kernels(shape: GeometryShape, dtype: torch.dtype) -> dict[str, DeviceKernel]:
    """Return the kernels of this module, and those of `pair_kernels`.

    Args:
        shape: What they depend on.
        dtype: Precision of the arrays.
    """
    number = number_type(dtype)
    return {
        "geometry_value": _value(shape, number),
        "geometry_gradient": _gradient(shape, number),
        "geometry_tangent": _tangent(shape, number),
        "radial_coefficients": _radial_coefficients(number),
        **pair_kernels(shape.num_cutoff_basis, dtype),
    }


def _tiles_of_pairs_and_slots(dimensions: Sequence[Number]) -> tuple[int, ...]:
    """Each program has a tile of pairs, and as many slots of which it clears the empty ones as pairs have."""
    n_atoms, n_neighbors, n_pairs = map(int, dimensions[:3])
    return (max(-(-n_pairs // PAIRS), -(-n_atoms * n_neighbors // (2 * PAIRS))),)


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
        *indented(
            [
                *([*ATOMS, *radii()] if transformed else []),
                # compared as rounded, so that the padding, as long as the cutoff, lies outside
                *envelope(shape.num_cutoff_basis, "r_max", f"real & (r.to({number}) < r_max)"),
                "if of_basis is not None:",
                *indented(
                    [
                        *transform(shape.distance_transform),
                        *basis_start(shape.radial_type, n),
                        *([f"for first in range(0, {n}, {width}):", *indented(chunk)] if looped else chunk),
                    ]
                ),
                "if of_envelope is not None:",
                *indented(of_envelope),
            ]
        ),
    ]


def _definitions(degree: int) -> list[str]:
    """Return definitions of the monomials of the components of ``u``."""
    products = ((name, f"u{'xyz'[axis]}", lower) for name, axis, lower in monomials(degree))
    return [
        "m000 = tl.full([PAIRS], 1.0, tl.float64)",
        *(f"{name} = {component}{f' * {lower}' if lower else ''}" for name, component, lower in products),
    ]


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


def _value(shape: GeometryShape, number: str) -> DeviceKernel:
    lines = [
        *PAIR,
        *DIRECTION,
        "tl.store(lengths + q, r, mask=exists)",
        *_radial(
            shape,
            number,
            [],
            chunk_end=_write_basis(shape.num_radial_basis, number, "b"),
            of_envelope=["tl.store(of_envelope + q, e, mask=exists)"],
        ),
        *_definitions(shape.l_max),
        *(f"y{n} = {value}" for n, (value, _) in enumerate(harmonic_expressions(shape.l_max))),
        *_write_rows(shape.l_max, number),
    ]
    return kernel(
        "geometry_value", "vectors, lengths, of_basis, of_envelope, rows", lines, grid=_tiles_of_pairs_and_slots
    )


def _tangent(shape: GeometryShape, number: str) -> DeviceKernel:
    slopes = []
    for n, (_, of_components) in enumerate(harmonic_expressions(shape.l_max)):
        terms = [f"turn_{axis} * ({slope})" for axis, slope in zip("xyz", of_components, strict=True) if slope]
        slopes.append(f"y{n} = {' + '.join(terms) or 'tl.zeros([PAIRS], tl.float64)'}")
    lines = [
        *PAIR,
        *DIRECTION,
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
        *_definitions(max(shape.l_max - 1, 0)),
        *slopes,
        *_write_rows(shape.l_max, number),
    ]
    return kernel(
        "geometry_tangent",
        "vectors, changes, lengths, of_basis, of_envelope, rows",
        lines,
        grid=_tiles_of_pairs_and_slots,
    )


def _gradient(shape: GeometryShape, number: str) -> DeviceKernel:
    n, width, tile = shape.num_radial_basis, harmonics_width(shape.l_max), columns(harmonics_width(shape.l_max))
    turns = [
        f"turn_{axis} += y{n_harmonic} * ({slope})"
        for n_harmonic, (_, of_components) in enumerate(harmonic_expressions(shape.l_max))
        for axis, slope in zip("xyz", of_components, strict=True)
        if slope
    ]
    chunk = min(columns(n), _CHUNK)
    lines = [
        *PAIR,
        *DIRECTION,
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
        *indented(
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
                *_definitions(max(shape.l_max - 1, 0)),
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
    return kernel("geometry_gradient", pointers, lines, ["by_length", "arrays"], ["shares"])


def _radial_coefficients(number: str) -> DeviceKernel:
    rows = []
    for k, (h0, h1, h2, h3, h4, h5) in enumerate(HERMITE):
        rows += [
            f"f{k} = {h0} + t * ({h1} + t * ({h2} + t * ({h3} + t * ({h4} + t * {h5}))))",
            f"f{6 + k} = ({h1} + t * ({2 * h2} + t * ({3 * h3} + t * ({4 * h4} + t * {5 * h5})))) / step",
        ]
    lines = [
        *PAIR,
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
    return kernel("radial_coefficients", "lengths, intervals, factors", lines, ["n_nodes"])
