"""A pickle reader that executes nothing: what a pickle would construct or call is only recorded.

A pickle is a program for a stack machine. Python's own reader imports the classes and functions a pickle names and
calls them, so that a file can do whatever its author likes. This machine knows the same instructions, but a name stays
a `Name`, and a call or an object becomes a `Record` of its name, arguments and state. Nothing is looked up by name
except a dozen constructors that the caller passes. The number of instructions and all sizes are bounded, so that the
time and memory for reading are proportional to the size of the file.

``pickle.Unpickler`` with a harmless ``find_class`` is not enough, since it has no such bounds. A single ``PUT`` of 15
bytes makes it allocate gigabytes, and it hashes every dictionary key and set item: nested tuples overflow its stack or,
if they share their parts, take forever. What each instruction reads from the file and from the stack is taken from
`pickletools`.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """The pickle contains something that only an attack would need."""


class Name(NamedTuple):
    """A class or function named in a pickle; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


OMITTED: Any = object()
"""Stands for a text or byte string too long to matter."""


class Record:
    """An object or a call as the pickle describes it.

    Attributes:
        name: The class or function; None if the pickle calls something that is not a name.
        arguments: What it would be called with.
        states: What would be given to ``__setstate__``, in order.
        items: What would be appended.
        entries: What would be set by key; keys are text or numbers.
    """

    __slots__ = ("arguments", "entries", "items", "name", "states")

    def __init__(self, name: Name | None, arguments: tuple[Any, ...] = (), items: list[Any] | None = None) -> None:
        self.name = name
        self.arguments = arguments
        self.states: list[Any] = []
        self.items: list[Any] = [] if items is None else items
        self.entries: dict[Any, Any] = {}

    @property
    def state(self) -> dict[Any, Any]:
        """The attributes of an ordinary object; empty if there are none."""
        last = self.states[-1] if self.states else None
        if isinstance(last, tuple) and len(last) == 2 and isinstance(last[0], dict):
            last = last[0]  # attributes and slots
        return last if isinstance(last, dict) else {}


_HOSTILE_PACKAGES = frozenset("os importlib ctypes asyncio multiprocessing pip".split())
_HOSTILE_MODULES = frozenset(
    "posix nt subprocess sys shutil socket runpy pty pdb bdb code codeop webbrowser timeit cProfile".split()
)
"""Modules of one file; a package of the same name, such as a fork in a folder called code, is another one."""
_HOSTILE_FUNCTIONS = frozenset("eval exec compile open __import__ input breakpoint exit quit".split())

_SET = Name("builtins", "set")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INSTRUCTIONS = {
    row.code: row for row in pickletools.opcodes if row.name not in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER")
}
"""All but those for registered classes and for buffers outside the file, which no model uses."""

_SIMPLE_KEYS = (str, int, float, bool, type(None))
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
"""Formats of the lengths that stand before texts, bytes and integers."""


class Machine:
    """Reads one pickle.

    Args:
        data: Bytes that hold the pickle.
        start: Where it begins.
        constructors: By name, functions that build an object from the arguments of a call; a call of any other name
            becomes a `Record`.
        persistent: Builds an object stored outside the pickle from its persistent id.
        most_instructions: Limit on the number of instructions.
    """

    def __init__(
        self,
        data: bytes,
        start: int = 0,
        constructors: Mapping[Name, Constructor] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        most_instructions: int = MAX_INSTRUCTIONS,
    ) -> None:
        self.data = data
        self.place = start
        self._constructors = constructors or {}
        self._persistent = persistent
        self._most_instructions = most_instructions
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """What lies below each mark."""
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Read the pickle to its end; `place` is then the position after it.

        Returns:
            Numbers, texts, tuples, lists, dictionaries, `Name`, `Record` and what the constructors built.

        Raises:
            PickleError: If it is damaged or exceeds the bounds.
        """
        for _ in range(self._most_instructions):
            code = self._bytes(1).decode("latin-1")
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PickleError(f"the instruction {code!r} at byte {self.place - 1} is not known")
            argument = self._argument(instruction.arg) if instruction.arg is not None else None
            # what the instruction takes from the stack, the lowest first
            wanted, mark = instruction.stack_before, pickletools.markobject
            if mark in wanted or (instruction.name == "POP" and not self._stack):
                if not self._below:
                    raise PickleError(f"a mark is missing at byte {self.place}")
                taken, self._stack = self._stack, self._below.pop()
                if mark in wanted[1:]:
                    taken.insert(0, self._pop())
            else:
                taken = [self._pop() for _ in wanted][::-1]
            if instruction.name == "STOP":
                return taken[0]
            made = self._execute(instruction.name, argument, taken)
            self._stack.extend(made)
        raise PickleError(f"it has more than {self._most_instructions} instructions")

    # reading from the file

    def _argument(self, kind: pickletools.ArgumentDescriptor) -> Any:
        """Read the argument that follows an instruction."""
        if kind.n > 0:
            return kind.reader(io.BytesIO(self._bytes(kind.n)))
        if kind.n == pickletools.UP_TO_NEWLINE:
            line = self._line()
            if kind.name == "stringnl_noescape_pair":
                return line, self._line()
            if "decimal" not in kind.name and "float" not in kind.name:
                return line.strip("'\"")
            digits = line.strip().removesuffix("L")
            if len(digits) > 3 * MAX_INTEGER_BYTES:
                raise PickleError(f"a number has {len(digits)} digits")
            try:
                return float(digits) if kind.name == "floatnl" else int(digits)
            except ValueError as error:
                raise PickleError(f"{digits!r} is no number") from error
        length = struct.unpack(_LENGTHS[kind.n], self._bytes(struct.calcsize(_LENGTHS[kind.n])))[0]
        if kind.name in ("long1", "long4"):
            if length > MAX_INTEGER_BYTES:
                raise PickleError(f"an integer has {length} bytes")
            return int.from_bytes(self._bytes(length), "little", signed=True)
        if length > MAX_TEXT:
            self._skip(length)
            return OMITTED
        found = self._bytes(length)
        # byte strings of Python 2 are text too
        return found if "byte" in kind.name else found.decode("utf-8", "replace")

    def _bytes(self, count: int) -> bytes:
        start = self._skip(count)
        return self.data[start : self.place]

    def _skip(self, count: int) -> int:
        """Move forward by a number of bytes, and return where they begin."""
        if not 0 <= count <= len(self.data) - self.place:
            raise PickleError("it is cut off")
        self.place += count
        return self.place - count

    def _line(self) -> str:
        end = self.data.find(b"\n", self.place, self.place + MAX_LINE)
        if end < 0:
            raise PickleError(f"a line at byte {self.place} does not end")
        return self._bytes(end + 1 - self.place)[:-1].decode("utf-8", "replace")

    # the stack

    def _pop(self) -> Any:
        if not self._stack:
            raise PickleError(f"nothing is left on its stack at byte {self.place}")
        return self._stack.pop()

    # instructions

    def _execute(  # noqa: C901  # one case for each instruction
        self, name: str, argument: Any, taken: list[Any]
    ) -> Sequence[Any]:
        """Execute an instruction, and return what it pushes onto the stack."""
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                value = taken[0] if taken else self._pop()
                self._memo[len(self._memo) if argument is None else argument] = value
                return (value,)
            case "BINGET" | "LONG_BINGET" | "GET":
                if argument not in self._memo:
                    raise PickleError(f"it refers to {argument}, which was not stored, at byte {self.place}")
                return (self._memo[argument],)
            case "PROTO":
                if argument > 5:
                    raise PickleError("its protocol is newer than 5")
                return ()
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
                return ()
            case "FRAME" | "POP" | "POP_MARK":
                return ()
            case "DUP":
                return taken * 2
            case "READONLY_BUFFER":
                return taken
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return (_CONSTANTS[name],)
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                return (tuple(taken),)
            case "EMPTY_LIST" | "LIST":
                return (taken,)
            case "EMPTY_DICT" | "DICT":
                return (_set_entries({}, taken),)
            case "EMPTY_SET" | "FROZENSET":
                return (Record(_SET, items=taken),)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = taken[0].items if isinstance(taken[0], Record) else taken[0]
                if not isinstance(items, list):
                    raise PickleError(f"it appends to what is no list at byte {self.place}")
                items.extend(taken[1:])
                return taken[:1]
            case "SETITEM" | "SETITEMS":
                entries = taken[0].entries if isinstance(taken[0], Record) else taken[0]
                if not isinstance(entries, dict):
                    raise PickleError(f"it sets entries of what is no dictionary at byte {self.place}")
                _set_entries(entries, taken[1:])
                return taken[:1]
            case "BUILD":
                if isinstance(taken[0], Record):
                    taken[0].states.append(taken[1])
                return taken[:1]
            case (
                "GLOBAL" | "STACK_GLOBAL" | "INST" | "OBJ" | "REDUCE" | "NEWOBJ" | "NEWOBJ_EX" | "PERSID" | "BINPERSID"
            ):
                return (self._refer(name, argument, taken),)
            case _:  # numbers and texts
                return (argument,)

    def _refer(self, name: str, argument: Any, taken: list[Any]) -> Any:
        """Record a name, a call or a persistent id; the class or function is never looked up."""
        match name:
            case "GLOBAL" | "STACK_GLOBAL":
                return self._name(argument or taken)
            case "INST":
                return self._call(self._name(argument), tuple(taken))
            case "OBJ":
                return self._call(taken[0] if taken else None, tuple(taken[1:]))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                target, arguments, keywords = (*taken, {})[:3]
                if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
                    raise PickleError(f"the arguments of a call at byte {self.place} are no tuple")
                return self._call(target, (*arguments, keywords) if keywords else arguments)
            case _:
                if self._persistent is None:
                    raise PickleError("it refers to something outside itself")
                with _explaining("a storage is not described as torch does it"):
                    return self._persistent(taken[0] if taken else argument)

    def _name(self, parts: Sequence[Any]) -> Name:
        module, word = parts
        if not isinstance(module, str) or not isinstance(word, str):
            raise PickleError(f"a name at byte {self.place} is no text")
        package = module.partition(".")[0]
        if (
            package in _HOSTILE_PACKAGES
            or module in _HOSTILE_MODULES
            or (package in ("builtins", "__builtin__") and word.partition(".")[0] in _HOSTILE_FUNCTIONS)
        ):
            # it would not be called here, but it shows that the file is malicious
            raise HostileError(f"it asks to call {f'{module}.{word}'[:60]}, which no model does")
        return Name(module, word)

    def _call(self, target: Any, arguments: tuple[Any, ...]) -> Any:
        """Record a call, or build the object if the caller has passed a constructor for it."""
        constructor = self._constructors.get(target) if isinstance(target, Name) else None
        if constructor is None:
            return Record(target if isinstance(target, Name) else None, arguments)
        with _explaining(f"{target} cannot be made from its arguments"):
            return constructor(*arguments)


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise PickleError(f"{what} ({error})") from error


def _set_entries(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Set key-value pairs in a dictionary; those whose key is neither text nor a number are ignored."""
    if len(values) % 2:
        raise PickleError("a key has no value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if isinstance(key, _SIMPLE_KEYS) and not (isinstance(key, float) and math.isnan(key)):
            target[key] = value
    return target
