"""Descriptions of products of matrices, as the kernels read them; see `mace.kernels.c_source.matrices`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mace.kernels.c_source.matrices import FIELDS, NO_GROUPS, PLAIN
from mace.program.record import Array, Extent, Pointer, Word


@dataclass(kw_only=True)
class Product:
    """A product of matrices; the attributes are the fields of the kernel's record, in order."""

    rows: int | Extent
    inner: int = 1
    columns: int
    depth: int | Extent
    segments: int = 1
    a: Pointer
    a_outer: int
    a_inner: int = 0
    a_depth: int = 1
    a_segment: int = 0
    b: Pointer
    b_storage: int = PLAIN
    b_depth: int = 0
    b_vector: int = 0
    b_segment: int = 0
    b_group: int = 0
    b_by_index: bool = False
    c: Pointer
    c_outer: int
    c_inner: int = 0
    c_vector: int
    c_group: int = 0
    c_by_index: bool = False
    c_whole: bool = False
    add: bool = False
    scale: float = 1.0
    grouping: int = NO_GROUPS
    groups: Extent = Extent("groups")
    group_starts: Array | None = None
    group_index: Array | None = None

    def words(self) -> list[Word]:
        """Return the record."""
        return [getattr(self, name) for name in FIELDS]


assert tuple(field.name for field in fields(Product)) == FIELDS
