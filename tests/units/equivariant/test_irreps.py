"""The notation of irreps and their products."""

from __future__ import annotations

import pytest

from mace.equivariant.irreps import Irrep, natural, parse_irreps


def test_dimension_name_and_parity() -> None:
    assert [natural(l).dimension for l in range(4)] == [1, 3, 5, 7]
    assert [str(natural(l)) for l in range(4)] == ["0e", "1o", "2e", "3o"]
    assert natural(2).is_natural and not Irrep(2, -1).is_natural and not Irrep(1, 1).is_natural


def test_products_obey_triangle_and_parity() -> None:
    assert [str(irrep) for irrep in natural(1).products(natural(2))] == ["1o", "2o", "3o"]
    assert [str(irrep) for irrep in Irrep(1, 1).products(natural(1))] == ["0o", "1o", "2o"]
    assert sum(irrep.dimension for irrep in natural(3).products(natural(4))) == 7 * 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128x0e + 128x1o", [(128, "0e"), (128, "1o")]),
        ("16x0e", [(16, "0e")]),
        ("0e+1o", [(1, "0e"), (1, "1o")]),
        ("  4 x 2e+ 3x1e ", [(4, "2e"), (3, "1e")]),
        ("0x1o + 10x10e", [(0, "1o"), (10, "10e")]),
    ],
)
def test_reading(text: str, expected: list[tuple[int, str]]) -> None:
    assert [(n, str(irrep)) for n, irrep in parse_irreps(text)] == expected


@pytest.mark.parametrize(
    "text", ["", "128", "128x0", "128x0f", "x0e", "0e + ", "-1x0e", "1x-1o", "1.5x0e", "128x0e, 128x1o"]
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="write them as '128x0e") as caught:
        parse_irreps(text)
    assert repr(text) in str(caught.value).replace('"', "'")


def test_irreps_sort_by_degree_then_parity() -> None:
    assert sorted([Irrep(1, 1), Irrep(0, 1), Irrep(1, -1)]) == [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1)]
