"""A reader of pickles that runs nothing: what a pickle would construct or call is only written down.

A pickle is a program for a stack machine. Python's own reader imports the classes and functions a pickle names and
calls them, so that a file can do whatever its author likes. This machine knows the same instructions, but a name stays
a `Name`, and a call or an object becomes a `Record` of its name, arguments and state. Nothing is looked up by name
except a dozen constructors that are defined here. Numbers of instructions and sizes are bounded, so that reading takes
time and memory in proportion to the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_INSTRUCTIONS = 200_000
"""That of a model has some ten thousand."""
MAX_INTEGER_BYTES = 16
MAX_TEXT = 1 << 16
"""Longer texts and byte strings, which hold compiled code, are left out."""
MAX_LINE = 1 << 10

Constructor = Callable[..., Any]


class PickleError(Exception):
    """The pickle is damaged, too large, or uses what no model file uses."""


class HostileError(PickleError):
    """The pickle asks for what only an attack needs."""


class Name(NamedTuple):
    """A class or function named in a pickle; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Omitted:
    """Stands for a text or byte string too long to matter."""


OMITTED = Omitted()


class Record:
    """An object or a call as the pickle describes it.

    Attributes:
        name: The class or function; None where the pickle calls something that is no name.
        arguments: What it would be called with.
        states: What would be given to ``__setstate__``, in order.
        items: What would be appended.
        entries: What would be set by key, keys being text or numbers.
    """

    __slots__ = ("arguments", "entries", "items", "name", "states")

    def __init__(self, name: Name | None, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.states: list[Any] = []
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    @property
    def state(self) -> dict[Any, Any]:
        """The attributes of an ordinary object; empty if there are none."""
        last = self.states[-1] if self.states else None
        if isinstance(last, tuple) and len(last) == 2 and isinstance(last[0], dict):
            last = last[0]  # attributes and slots
        return last if isinstance(last, dict) else {}


class _Mark:
    """A place on the stack."""


_HOSTILE_PACKAGES = frozenset("os importlib ctypes asyncio multiprocessing pip".split())
_HOSTILE_MODULES = frozenset(
    "posix nt subprocess sys shutil socket runpy pty pdb bdb code codeop webbrowser timeit cProfile".split()
)
"""Modules of one file; a package of the same name, such as a fork in a folder called code, is another one."""
_HOSTILE_FUNCTIONS = frozenset("eval exec compile open __import__ input breakpoint exit quit".split())


def _refuse_hostile(name: Name) -> None:
    """Refuse a file that names what only an attack needs; it would not be called here, but says what the file is.

    Raises:
        HostileError: If it is such a name.
    """
    package = name.module.partition(".")[0]
    if (
        package in _HOSTILE_PACKAGES
        or name.module in _HOSTILE_MODULES
        or (package in ("builtins", "__builtin__") and name.name.partition(".")[0] in _HOSTILE_FUNCTIONS)
    ):
        raise HostileError(f"it asks to call {str(name)[:60]}, which no model does")


_MARK = _Mark()
_SIMPLE_KEYS = (str, int, float, bool, type(None))
_FIXED = {"J": "<i", "K": "<B", "M": "<H", "G": ">d"}
# instruction: format of the length, and whether it is text
_LENGTHS = {
    "X": ("<I", True), "\x8c": ("<B", True), "\x8d": ("<Q", True), "B": ("<I", False), "C": ("<B", False),
    "\x8e": ("<Q", False), "\x96": ("<Q", False), "T": ("<i", False), "U": ("<B", False),
}  # fmt: skip


class Machine:
    """Reads one pickle.

    Args:
        data: Bytes that hold the pickle.
        start: Where it begins.
        constructors: What is built for a name, from the arguments of a call; everything else becomes a `Record`.
        persistent: Builds what the pickle refers to outside itself, from its identifier.
    """

    def __init__(
        self,
        data: bytes,
        start: int = 0,
        constructors: Mapping[Name, Constructor] | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data = data
        self.place = start
        self._constructors = constructors or {}
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Run the pickle to its end; `place` is then behind it.

        Returns:
            Numbers, texts, tuples, lists, dictionaries, `Name`, `Record` and what the constructors built.

        Raises:
            PickleError: If it cannot be read within the bounds.
        """
        for _ in range(MAX_INSTRUCTIONS):
            code = chr(self._byte())
            if code == ".":
                return self._pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise PickleError(f"the instruction {code!r} at byte {self.place - 1} is not known")
            action(self, code)
        raise PickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")

    # what is on the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError(f"nothing is left on its stack at byte {self.place}")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError(f"a mark is missing at byte {self.place}")
        start = self._marks.pop()
        values = self._stack[start + 1 :]
        del self._stack[start:]
        return values

    # what is in the file

    def _bytes(self, count: int) -> bytes:
        end = self.place + count
        if count < 0 or end > len(self.data):
            raise PickleError("it is cut off")
        found = self.data[self.place : end]
        self.place = end
        return found

    def _byte(self) -> int:
        if self.place >= len(self.data):
            raise PickleError("it is cut off")
        self.place += 1
        return self.data[self.place - 1]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.place, self.place + MAX_LINE)
        if end < 0:
            raise PickleError(f"a line at byte {self.place} does not end")
        line = self.data[self.place : end]
        self.place = end + 1
        return line.decode("utf-8", "replace")

    # instructions

    def _nothing(self, code: str) -> None:
        pass

    def _protocol(self, code: str) -> None:
        if self._byte() > 5:
            raise PickleError("its protocol is newer than 5")

    def _frame(self, code: str) -> None:
        self._bytes(8)

    def _mark(self, code: str) -> None:
        self._marks.append(len(self._stack))
        self._push(_MARK)

    def _constant(self, code: str) -> None:
        self._push({"N": None, "\x88": True, "\x89": False}[code])

    def _fixed(self, code: str) -> None:
        self._push(self._number(_FIXED[code]))

    def _long(self, code: str) -> None:
        count = self._byte() if code == "\x8a" else self._number("<i")
        if count > MAX_INTEGER_BYTES:
            raise PickleError(f"an integer has {count} bytes")
        self._push(int.from_bytes(self._bytes(count), "little", signed=True))

    def _written_number(self, code: str) -> None:
        text = self._line().strip().removesuffix("L")
        if len(text) > 3 * MAX_INTEGER_BYTES:
            raise PickleError(f"a number has {len(text)} digits")
        try:
            self._push(float(text) if code == "F" else int(text or "0"))
        except ValueError as error:
            raise PickleError(f"{text!r} is no number") from error

    def _sized(self, code: str) -> None:
        form, is_text = _LENGTHS[code]
        count = self._number(form)
        if count > MAX_TEXT:
            if count > len(self.data) - self.place:
                raise PickleError("it is cut off")
            self.place += count
            self._push(OMITTED)
            return
        found = self._bytes(count)
        # byte strings of Python 2 are text too
        self._push(found.decode("utf-8", "replace") if is_text or code in "TU" else found)

    def _written_text(self, code: str) -> None:
        self._push(self._line().strip("'\""))

    def _empty(self, code: str) -> None:
        made: Any = Record(_SET) if code == "\x8f" else {"]": [], "}": {}, ")": ()}[code]
        self._push(made)

    def _tuple(self, code: str) -> None:
        if code == "t":
            self._push(tuple(self._pop_to_mark()))
            return
        count = "\x85\x86\x87".index(code) + 1
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _list(self, code: str) -> None:
        self._push(self._pop_to_mark())

    def _dictionary(self, code: str) -> None:
        values = self._pop_to_mark()
        made: dict[Any, Any] = {}
        _set_entries(made, values)
        self._push(made)

    def _frozen_set(self, code: str) -> None:
        record = Record(_SET)
        record.items = self._pop_to_mark()
        self._push(record)

    def _append(self, code: str) -> None:
        values = [self._pop()] if code == "a" else self._pop_to_mark()
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Record):
            target.items.extend(values)
        else:
            raise PickleError(f"it appends to what is no list at byte {self.place}")

    def _set_items(self, code: str) -> None:
        if code == "s":
            value = self._pop()
            values = [self._pop(), value]
        else:
            values = self._pop_to_mark()
        target = self._top()
        if isinstance(target, Record):
            target = target.entries
        if not isinstance(target, dict):
            raise PickleError(f"it sets entries of what is no dictionary at byte {self.place}")
        _set_entries(target, values)

    def _pop_off(self, code: str) -> None:
        if self._stack and self._stack[-1] is _MARK:
            self._pop_to_mark()
        else:
            self._pop()

    def _pop_mark(self, code: str) -> None:
        self._pop_to_mark()

    def _duplicate(self, code: str) -> None:
        self._push(self._top())

    def _put(self, code: str) -> None:
        if code == "\x94":
            index = len(self._memo)
        elif code == "p":
            index = self._index()
        else:
            index = self._byte() if code == "q" else self._number("<I")
        self._memo[index] = self._top()

    def _get(self, code: str) -> None:
        index = self._index() if code == "g" else self._byte() if code == "h" else self._number("<I")
        if index not in self._memo:
            raise PickleError(f"it refers to {index}, which was not stored, at byte {self.place}")
        self._push(self._memo[index])

    def _index(self) -> int:
        text = self._line()
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise PickleError(f"{text[:20]!r} is no index")
        return int(text)

    def _global(self, code: str) -> None:
        if code == "c":
            module = self._line()
            self._name(module, self._line())
            return
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError(f"a name at byte {self.place} is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        named = Name(module, name)
        _refuse_hostile(named)
        self._push(named)

    def _reduce(self, code: str) -> None:
        keywords = self._pop() if code == "\x92" else {}
        arguments, target = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
            raise PickleError(f"the arguments of a call at byte {self.place} are no tuple")
        self._construct(target, (*arguments, keywords) if keywords else arguments)

    def _instance(self, code: str) -> None:
        if code == "i":
            arguments = self._pop_to_mark()
            module = self._line()
            self._name(module, self._line())
            self._construct(self._pop(), tuple(arguments))
            return
        target, *others = self._pop_to_mark() or [None]
        self._construct(target, tuple(others))

    def _construct(self, target: Any, arguments: tuple[Any, ...]) -> None:
        """Write a call down, or build what is one of the few things known here."""
        constructor = self._constructors.get(target) if isinstance(target, Name) else None
        if constructor is None:
            self._push(Record(target if isinstance(target, Name) else None, arguments))
            return
        try:
            self._push(constructor(*arguments))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise PickleError(f"{target} cannot be made from its arguments ({error})") from error

    def _build(self, code: str) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Record):
            target.states.append(state)

    def _refer(self, code: str) -> None:
        identifier = self._line() if code == "P" else self._pop()
        if self._persistent is None:
            raise PickleError("it refers to something outside itself")
        try:
            self._push(self._persistent(identifier))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise PickleError(f"a storage is not described as torch does it ({error})") from error


_SET = Name("builtins", "set")


def _set_entries(target: dict[Any, Any], values: list[Any]) -> None:
    """Set pairs of key and value; those whose key is neither text nor a number do not matter here."""
    if len(values) % 2:
        raise PickleError("a key has no value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if isinstance(key, _SIMPLE_KEYS) and not (isinstance(key, float) and math.isnan(key)):
            target[key] = value


_ACTIONS: dict[str, Callable[[Machine, str], None]] = {
    code: action
    for codes, action in {
        "\x80": Machine._protocol, "\x95": Machine._frame, "(": Machine._mark, "N\x88\x89": Machine._constant,
        "JKMG": Machine._fixed, "\x8a\x8b": Machine._long, "ILF": Machine._written_number,
        "X\x8c\x8dBC\x8e\x96TU": Machine._sized, "SV": Machine._written_text, "]})\x8f": Machine._empty,
        "t\x85\x86\x87": Machine._tuple, "l": Machine._list, "d": Machine._dictionary, "\x91": Machine._frozen_set,
        "ae\x90": Machine._append, "su": Machine._set_items, "0": Machine._pop_off, "1": Machine._pop_mark,
        "2": Machine._duplicate, "pqr\x94": Machine._put, "ghj": Machine._get, "c\x93": Machine._global,
        "R\x81\x92": Machine._reduce, "io": Machine._instance, "b": Machine._build, "PQ": Machine._refer,
        "\x98": Machine._nothing,
    }.items()
    for code in codes
}  # fmt: skip
"""What each instruction does. Those left out, extension codes and buffers outside the file, are used by no model."""
