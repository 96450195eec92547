"""Names of sets of structures: rows of error tables, keys in model files and names on pages."""

from __future__ import annotations

from mace.structures.configuration import DEFAULT_HEAD


def table_row(group: str, head: str) -> str:
    """Name the structures of a group (``train``, ``valid`` or a config_type) that are for one head.

    >>> table_row("valid", "Default")
    'valid_Default'
    """
    return f"{group}_{head}"


def shown_name(row: str) -> str:
    """Leave the head out where it is the one that models with a single head have.

    >>> shown_name("valid_Default"), shown_name("valid_dft")
    ('valid', 'valid_dft')
    """
    return row.removesuffix(f"_{DEFAULT_HEAD}")
