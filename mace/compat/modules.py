"""Modules of torch as a file describes them: their classes' names, attributes, weights and parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.archives import StoredTensor, read_torch_file
from mace.files.pickles import Record

MAX_DEPTH = 24
MAX_MODULES = 100_000
_ACCELERATED = {"cuequivariance": "cuEquivariance", "openequivariance": "OpenEquivariance"}
_WEIGHT_PREFIXES = ("module.", "_orig_mod.")
"""What wrappers for several devices and compilation put before the names of weights."""
_BUFFERS = {
    "r_max", "atomic_numbers", "num_interactions", "p", "prefactor", "bessel_weights", "atomic_energies", "scale",
    "shift", "avg_num_neighbors",
}  # fmt: skip
"""Last words of the names of buffers that are plain numbers or arrays of NumPy in some files, old ones above all."""


@dataclass(frozen=True)
class Module:
    """One module.

    Attributes:
        kind: Name of its class, without the package.
        package: Where the class is defined.
        attributes: What it holds besides weights and parts.
        tensors: Weights and buffers by name.
        parts: Modules in it.
    """

    kind: str
    package: str
    attributes: dict[Any, Any]
    tensors: dict[str, StoredTensor]
    parts: dict[str, Module]

    def find(self, path: str) -> Module | None:
        """Return the module at a dotted path, None if there is none."""
        found: Module | None = self
        for name in path.split("."):
            found = found.parts.get(name) if found is not None else None
        return found

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """List this module and all in it with their dotted paths."""
        yield prefix, self
        for name, part in self.parts.items():
            yield from part.walk(f"{prefix}.{name}" if prefix else name)


@dataclass(frozen=True)
class Original:
    """A model or checkpoint of mace-torch.

    Attributes:
        path: The file.
        tree: Its modules; None for a checkpoint, which has weights only.
        state: Weights and buffers by their dotted names; what is a buffer in some versions and a plain number in others
            is here as well.
    """

    path: Path
    tree: Module | None
    state: dict[str, np.ndarray]


def read_original(path: str | Path) -> Original:
    """Read a whole model or a training checkpoint; nothing in the file is run.

    Args:
        path: A ``.model`` or ``.pt`` file.

    Returns:
        What it holds.

    Raises:
        UserError: If it is neither.
    """
    file = read_torch_file(path)
    root = file.root
    if isinstance(root, dict) and isinstance(root.get("model"), (dict, Record)):
        root = root["model"]
    if isinstance(root, dict):
        tensors = {n: value for n, value in root.items() if isinstance(n, str) and isinstance(value, StoredTensor)}
        if not any("interactions." in name for name in tensors):
            raise UserError(
                f"{file.path}: this file holds no weights of a MACE model; name a .model file or a checkpoint."
            )
        for wrapper in _WEIGHT_PREFIXES:
            if all(name.startswith(wrapper) for name in tensors):
                tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
        return Original(file.path, None, file.arrays(tensors))
    tree = _module(root, MAX_DEPTH, [MAX_MODULES], file.path)
    if tree is None:
        what = f"a {root.name}" if isinstance(root, Record) and root.name else "something else"
        raise UserError(f"{file.path}: this file holds {what}, not a model; name a .model file or a checkpoint.")
    for _, module in tree.walk():
        for package, name in _ACCELERATED.items():
            if module.package.startswith(package):
                raise UserError(
                    f"{file.path}: the model was converted for {name}; convert it back with mace_cueq_to_e3nn of "
                    "mace-torch, or name the model it was made from."
                )
    tensors, numbers = {}, {}
    for path_of, module in tree.walk():
        start = f"{path_of}." if path_of else ""
        tensors |= {start + name: tensor for name, tensor in module.tensors.items()}
        for name in _BUFFERS & module.attributes.keys():  # buffers in other versions
            if (values := _numbers(module.attributes[name])) is not None:
                numbers[start + name] = values
    return Original(file.path, tree, numbers | file.arrays(tensors))


def _numbers(value: Any) -> np.ndarray | None:
    """Read a number, a row of numbers or an array of NumPy; None if it is something else."""
    try:
        if isinstance(value, Record) and value.states:
            _, shape, kind, by_columns, data = value.states[-1]  # as NumPy pickles an array
            word = kind.arguments[0] if isinstance(kind, Record) and kind.arguments else None
            if word not in ("f8", "f4", "i8", "i4") or not isinstance(data, bytes):
                return None
            return np.frombuffer(data, f"<{word}").reshape(shape, order="F" if by_columns else "C")
        row = value if isinstance(value, (list, tuple)) else [value]
        if not row or not all(type(one) in (int, float) for one in row):
            return None
        return np.array(value, dtype=np.float64 if float in map(type, row) else np.int64)
    except (TypeError, ValueError, OverflowError):  # a shape that does not fit, an integer beyond all sizes
        return None


def _module(record: Any, depth: int, left: list[int], path: Path) -> Module | None:
    """Understand a record as a module; None if it is something else."""
    if not isinstance(record, Record) or record.name is None or not isinstance(record.state.get("_modules"), dict):
        return None
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        raise UserError(f"{path}: modules lie in each other more deeply than in any model; the file is refused.")
    state = record.state
    tensors = {}
    for values in ({name: state.get(name) for name in _BUFFERS}, state.get("_parameters"), state.get("_buffers")):
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, StoredTensor):
                tensors[str(name)] = value
    parts = {str(name): _module(value, depth - 1, left, path) for name, value in state["_modules"].items()}
    return Module(
        kind=record.name.name.rpartition(".")[2],
        package=record.name.module,
        attributes={k: v for k, v in state.items() if k not in ("_modules", "_parameters", "_buffers")},
        tensors=tensors,
        parts={name: part for name, part in parts.items() if part is not None},
    )


def irreps(value: Any) -> list[tuple[int, int, int]]:
    """Read irreps of e3nn as multiplicity, degree and parity; empty if they are something else."""
    found = []
    for term in _first_argument(value):
        multiplicity, irrep = (*_first_argument(term), None, None)[:2]
        numbers = irrep.arguments if isinstance(irrep, Record) else ()
        if len(numbers) == 1:
            numbers = _first_argument(irrep)
        if len(numbers) != 2 or not all(isinstance(n, int) for n in (multiplicity, *numbers)):
            return []
        found.append((multiplicity, *numbers))
    return found


def _first_argument(value: Any) -> tuple[Any, ...]:
    """Return what a tuple with a class of its own was made from."""
    if isinstance(value, Record) and len(value.arguments) == 1 and isinstance(value.arguments[0], (tuple, list)):
        return tuple(value.arguments[0])
    return value.arguments if isinstance(value, Record) else ()


def instructions(module: Module) -> list[tuple[Any, ...]]:
    """Return the paths of a linear map or tensor product of e3nn, each as the tuple it was made from."""
    found = module.attributes.get("instructions")
    return [_first_argument(r) for r in found if isinstance(r, Record)] if isinstance(found, list) else []


def number(value: Any) -> float | None:
    """Read a number; None if it is none."""
    return float(value) if isinstance(value, (int, float)) else None
