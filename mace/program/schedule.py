"""The order of the launches of a section on a device, where each launch takes time: lists are joined.

Launches depend on each other through arrays. Products that are ready wait until nothing else is; then all of them
become one launch. Those whose results nobody reads in the section, such as gradients by weights, wait until the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mace.kernels.c_source.matrices import FIELDS
from mace.kernels.triton_source.records import ADJOINT, GRADIENT, RECORD, TANGENT, VALUE
from mace.program.record import Array, Launch, Pointer, Word

_WRITTEN = {
    "products": tuple(RECORD.index(name) for name in ("c", "sigmoid", "first", "second")),
    "packing": (1,),
    "zeros": (0,),
}
"""Places of what is written in the records of a list."""

_READ_ONLY = {
    **{"silu_value": (0,), "silu_gradient": (0, 1, 2), "silu_tangent": (0, 1, 2, 3), "silu_adjoint": (0, 1, 2)},
}
"""Places of pointers that kernels only read; of others, all are taken for written, unless nobody may write them."""


_C, _ADD = FIELDS.index("c"), FIELDS.index("add")
_KINDS = {"silu_value": VALUE, "silu_gradient": GRADIENT, "silu_tangent": TANGENT, "silu_adjoint": ADJOINT}


def with_activations(launches: Sequence[Launch]) -> list[Launch]:
    """Let products compute activations of their results, where a launch for these has followed.

    Args:
        launches: The launches of a section.
    """
    order: list[Launch] = []
    for launch in launches:
        found = _product_before(order, launch) if launch.kernel.name in _KINDS else None
        if found is None:
            order.append(launch)
            continue
        place, record = found
        product = order[place]
        order[place] = replace(product, records=tuple(other for other in product.records if other is not record))
        order.append(replace(product, records=(_with_activation(record, launch),)))
    return [launch for launch in order if launch.pointers or launch.records]


def _product_before(order: Sequence[Launch], activation: Launch) -> tuple[int, tuple[Word, ...]] | None:
    """Return the place and the record of the product whose result nothing but an activation reads so far."""
    (array,) = _homes(activation.pointers[:1] if activation.kernel.name == "silu_value" else activation.pointers[2:3])
    for place in range(len(order) - 1, -1, -1):
        using = [node for node in _nodes(order[place]) if array in node.reads]
        if not using:
            continue
        record = using[0].record
        if len(using) > 1 or record is None or len(record) > len(FIELDS) or array not in using[0].writes:
            return None
        # what belongs to a number of the result must lie at the same place in its array
        result = record[_C]
        fits = isinstance(result, Pointer) and result.offset == 0 and not record[_ADD]
        return (place, record) if fits and order[place].kernel.name == "products" else None
    return None


def _with_activation(record: tuple[Word, ...], activation: Launch) -> tuple[Word, ...]:
    """Return the record of a product that computes an activation too."""
    kind = _KINDS[activation.kernel.name]
    z, sigmoid, *others = activation.pointers
    given, second = None, None
    if kind == TANGENT:
        _, given, first, second = others
    else:
        first = others[-1]
    return (*record, kind, z, sigmoid, first, second, given)


@dataclass(frozen=True, eq=False)
class _Node:
    """A launch, or a record of a list.

    Attributes:
        launch: The launch.
        record: The record.
        reads: Arrays whose memory it reads.
        writes: Arrays whose memory it writes.
    """

    launch: Launch
    record: tuple[Word, ...] | None
    reads: frozenset[Array]
    writes: frozenset[Array]


def scheduled(launches: Sequence[Launch]) -> list[Launch]:
    """Return the launches in an order in which few are needed.

    Args:
        launches: The launches of a section in an order in which they may run.
    """
    nodes = [node for launch in launches for node in _nodes(launch)]
    needs, is_read = _dependencies(nodes)
    left = dict.fromkeys(nodes)
    order: list[Launch] = []
    while left:
        ready = [node for node in left if needs[node].isdisjoint(left)]
        chosen = [node for node in ready if node.record is None][:1]
        if not chosen:
            lists = [node for node in ready if node in is_read] or ready
            kernel = lists[0].launch.kernel
            chosen = [node for node in lists if node.launch.kernel == kernel]
        records = tuple(node.record for node in chosen if node.record is not None)
        order.append(replace(chosen[0].launch, records=records))
        for node in chosen:
            del left[node]
    return order


def _dependencies(nodes: Sequence[_Node]) -> tuple[dict[_Node, set[_Node]], set[_Node]]:
    """Return what each node has to wait for, and the nodes whose results others read."""
    needs: dict[_Node, set[_Node]] = {node: set() for node in nodes}
    is_read = set[_Node]()
    readers: dict[Array, list[_Node]] = {}
    writers: dict[Array, list[_Node]] = {}
    for node in nodes:
        for array in node.reads:
            found = [other for other in writers.get(array, ()) if other.launch is not node.launch]
            needs[node].update(found)
            if node.record is None or array not in node.writes:  # products that add to a result do not use it
                is_read.update(found)
        for array in node.writes:
            others = writers.get(array, []) + readers.get(array, [])
            needs[node].update(other for other in others if other.launch is not node.launch)
        for arrays, known in ((node.reads, readers), (node.writes, writers)):
            for array in arrays:
                known.setdefault(array, []).append(node)
    return needs, is_read


def _nodes(launch: Launch) -> list[_Node]:
    """Return the records of a list, which may run in any order, or the launch."""
    if launch.records:
        places = _WRITTEN[launch.kernel.name]
        return [
            _Node(launch, row, _homes(row), _homes(row[x] for x in places if x < len(row))) for row in launch.records
        ]
    read_only = _READ_ONLY.get(launch.kernel.name, ())
    homes = _homes(launch.pointers)
    constant = _homes(word for place, word in enumerate(launch.pointers) if place in read_only)
    return [_Node(launch, None, homes, frozenset(array for array in homes - constant if not array.read_only))]


def _homes(words: Iterable[Word]) -> frozenset[Array]:
    found = (word.array if isinstance(word, Pointer) else word for word in words)
    return frozenset(array.home for array in found if isinstance(array, Array))
