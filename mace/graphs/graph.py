"""The one graph type that models see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from mace.graphs.bucket import Bucket, ElementGroups, padded
from mace.processes.devices import widest

_Held = TypeVar("_Held")


@dataclass(frozen=True)
class Graph:
    """Atoms of one or several structures and the neighbors within the cutoff.

    Atoms are in the order of the structures. Inside a model, features have one *row* for each atom in the order of its
    element, so that a matrix of an element acts on a contiguous block; in large structures rows of an element are in
    the order of their places.

    Every neighbor relation occurs as two directed edges; what depends on the distance alone is evaluated once per
    undirected *pair*. Directed edges live in *slots*: ``max_neighbors`` slots for each receiving row, in order of the
    receivers, the empty ones at the end of each row. The last pair is padding: it lies beyond the cutoff, empty slots
    point to it, and nothing computed from it reaches an energy.

    A graph may be padded to the capacities of a `Bucket`, so that its shapes are those of many others. Then there are
    further pairs of this kind, which no slot points to, empty groups of rows, and at the end further atoms, those of
    the last structure, without neighbors. Nothing that belongs to other atoms, pairs and structures changes by that.

    Attributes:
        element: Index of each atom's element in the model's table, ``[atoms]``.
        structure_of_atom: Structure each atom belongs to, ``[atoms]``.
        positions: Angstrom, float64, ``[atoms, 3]``.
        cell: Rows are lattice vectors in Angstrom, float64, ``[structures, 3, 3]``.
        head: Index of the head of the model that each structure is for, ``[structures]``.
        charges: Given elementary charges, zero where none are given, float64, ``[atoms]``.
        volume: Angstrom^3, float64, ``[structures]``; what stresses are divided by, NaN where stress has no meaning.
        pair_sender: Sending atom of each pair, ``[pairs]``.
        pair_receiver: Receiving atom of each pair, ``[pairs]``.
        pair_shift: Lattice translations of the receiver's image, ``[pairs, 3]``.
        pair_of_slot: Pair of each slot; the last pair for an empty slot, ``[atoms * max_neighbors]``.
        sign_of_slot: +1 where the slot's receiver is the pair's receiver, -1 where it is the sender, ``[slots]``.
        sender_of_slot: Row of the sending atom of each slot; any row for an empty slot, ``[slots]``.
        reverse_of_slot: The slot of the same edge in the other direction; itself for an empty slot, ``[slots]``.
        neighbor_count: Number of slots of each row that are not empty, ``[atoms]``.
        slots_of_pair: The slots of each pair, first that in its direction; (0, 0) for the padding, ``[pairs, 2]``.
        atoms_by_element: The atom of each row, in order of their element, ``[atoms]``.
        row_of_atom: The row of each atom, ``[atoms]``.
        conditions: By name, what atoms or their structures are under, float64, ``[atoms, values]``.
        real: Sizes of what is not padding, if the graph is padded to a bucket.
    """

    element: Tensor
    structure_of_atom: Tensor
    positions: Tensor
    cell: Tensor
    head: Tensor
    charges: Tensor
    volume: Tensor
    pair_sender: Tensor
    pair_receiver: Tensor
    pair_shift: Tensor
    pair_of_slot: Tensor
    sign_of_slot: Tensor
    sender_of_slot: Tensor
    reverse_of_slot: Tensor
    neighbor_count: Tensor
    slots_of_pair: Tensor
    atoms_by_element: Tensor
    row_of_atom: Tensor
    conditions: dict[str, Tensor] = field(default_factory=dict)
    real: Bucket | None = None

    READ_BEFORE_A_MOVE: ClassVar = ("elements_present", "element_counts", "heads_present", "groups")
    """What has to be Python numbers, or follows from them, so that the program need not wait for the device."""

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all structures."""
        return self.element.shape[0]

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return self.cell.shape[0]

    @property
    def max_neighbors(self) -> int:
        """Slots per atom, at least one."""
        return max(1, self.pair_of_slot.shape[0] // max(1, self.n_atoms))

    @cached_property
    def elements_present(self) -> tuple[int, ...]:
        """Elements that occur, in rising order; read from the tensors once, see `to`."""
        return _indices_present(self.element)

    @cached_property
    def element_counts(self) -> tuple[int, ...]:
        """How many atoms each of the elements has that occur."""
        return tuple(count for count in self.element.bincount().tolist() if count)

    @cached_property
    def heads_present(self) -> tuple[int, ...]:
        """Heads that occur, in rising order; all of the model's in a padded graph."""
        return _indices_present(self.head)

    @cached_property
    def groups(self) -> ElementGroups:
        """Rows of the same element."""
        return ElementGroups.of(self.elements_present, self.element_counts, len(self.elements_present))

    @cached_property
    def is_padding(self) -> Tensor:
        """Which pairs are padding: those whose two slots are the same, ``[pairs]``."""
        first, second = self.slots_of_pair.unbind(1)
        return first == second

    @property
    def sizes(self) -> Bucket:
        """Its sizes, those of the padding included."""
        n_pairs, n_elements, n_heads = len(self.pair_sender), len(self.groups.index), len(self.heads_present)
        return Bucket(self.n_atoms, self.max_neighbors, n_pairs, n_elements, self.n_structures, n_heads)

    def padded(self, bucket: Bucket) -> Graph:
        """Return the graph with the shapes of a bucket; see `mace.graphs.bucket.padded`."""
        return padded(self, bucket)

    @property
    def n_edges(self) -> int:
        """Number of directed edges, the padding not counted."""
        return 2 * ((self.real or self.sizes).pairs - 1)

    def clear_padding(self, values: Tensor, dim: int = 0) -> Tensor:
        """Set what belongs to padding in a tensor of pairs to zero, in place, and return the tensor.

        Args:
            values: ``[..., pairs, ...]``.
            dim: The dimension of the pairs.
        """
        if self.real is None:
            values.select(dim, -1).zero_()
            return values
        return values.masked_fill_(self.is_padding.view(-1, *[1] * (values.dim() - dim - 1)), 0.0)

    def atoms_per_structure(self) -> Tensor:
        """Count the atoms of each structure, ``[structures]``."""
        return torch.bincount(self.structure_of_atom, minlength=self.n_structures)

    def head_of_atoms(self, order: Tensor | None = None) -> int | Tensor:
        """Return the head of all atoms if it is the same, or that of each, ``[atoms]``.

        Args:
            order: The atoms in another order than that of the structures, ``[atoms]``.
        """
        if len(self.heads_present) == 1:
            return self.heads_present[0]
        structure = self.structure_of_atom if order is None else self.structure_of_atom.index_select(0, order)
        return self.head.index_select(0, structure)

    def moved(self, positions: Tensor) -> Graph:
        """Return the graph of the same atoms in other places, where the same pairs are within the cutoff.

        Args:
            positions: Angstrom, float64, ``[atoms, 3]``.
        """
        moved = object.__new__(Graph)  # with what has been read from the tensors
        vars(moved).update(
            vars(self), positions=carry(positions, self.positions.device, pinned=True).to(self.positions.dtype)
        )
        return moved

    def to(self, device: torch.device | str, pinned: bool = False) -> Graph:
        """Return the graph with every tensor on a device; see `carry`."""
        return self if self.positions.device == torch.device(device) else carry(self, device, pinned)


def _indices_present(indices: Tensor) -> tuple[int, ...]:
    return tuple(index for index, count in enumerate(indices.bincount().tolist()) if count)


def carry(value: _Held, device: torch.device | str, pinned: bool = False) -> _Held:
    """Copy a tensor, or all those in a dictionary or dataclass, to a device; to an accelerator in a single copy.

    Args:
        value: What holds them; what else it holds stays as it is. The properties in the ``READ_BEFORE_A_MOVE`` of a
            class are computed before.
        device: Where to. On mps, which has no float64, that becomes float32.
        pinned: Copy to a CUDA device through page-locked memory, so that the program need not wait for it.

    Returns:
        The same there.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _with_each_tensor(value, lambda tensor: tensor.to(device))
    tensors = _tensors(value)
    here = [_narrowed(tensor, device) for tensor in tensors if tensor.is_cpu]
    there = iter(_copied(here, device, pinned and device.type == "cuda"))
    return _with_each_tensor(value, lambda tensor: next(there) if tensor.is_cpu else tensor.to(device))


def page_locked(value: _Held) -> _Held:
    """Copy what `carry` takes to page-locked memory, all side by side, from where it is carried in a single copy."""
    tensors = _tensors(value)
    buffer, places = _packed(tensors, pinned=True)
    views = iter([_view(buffer, place, tensor) for place, tensor in zip(places, tensors, strict=True)])
    return _with_each_tensor(value, lambda _: next(views))


_ALIGNMENT = 128
"""Bytes; each tensor begins at a multiple of them in a buffer, as it would where a device allocates it alone."""


def _tensors(value: Any) -> list[Tensor]:
    """List the tensors in the order in which `_with_each_tensor` goes through them."""
    found = list[Tensor]()

    def find(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _with_each_tensor(value, find)
    return found


def _narrowed(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(widest(device)) if tensor.dtype == torch.float64 else tensor


def _packed(tensors: Sequence[Tensor], pinned: bool) -> tuple[Tensor, list[int]]:
    """Copy tensors side by side into a buffer of bytes; return it and where each one begins, a repeated one once."""
    places, known, size = list[int](), dict[int, int](), 0
    for tensor in tensors:
        place = known.setdefault(id(tensor), size)
        size += 0 if place < size else _room(tensor)
        places.append(place)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(places, tensors, strict=True):
        _view(buffer, place, tensor).copy_(tensor)
    return buffer, places


def _room(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes in a buffer."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _view(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    """View a part of a buffer of bytes as a tensor like another one."""
    return buffer[place : place + like.nbytes].view(like.dtype).view(like.shape)


def _copied(tensors: Sequence[Tensor], device: torch.device, pinned: bool) -> list[Tensor]:
    """Copy tensors to a device in a single copy, through page-locked memory or not."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    (storage, *others) = storages.values() or [torch.UntypedStorage(0)]
    if not others and storage.nbytes() and storage.is_pinned() and storage.nbytes() <= sum(map(_room, tensors)):
        buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
        places = [int(tensor.storage_offset()) * tensor.element_size() for tensor in tensors]
    else:
        buffer, places = _packed(tensors, pinned)
    there = buffer.to(device, non_blocking=pinned)
    return [_view(there, place, tensor) for place, tensor in zip(places, tensors, strict=True)]


def place(value: _Held, device: torch.device) -> _Held:
    """Copy what `carry` takes to memory on a device that belongs to nothing else, for `refill`."""
    given = set(map(id, _tensors(value)))
    carried = carry(value, device, pinned=True)
    return _with_each_tensor(carried, lambda tensor: tensor.clone() if id(tensor) in given else tensor)


def refill(there: _Held, value: _Held, before: _Held | None = None) -> None:
    """Copy all tensors to where others of the same shapes are, without waiting for the device.

    Args:
        there: What `place` has returned.
        value: Tensors of the same shapes, in page-locked memory if the program is not to wait.
        before: What is there already; tensors that are the same ones are not copied again.
    """
    old, new = _tensors(there), _tensors(value)
    if before is not None:
        for to, tensor, known in zip(old, new, _tensors(before), strict=True):
            if tensor is not known:
                to.copy_(tensor, non_blocking=True)
        return
    places = [[tensor.storage_offset() * tensor.element_size() for tensor in each] for each in (old, new)]
    buffers = [_buffer(old), _buffer(new)]
    if buffers[0] is not None and buffers[1] is not None and places[0] == places[1]:
        old, new = [buffers[0]], [buffers[1]]
    for to, tensor in zip(old, new, strict=True):
        to.copy_(tensor, non_blocking=True)


def _buffer(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the buffer in which tensors lie side by side, and nothing else, as bytes; None if they lie apart."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    if len(storages) != 1:
        return None
    (storage,) = storages.values()
    if storage.nbytes() > sum(map(_room, tensors)):
        return None
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _with_each_tensor(value: _Held, change: Callable[[Tensor], Tensor]) -> _Held:
    """Return a tensor, dictionary or dataclass with every tensor replaced."""
    held: Any = value
    if hasattr(held, "__dataclass_fields__"):
        names = getattr(held, "READ_BEFORE_A_MOVE", ())
        read = {name: _with_each_tensor(getattr(held, name), change) for name in names}
        changed = {each.name: _with_each_tensor(getattr(held, each.name), change) for each in fields(held)}
        held = replace(held, **changed)
        held.__dict__.update(read)
    elif isinstance(held, dict):
        held = {name: _with_each_tensor(one, change) for name, one in held.items()}
    elif isinstance(held, Tensor):
        held = change(held)
    return cast(_Held, held)


def pair_vectors(graph: Graph, r_max: float, dtype: torch.dtype) -> Tensor:
    """Compute the vector from sender to receiver of every pair.

    Differences are taken in the precision of the positions (float64 except on mps) and rounded afterwards, so that
    large coordinates cost no accuracy.

    Args:
        graph: The graph.
        r_max: Cutoff in Angstrom; the padding pair gets this length.
        dtype: Precision of the result.

    Returns:
        Angstrom, ``[pairs, 3]``.
    """
    shift = graph.pair_shift.to(graph.positions.dtype).unsqueeze(1)
    cells = graph.cell.index_select(0, graph.structure_of_atom.index_select(0, graph.pair_sender))
    ends, starts = (graph.positions.index_select(0, atoms) for atoms in (graph.pair_receiver, graph.pair_sender))
    vectors = torch.baddbmm((ends - starts).unsqueeze(1), shift, cells).squeeze(1).to(dtype)
    vectors[:, 1].masked_fill_(graph.is_padding, r_max)  # both atoms of the padding are the same
    return vectors
