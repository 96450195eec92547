"""Models that can be called as models of mace-torch are: with a dictionary of tensors, for a dictionary of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.graphs.neighbors import JoinedNeighbors, Neighbors, join_neighbors, select_near
from mace.graphs.pairs import in_agreed_order
from mace.model.mace import MACE
from mace.model.prediction import hessian, predict, sum_over_structures
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import Configuration

LARGEST_MISMATCH = 1e-3
"""Angstrom; how far a given shift may be from a sum of lattice vectors, in float32."""


class DictionaryModel(MACE):
    """A model that also takes the dictionaries of mace-torch; made by `with_dictionaries`.

    It is for programs that have such dictionaries. Where there are ``Atoms``, `mace.calculators.MACECalculator` and its
    `evaluate` are faster.
    """

    def forward(self, data: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """Evaluate a graph, see `mace.model.mace.MACE.forward`, or a dictionary, see `evaluate`."""
        if isinstance(data, Graph):
            return super().forward(data, *arguments, **options)
        return evaluate(self, data, *arguments, **options)

    @property
    def atomic_energies_fn(self) -> AtomicEnergies:
        """The reference energies, as mace-torch keeps them."""
        return AtomicEnergies(self.reference_energies)

    @property
    def atomic_numbers(self) -> Tensor:
        """The elements in rising order, ``[elements]``; may be set to the same."""
        return super().atomic_numbers

    @atomic_numbers.setter
    def atomic_numbers(self, numbers: Any) -> None:
        """Accept the numbers there are, which programs put onto their device.

        Raises:
            UserError: If they are others.
        """
        if [int(number) for number in numbers] != list(self.plan.atomic_numbers):
            raise UserError("The elements of a model cannot be changed; train one that has them.")


class AtomicEnergies:
    """Reference energies by element.

    Args:
        atomic_energies: eV, ``[heads, elements]``.
    """

    def __init__(self, atomic_energies: Tensor) -> None:
        self.atomic_energies = atomic_energies

    def __call__(self, node_attrs: Tensor) -> Tensor:
        """Look up energies, ``[atoms, heads]``, of atoms given by rows of zeros with a one, ``[atoms, elements]``."""
        return node_attrs.to(self.atomic_energies.dtype) @ self.atomic_energies.T


def with_dictionaries(model: MACE) -> DictionaryModel:
    """Let a model take dictionaries too, in place: it stays the same object with the same tensors."""
    model.__class__ = DictionaryModel
    assert isinstance(model, DictionaryModel)
    return model


def evaluate(
    model: MACE,
    data: Mapping[str, Any],
    training: bool = False,
    compute_force: bool = True,
    compute_virials: bool = False,
    compute_stress: bool = False,
    compute_displacement: bool = False,
    compute_hessian: bool = False,
    compute_edge_forces: bool = False,
    compute_atomic_stresses: bool = False,
    lammps_mliap: bool = False,
) -> dict[str, Tensor | None]:
    """Evaluate what mace-torch calls a batch.

    Args:
        model: The model.
        data: ``positions`` ``[atoms, 3]``; ``node_attrs`` ``[atoms, elements]``, rows of zeros with a one;
            ``edge_index`` ``[2, edges]``, sender and receiver, every relation in both directions; ``shifts``
            ``[edges, 3]`` in Angstrom or ``unit_shifts`` in lattice vectors; ``cell`` ``[structures, 3, 3]``, also with
            the first two joined; ``batch`` ``[atoms]`` where there are several structures; ``head`` ``[structures]``
            where there are several heads; ``charges``, ``total_charge`` and so on for models that know of them.
            Edges beyond the cutoff do not count.
        training: Keep the graph of operations, so that results can be differentiated.
        compute_force: Whether forces are wanted.
        compute_virials: Whether virials are wanted, and the stress.
        compute_stress: The same.
        compute_displacement: Must be False.
        compute_hessian: Whether second derivatives are wanted, of a single structure.
        compute_edge_forces: Must be False.
        compute_atomic_stresses: Whether the virials of single atoms are wanted.
        lammps_mliap: Must be False.

    Returns:
        By name, in the model's units: ``energy`` and ``interaction_energy``, which has no reference energies,
        ``[structures]``; ``node_energy`` with reference energies, ``[atoms]``; ``forces`` ``[atoms, 3]``; ``stress``
        (NaN without a volume) and ``virials`` ``[structures, 3, 3]``; ``hessian`` ``[3 atoms, atoms, 3]``;
        ``atomic_virials`` ``[atoms, 3, 3]``; ``dipole`` ``[structures, 3]`` in e*Angstrom. None for what was not asked
        for.

    Raises:
        UserError: If the dictionary cannot be understood, or something is asked for that does not exist here.
    """
    asked = {
        "compute_displacement": compute_displacement,
        "compute_edge_forces": compute_edge_forces,
        "lammps_mliap": lammps_mliap,
    }
    if refused := [name for name, wanted in asked.items() if wanted]:
        raise UserError(f"A model called with a dictionary cannot obey {' and '.join(refused)}; leave it out.")
    graph = graph_of(model, data)
    keep = training or graph.positions.requires_grad
    with model.plain_kernels() if keep else nullcontext():  # others are differentiated once
        found = predict(
            model,
            graph,
            forces=compute_force,
            stress=compute_stress or compute_virials,
            training=keep,
            atomic_virials=compute_atomic_stresses,
        )
    interaction = None
    if found.atomic_energies is not None and found.reference_energies is not None:
        interaction = sum_over_structures(found.atomic_energies - found.reference_energies, graph)
    return {
        "energy": found.energy,
        "interaction_energy": interaction,
        "node_energy": found.atomic_energies,
        "forces": found.forces,
        "stress": found.stress,
        "virials": found.virials,
        "atomic_virials": found.atomic_virials,
        "hessian": hessian(model, graph) if compute_hessian else None,
        "dipole": found.dipole,
    }


def graph_of(model: MACE, data: Mapping[str, Any]) -> Graph:
    """Understand a dictionary; see `evaluate`. The graph is on the model's device, and differentiable by positions."""
    positions = _array(data, "positions").astype(np.float64)
    n_atoms = len(positions)
    structure = _array(data, "batch").astype(np.int64) if data.get("batch") is not None else np.zeros(n_atoms, np.int64)
    first = np.searchsorted(structure, np.arange(structure.max(initial=-1) + 2))
    ranges = [slice(start, end) for start, end in zip(first[:-1], first[1:], strict=True)]
    cells = (
        _array(data, "cell").astype(np.float64).reshape(-1, 3, 3)
        if data.get("cell") is not None
        else np.zeros((1, 3, 3))
    )
    if len(cells) != len(ranges) or not np.array_equal(structure, np.sort(structure)):
        raise UserError(
            f"The dictionary has {len(cells)} cells for {len(ranges)} structures in 'batch'; give one of each."
        )
    node_attrs = _array(data, "node_attrs")
    if node_attrs.shape != (n_atoms, model.plan.n_elements):
        raise UserError(
            f"'node_attrs' of the dictionary has the shape {list(node_attrs.shape)}; for {n_atoms} atoms and the "
            f"elements of the model it must be {[n_atoms, model.plan.n_elements]}."
        )
    numbers = np.array(model.plan.atomic_numbers)[node_attrs.argmax(1)]
    configurations = [
        _configuration(model, data, place, atoms, numbers[atoms], positions[atoms], cells[place])
        for place, atoms in enumerate(ranges)
    ]
    neighbors = _neighbors(data, structure, ranges, positions, cells, model.plan.r_max)

    def given(wanted: Sequence[Configuration], _: float) -> JoinedNeighbors:
        """Hand over the neighbors of the next structures."""
        return join_neighbors([neighbors.pop(0) for _ in wanted])

    plan, device = model.plan, model.embedding.device
    graph = graph_of_structures(
        configurations, ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names, search=given
    ).to(device)
    of_caller = data["positions"]
    if isinstance(of_caller, Tensor) and of_caller.requires_grad:
        graph = replace(graph, positions=of_caller.to(device, graph.positions.dtype))
    return graph


def _configuration(
    model: MACE,
    data: Mapping[str, Any],
    place: int,
    atoms: slice,
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
) -> Configuration:
    """Collect what the model wants to know of one structure."""
    names = model.plan.head_names
    head = int(_array(data, "head").reshape(-1)[place]) if data.get("head") is not None and len(names) > 1 else 0
    if not 0 <= head < len(names):
        raise UserError(f"'head' of the dictionary is {head}; the model has the heads 0 to {len(names) - 1}.")
    of_structure = {c.name: c.per == "structure" for c in model.plan.conditions if data.get(c.name) is not None}
    info = {name: _array(data, name).reshape(-1)[place] for name, whole in of_structure.items() if whole}
    arrays = {name: _array(data, name)[atoms] for name, whole in of_structure.items() if not whole}
    charges = _array(data, "charges")[atoms].astype(np.float64) if data.get("charges") is not None else None
    found = find_conditions(
        model.plan.conditions, {}, info, arrays, len(numbers), f"Structure {place} of the dictionary"
    )
    return Configuration(
        numbers, positions, cell, (True, True, True), charges=charges, conditions=found.values, head=names[head]
    )


def _neighbors(
    data: Mapping[str, Any],
    structure: np.ndarray,
    ranges: Sequence[slice],
    positions: np.ndarray,
    cells: np.ndarray,
    r_max: float,
) -> list[Neighbors]:
    """Turn directed edges into the pairs of every structure."""
    sender, receiver = _array(data, "edge_index").astype(np.int64)
    shift = _lattice_translations(data, cells, structure[sender])
    sender, receiver, shift = in_agreed_order(sender, receiver, shift)
    pairs = np.column_stack([sender, receiver, shift])
    if len(pairs) % 2 or not np.array_equal(pairs[::2], pairs[1::2]):
        raise UserError("'edge_index' of the dictionary must hold every neighbor relation once in both directions.")
    sender, receiver, shift = sender[::2], receiver[::2], shift[::2]
    ends = np.searchsorted(sender, [atoms.stop for atoms in ranges])
    return [
        select_near(
            sender[start:end] - atoms.start,
            receiver[start:end] - atoms.start,
            shift[start:end],
            positions[atoms],
            cell,
            r_max,
        )
        for start, end, atoms, cell in zip([0, *ends[:-1]], ends, ranges, cells, strict=True)
    ]


def _lattice_translations(data: Mapping[str, Any], cells: np.ndarray, structure_of_edge: np.ndarray) -> np.ndarray:
    """Return how many lattice vectors each receiver is away, ``[edges, 3]``."""
    if data.get("unit_shifts") is not None:
        return np.rint(_array(data, "unit_shifts")).astype(np.int64).reshape(-1, 3)
    shifts = _array(data, "shifts").astype(np.float64).reshape(-1, 3)
    unit = np.einsum("ei,eij->ej", shifts, np.linalg.pinv(cells)[structure_of_edge])
    whole = np.rint(unit)
    if np.abs(np.einsum("ei,eij->ej", whole, cells[structure_of_edge]) - shifts).max(initial=0.0) > LARGEST_MISMATCH:
        raise UserError("'shifts' of the dictionary are no sums of the lattice vectors in 'cell'.")
    return whole.astype(np.int64)


def _array(data: Mapping[str, Any], name: str) -> np.ndarray:
    if data.get(name) is None:
        raise UserError(f"The dictionary that the model was called with has no '{name}'.")
    return np.asarray(torch.as_tensor(data[name]).detach().cpu())
