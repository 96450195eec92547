"""Elements are numbered, and unknown ones are named."""

from __future__ import annotations

import numpy as np
import pytest

from mace.elements import ElementTable, atomic_number, chemical_symbol, covalent_radii
from mace.errors import UserError


def test_table_is_sorted_and_unique() -> None:
    table = ElementTable.from_arrays([np.array([8, 1, 1]), np.array([26])])
    assert table.atomic_numbers == (1, 8, 26)
    assert table.symbols == ("H", "O", "Fe")
    assert len(table) == 3 and 8 in table and 6 not in table and list(table) == [1, 8, 26]
    assert table == ElementTable((26, 8, 1, 8))


def test_index_keeps_the_shape_and_names_the_unknown() -> None:
    table = ElementTable((8, 1))
    indices = table.index(np.array([[1, 8], [8, 8]]))
    assert indices.tolist() == [[0, 1], [1, 1]] and indices.dtype == np.int64
    with pytest.raises(UserError, match="has no C, Fe; it knows H, O"):
        table.index(np.array([1, 26, 6]))


@pytest.mark.parametrize("element", ["Zz", "", "0", "119", "-1", 0, 119, 1.5, True, None, "X"])
def test_what_is_no_element(element: object) -> None:
    with pytest.raises(UserError, match="not a chemical element"):
        atomic_number(element)  # type: ignore[arg-type]


def test_symbols_and_radii() -> None:
    assert [atomic_number(text) for text in ("fe", " Fe ", "26", int(np.int64(26)))] == [26] * 4
    assert chemical_symbol(118) == "Og" and chemical_symbol(0) == "Z=0"
    np.testing.assert_allclose(covalent_radii([1, 6]), [0.31, 0.76])
