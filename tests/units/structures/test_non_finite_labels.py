"""Are labels that are no finite numbers refused, or left out and listed where that is wanted?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mace.errors import UserError
from mace.structures.labels import LabelFault
from mace.structures.reading import ReadResult, read_sources
from mace.structures.sources import Source

PROPERTIES = "Properties=species:S:1:pos:R:3:REF_forces:R:3"


def text(energy: str = "-1.5", force: str = "1.0", more: str = "") -> str:
    return f"2\n{PROPERTIES} REF_energy={energy} {more}\nO 0 0 0 1.0 2.0 3.0\nH 0 0 1 -1.0 {force} -3.0\n"


def read(file: str, skip: bool = True) -> ReadResult:
    return read_sources([Source(file)], skip_non_finite=skip)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_they_are_left_out_one_by_one_and_listed(write_file: Callable[..., str], word: str) -> None:
    result = read(write_file(text() + text(energy=word) + text(force=word) + text(energy=word, force=word) + text()))
    energies = [configuration.energy for configuration in result.configurations]
    assert energies == [-1.5, None, -1.5, None, -1.5]
    forces = [configuration.forces is not None for configuration in result.configurations]
    assert forces == [True, True, False, False, True]
    np.testing.assert_array_equal(result.configurations[1].forces, [[1, 2, 3], [-1, 1, -3]])
    (labels,) = result.report.files
    expected = [("energy", 1), ("energy", 3), ("forces", 2), ("forces", 3)]
    assert list(labels.faults) == [LabelFault(name, f"REF_{name}", index) for name, index in expected]
    assert labels.of("energy").labeled == 3 and labels.of("forces").labeled == 3


def test_tensors_are_left_out_too(write_file: Callable[..., str]) -> None:
    good, bad = ('REF_stress="1 2 3 4 5 6"', 'REF_stress="1 2 3 nan 5 6"')
    result = read(write_file(text(more=good) + text(more=bad)))
    np.testing.assert_array_equal(result.configurations[0].stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert result.configurations[1].stress is None
    assert result.report.files[0].faults == (LabelFault("stress", "REF_stress", 1),)


def test_without_any_nothing_is_listed(write_file: Callable[..., str]) -> None:
    result = read(write_file(text() * 2))
    assert result.report.files[0].faults == () and result.report.total("energy") == 2


@pytest.mark.parametrize(("energy", "force", "name"), [("nan", "1.0", "energy"), ("-1", "inf", "forces")])
def test_where_it_is_not_wanted_they_are_refused(
    write_file: Callable[..., str], energy: str, force: str, name: str
) -> None:
    file = write_file(text() + text(energy, force))
    with pytest.raises(UserError, match=f"structure 1: the label '{name}' .* is NaN or infinite; correct it"):
        read(file, skip=False)


@pytest.mark.parametrize("skip", [True, False])
def test_words_are_refused_in_any_case(write_file: Callable[..., str], skip: bool) -> None:
    with pytest.raises(UserError, match="structure 0: the label 'energy' .* is 'unknown' and not a number"):
        read(write_file(text(energy="unknown")), skip)
