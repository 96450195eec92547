"""What a step or an evaluation gives a device to do, seen without one.

The model and its batch lie on torch's device ``meta``, where tensors have shapes and no numbers. Kernels in Triton are
noted instead of launched, and so are torch's operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from mace.kernels.c_source.matrices import EACH_GROUP, ROW_GROUPS, SUM_GROUPS
from mace.kernels.compiled import Kernel
from mace.kernels.triton_backend import TritonBackend
from mace.kernels.triton_source.records import ACTIVATION, RECORD
from mace.program import device
from mace.program.device import DeviceWorkspace

_COLUMNS = {name: place for place, name in enumerate(RECORD)}


@dataclass(frozen=True)
class KernelCall:
    """A kernel in Triton with what it was given.

    Attributes:
        function: The function.
        arguments: Its arguments in order: tensors, numbers, None for a null pointer.
        options: Those by name, ``num_warps`` among them.
        grid: Number of programs along each axis.
        kernel: The kernel in C of which it takes the place, if it belongs to a program.
        records: The products or matrices of its list, in the form of `RECORD`; None if it reads no list.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    grid: tuple[int, ...]
    kernel: Kernel | None
    records: np.ndarray | None

    @property
    def name(self) -> str:
        """Name of the function."""
        return str(self.function.fn.__name__)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by name."""
        return dict(zip(self.function.arg_names, self.arguments, strict=False))


@dataclass(frozen=True)
class TorchCall:
    """An operation of torch that launches something.

    Attributes:
        name: Its name.
        n_bytes: What it reads and writes, each tensor once.
        flops: Multiplications and additions of a product of matrices; else one for each number of the result.
    """

    name: str
    n_bytes: int
    flops: int


Call = KernelCall | TorchCall


class Watch(TorchDispatchMode):
    """Notes what is launched while it is the context.

    Attributes:
        calls: What was launched, in order.
        copies: Number of copies from the host to the device among them.
        n_parameters: Number of parameters that the optimizer moves.
        itemsize: Bytes of a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.copies, self.n_parameters, self.itemsize = 0, 0, 4
        self._kernels: dict[Any, Kernel] = {}
        self._words: np.ndarray | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note an operation, unless it only looks at memory in another way or stays on the host."""
        result = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if func.is_view or func.overloadpacket in _MAKES_ROOM or not any(t.device.type == "meta" for t in given + made):
            return result
        name = func.overloadpacket.__name__
        if any(value.device.type == "cpu" and value.dim() for value in given):
            self.copies += 1
        # those that write in place return nothing, and what they write comes first
        written = made or [value for value in tree_leaves(args[:1]) if isinstance(value, Tensor)]
        n_bytes = sum(value.nbytes for value in [*given, *written])
        inner = given[-2].shape[-1] if name in _PRODUCTS else 1
        numbers = sum(value.numel() for value in written)
        self.calls.append(TorchCall(name, n_bytes, 2 * inner * numbers if inner > 1 else numbers))
        return result

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Note kernels in Triton too, where the model has its programs on the device ``meta``."""
        run_section = DeviceWorkspace.run

        def run(workspace: DeviceWorkspace, section: int) -> None:
            self._words = workspace.words
            run_section(workspace, section)

        def note(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
            records = None
            if function.arg_names[0] == "records":
                records = self._records(arguments[0], arguments[1 + ("partial" in function.arg_names)], function)
            of_program = self._kernels.get(function)
            self.calls.append(KernelCall(function, arguments, options, tuple(grid), of_program, records))

        find = device.device_kernel

        def found(kernel: Kernel, tf32: bool) -> Any:
            result = find(kernel, tf32)
            self._kernels.update(dict.fromkeys(_functions(result), kernel))
            return result

        with (
            patch.object(DeviceWorkspace, "run", run),
            patch.object(device, "device_kernel", found),
            patch.object(JITFunction, "run", note),
            patch.object(TritonBackend, "has_programs", lambda backend, device: device.type == "meta"),
        ):
            yield

    def _records(self, table: Tensor, count: int, function: Any) -> np.ndarray:
        """Return the words of a list, of as many records, that begins where a table of words begins."""
        widths = {"_packing": 7, "_zeros": len(CLEARED_FIELDS)}
        width = widths.get(function.fn.__name__, len(RECORD))
        start = table.storage_offset()
        assert self._words is not None
        return self._words[start : start + count * width].reshape(count, width).copy()


CLEARED_FIELDS = ("array", "count")
"""The numbers that describe an array to be set to zero."""

_MAKES_ROOM = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided, torch.ops.aten.new_empty}
_MAKES_ROOM |= {torch.ops.aten.detach, torch.ops.aten.alias}
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


def _functions(kernel: Any) -> Iterator[Any]:
    """Yield the functions of a kernel and of those that run after it."""
    while kernel is not None:
        yield from [each.function for each in getattr(kernel, "kernels", [kernel])]
        kernel = getattr(kernel, "then", None)


def products_of(records: np.ndarray, sums: bool = False) -> tuple[int, int]:
    """Return how many numbers a list of products reads and writes, each once, and its operations; see `RECORD`.

    Args:
        records: The records.
        sums: Whether the second launch is meant, which adds up the parts of long sums.
    """
    of = {name: records[:, place] for name, place in _COLUMNS.items()}
    row_groups, sum_groups, each = (of["grouping"] == kind for kind in (ROW_GROUPS, SUM_GROUPS, EACH_GROUP))
    groups, terms = of["groups"], of["depth"] * of["segments"]
    results = of["rows"] * of["columns"] * np.where(sum_groups | each, groups, 1)
    if sums:
        part = of["part"]
        is_cut = part < of["depth"]
        parts = np.where(is_cut, -(-of["depth"] // np.maximum(part, 1)), 0)
        return int((results * (parts + 2 * is_cut)).sum()), int((results * parts).sum())
    numbers = of["rows"] * terms + of["columns"] * terms * np.where(row_groups | each, groups, 1)
    numbers += results * np.where(of["add"] != 0, 2, 1)
    # an activation reads and writes arrays like the result
    numbers += results * sum((of[name] != 0).astype(np.int64) for name in ACTIVATION[1:])
    return int(numbers.sum()), int((2 * of["rows"] * of["columns"] * terms * np.where(each, groups, 1)).sum())
