"""YAML within bounds: a file of any content is read or refused in a moment, and never unfolds into more than it is.

The parser itself takes some ten microseconds for every value, and follows lists in lists as deep as the stack goes;
an alias is a reference, which whoever looks at the values follows each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1 << 20
"""Bytes."""
MOST_VALUES, MOST_LEVELS = 20_000, 20
"""Keys and values, each counted as often as aliases repeat it, and lists and tables in each other."""


class OutOfBoundsError(yaml.YAMLError):
    """The file is larger or deeper than any configuration, or holds what no value can."""


def read_bounded(path: str) -> str:
    """Read a text file, at most `LARGEST_FILE` of it, from a device or a pipe too.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is not UTF-8.
        OutOfBoundsError: If it is larger.
    """
    with Path(path).open("rb") as stream:
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OutOfBoundsError(f"it has more than {LARGEST_FILE} bytes")
    return content.decode("utf-8")


class BoundedLoader(yaml.BaseLoader):
    """Keeps scalars as text, and refuses what is out of bounds before anything is built from it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._levels = self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one key or value."""
        self._levels += 1
        self._values += 1
        if self._levels > MOST_LEVELS:
            raise OutOfBoundsError(f"lists and tables lie in each other more than {MOST_LEVELS} levels deep")
        if self._values > MOST_VALUES:
            raise OutOfBoundsError(f"it has more than {MOST_VALUES} keys and values")
        node = super().compose_node(parent, index)
        self._levels -= 1
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise OutOfBoundsError(f"a text on line {node.start_mark.line + 1} holds the character NUL")
        return node

    def get_single_node(self) -> Any:
        """Compose the whole file."""
        node = super().get_single_node()
        if node is not None and _unfolded_size(node, {}) > MOST_VALUES:
            raise OutOfBoundsError(f"its aliases unfold to more than {MOST_VALUES} keys and values")
        return node


def _unfolded_size(node: Any, sizes: dict[int, int]) -> int:
    """Count the values of a node, each as often as it is referred to."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # for an alias of what it lies in, which is refused later
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] += sum(_unfolded_size(part, sizes) for part in parts)
    return sizes[id(node)]
