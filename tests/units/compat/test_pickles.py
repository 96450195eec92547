"""Does the reader of pickles agree with Python's on plain data, and only write down what Python would run?"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mace.files import archives
from mace.files.archives import CONSTRUCTORS
from mace.files.pickles import MAX_TEXT, OMITTED, HostileError, Machine, Name, PickleError, Record

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-5, 5), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def read(data: bytes) -> Any:
    return Machine(data, 0, CONSTRUCTORS).read()


@given(PLAIN, st.integers(2, 5))
def test_plain_data_of_every_protocol(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("value", [[1, -2, 3.5], {"a": (None, True, False)}, "text", [[]] * 3, [[1], [2]] * 2])
@pytest.mark.parametrize("protocol", [0, 1])
def test_plain_data_of_old_protocols(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


class Point:
    """Something with attributes."""

    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_becomes_a_record(protocol: int) -> None:
    found = read(pickle.dumps(Point(), protocol))
    assert isinstance(found, Record)
    assert found.state == {"x": 1}


@pytest.mark.parametrize("protocol", range(6))
def test_ordered_dictionaries_are_understood(protocol: int) -> None:
    found = read(pickle.dumps(OrderedDict(a=1, b=2), protocol))
    assert found == {"a": 1, "b": 2}


def test_a_set_is_a_record_of_its_items() -> None:
    assert read(pickle.dumps({1}, 4)).items == [1]
    assert read(pickle.dumps(frozenset([1]), 4)).items == [1]


def test_shared_objects_stay_shared() -> None:
    shared: list[int] = []
    first, second = read(pickle.dumps([shared, shared]))
    assert first is second


def test_what_lies_below_a_mark_that_is_taken_off_stays() -> None:
    assert read(b"K\x01(0.") == 1
    assert read(b"K\x01(K\x02K\x031.") == 1
    looped: tuple[list[Any]] = ([],)
    looped[0].append(looped)
    for protocol in range(6):
        found = read(pickle.dumps(looped, protocol))
        assert found[0][0] is found


def test_long_texts_are_left_out() -> None:
    assert read(pickle.dumps("x" * (MAX_TEXT + 1), 4)) is OMITTED
    assert read(pickle.dumps("x" * MAX_TEXT, 4)) == "x" * MAX_TEXT


def test_a_name_is_never_looked_up() -> None:
    assert read(b"cno.such.module\nthing\n.") == Name("no.such.module", "thing")


@pytest.mark.parametrize("name", ["os\nsystem", "nt\nsystem", "builtins\neval", "__builtin__\nexec", "subprocess\nrun"])
def test_names_of_attacks_are_refused(name: str) -> None:
    with pytest.raises(HostileError):
        read(f"c{name}\n.".encode())


def test_harmless_functions_of_the_same_modules_are_records() -> None:
    assert read(b"cbuiltins\nset\n(]tR.").name == Name("builtins", "set")


@pytest.mark.parametrize("end", range(1, 60))
def test_every_cut_is_noticed(end: int) -> None:
    data = pickle.dumps({"a": [1, 2.5, "text"], "b": (None, b"bytes", 2**70)}, 4)
    with pytest.raises(PickleError):
        read(data[: min(end, len(data) - 1)])


def test_the_place_behind_a_pickle_is_known() -> None:
    data = pickle.dumps(1, 2) + pickle.dumps(2, 2)
    machine = Machine(data)
    assert machine.read() == 1
    assert Machine(data, machine.place).read() == 2


class Slotted:
    """Something with attributes of both kinds."""

    __slots__ = ("__dict__", "y")

    def __init__(self) -> None:
        self.x, self.y = 1, 2


def test_of_attributes_and_slots_the_attributes_are_the_state() -> None:
    assert read(pickle.dumps(Slotted(), 2)).state == {"x": 1}


@pytest.mark.parametrize("key", [float("nan"), (1, 2)])
def test_entries_under_other_keys_than_text_and_numbers_are_left_out(key: Any) -> None:
    assert read(pickle.dumps({key: 1, "a": 2})) == {"a": 2}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(-1, (2,), (1,)), (0, (2, -3), (3, 1)), (0, (2,), (True,)), (0, (2,), (1 << 60,))]
)
def test_one_senseless_number_of_a_tensor_is_enough(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(PickleError, match="no sensible shape"):
        archives._tensor(archives.Storage("FloatStorage", "0", 6), offset, shape, strides)
