"""Settings in a YAML file, within bounds: any content is read or refused in a moment, and never unfolds into more.

The parser itself takes some ten microseconds for every value, and follows lists in lists as deep as the stack goes;
an alias is a reference, which whoever looks at the values follows each time.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from mace.errors import UserError
from mace.settings.command_line import Given, advice
from mace.settings.declaration import declarations, shown

_LOGGER = logging.getLogger(__name__)

_NULLS = ("", "~", "null", "Null", "NULL")

LARGEST_FILE = 1 << 20
"""Bytes."""
MOST_VALUES, MOST_LEVELS = 20_000, 20
"""Keys and values, each counted as often as aliases repeat it, and lists and tables in each other."""


class _Loader(yaml.BaseLoader):
    """Keeps scalars as text, and refuses what is out of bounds before anything is built from it.

    Args:
        text: What the file holds.
        path: Its name, for warnings.
    """

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self._path, self._levels, self._values = path, 0, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one key or value."""
        self._levels += 1
        self._values += 1
        if self._levels > MOST_LEVELS:
            raise yaml.YAMLError(f"lists and tables lie in each other more than {MOST_LEVELS} levels deep")
        if self._values > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES} keys and values")
        node = super().compose_node(parent, index)
        self._levels -= 1
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise yaml.YAMLError(f"a text on line {node.start_mark.line + 1} holds the character NUL")
        return node

    def get_single_node(self) -> Any:
        """Compose the whole file."""
        node = super().get_single_node()
        if node is not None and _unfolded_size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases unfold to more than {MOST_VALUES} keys and values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a table, of which no key may come twice with different values."""
        table: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, value = self.construct_object(key_node), self.construct_object(value_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(problem="a list or a table cannot be a key")
            if key in table and table[key] != value:
                raise yaml.constructor.ConstructorError(problem=f"the key {key!r} comes twice")
            if key in table:
                _LOGGER.warning("%s: the key %r comes twice, with the same value", self._path, key)
            table[key] = value
        return table


def _unfolded_size(node: Any, sizes: dict[int, int]) -> int:
    """Count the values of a node, each as often as it is referred to."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # for an alias of what it lies in, which is refused later
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] += sum(_unfolded_size(part, sizes) for part in parts)
    return sizes[id(node)]


def read_table(path: str, flag: str = "--config") -> dict[str, Any]:
    """Read a YAML file that is a table, with all scalars as text.

    Args:
        path: The file.
        flag: The flag that names it, for messages.

    Raises:
        UserError: If it cannot be read, or is no table.
    """
    try:
        with Path(path).open("rb") as stream:  # which may be a device or a pipe
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: this is no configuration file: it has more than {LARGEST_FILE} bytes.")
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{flag} {path}: the file cannot be read: {reason}.") from error
    try:
        table = _Loader(text, path).get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is not valid YAML: {' '.join(str(error).split())[:300]}.") from error
    if table is None:
        return {}
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        kind = "a list" if isinstance(table, list) else "a single text"
        kind = "a table with nested keys" if isinstance(table, dict) else kind
        raise UserError(f"{path}: a configuration file is a table of 'setting: value' lines, not {kind}.")
    return table


def read_yaml_settings(path: str, model: type[BaseModel]) -> dict[str, Given]:
    """Read a YAML file of settings without checking the values.

    Keys may be any spelling of a setting, with dashes or underscores. Scalars are kept as the text in the file, so that
    a value means the same here and on the command line (YAML alone would take ``1e-3`` for text and ``010`` for 8).

    Args:
        path: The file.
        model: The class of settings.

    Returns:
        What was typed, by the name of the setting.

    Raises:
        UserError: If the file cannot be read, is not a table of settings, or has unknown or repeated keys.
    """
    spellings = {spelling: d for d in declarations(model).values() for spelling in d.spellings}
    given: dict[str, Given] = {}
    for key, value in read_table(path).items():
        name = key.lstrip("-").replace("-", "_")
        if name not in spellings:
            raise UserError(f"{path}: {shown(key)} is not a setting; {advice(name[:60], list(spellings), '')}")
        declaration = spellings[name]
        if declaration.name == "config":
            raise UserError(f"{path}: {key!r} cannot be given inside a configuration file.")
        spelling = f"{path}: {key}"
        if name in declaration.negations:
            try:
                value = not TypeAdapter(bool).validate_python(value)
            except ValidationError as error:
                raise UserError(f"{spelling} must be True or False, not {shown(value)}.") from error
        if isinstance(value, str) and value in _NULLS:
            value = "" if declaration.may_be_empty else None
        item = Given(value, spelling)
        if (before := given.setdefault(declaration.name, item)).value != item.value:
            raise UserError(f"{path}: {declaration.name} is given twice; the second time as {key!r}.")
        if before is not item:
            _LOGGER.warning("%s: %s is given twice, with the same value", path, declaration.name)
    return given
