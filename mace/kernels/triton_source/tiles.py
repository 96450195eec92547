"""Text of Triton code that moves between numbers held by one thread each and rows of an array.

Kernels of pairs hold every number of a pair by a name of its own. Rows are written as a tile, ``[pairs, columns]``, so
that neighboring threads write neighboring numbers, four at a time; Triton reorders through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence


def columns(count: int) -> int:
    """Return the number of columns of a tile, a power of two."""
    return 1 << (count - 1).bit_length()


def joined(tile: str, names: Sequence[str], width: int, dtype: str) -> list[str]:
    """Return lines that join numbers to a tile of a precision; columns without a number are zero.

    Args:
        tile: Name of the result.
        names: What each column holds.
        width: Number of columns, a power of two.
        dtype: The precision, as Triton calls it.
    """
    level = [f"({name}).to({dtype})" for name in names]
    level += [f"tl.zeros([PAIRS], {dtype})"] * (width - len(names))
    lines = []
    while len(level) > 1:
        # the first dimension added is the one of the largest step
        half = len(level) // 2
        names = [f"{tile}_{half}_{number}" for number in range(half)]
        lines += [f"{name} = tl.join({a}, {b})" for name, a, b in zip(names, level[:half], level[half:], strict=True)]
        level = names
    return [*lines, f"{tile} = tl.reshape({level[0]}, [PAIRS, {width}])"]


def split(tile: str, names: Sequence[str]) -> list[str]:
    """Return lines that split the columns of a tile, as many as a power of two, into numbers.

    Args:
        tile: Name of the tile.
        names: Names of the columns' numbers.
    """
    if len(names) == 1:
        return [f"{names[0]} = tl.reshape({tile}, [PAIRS])"]
    dimensions = len(names).bit_length() - 1
    lines = [f"{tile}_0 = tl.reshape({tile}, [PAIRS{', 2' * dimensions}])"]
    level = [f"{tile}_0"]
    for depth in range(1, dimensions + 1):
        # the last dimension is that of single steps
        last = depth == dimensions
        count = len(level)
        halves = [
            (names[place], names[place + count])
            if last
            else (f"{tile}_{depth}_{place}", f"{tile}_{depth}_{place + count}")
            for place in range(count)
        ]
        lines += [f"{a}, {b} = tl.split({whole})" for (a, b), whole in zip(halves, level, strict=True)]
        level = [a for a, _ in halves] + [b for _, b in halves]
    return lines
