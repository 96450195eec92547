"""A model for torch-sim, which moves many structures at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.compat.importing import open_model
from mace.conditions import Condition
from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.graphs.assembly import graph_of_structures
from mace.graphs.neighbors import Neighbors, find_all_neighbors, join_neighbors
from mace.graphs.skin import DEFAULT_SKIN, SkinNeighbors
from mace.model.heads import find_head, with_one_head
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import carry_to
from mace.model.prediction import predict
from mace.potential.loading import find_device
from mace.potential.radial_tables import choose_radial_tables
from mace.structures.checks import check_geometry
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import Configuration

_LOGGER = logging.getLogger(__name__)
_MISSING: ImportError | None = None
try:
    from torch_sim.models.interface import ModelInterface
except ImportError as _error:  # this module can be imported without it, for its documentation
    ModelInterface, _MISSING = torch.nn.Module, _error

_PLACE = "torch-sim state"
"""What stands for the name of a file in messages."""


class MaceTorchSimModel(ModelInterface):  # type: ignore[misc]  # torch-sim need not be there when types are checked
    """Energies, forces and stress of many structures at once, as torch-sim's ``ModelInterface``.

    Conditions a model knows of, such as a total charge, are taken from attributes of the state, which torch-sim calls
    extras: one value for each system, or a row for each atom, under the keys that ``mace_info`` shows.

    Results have the precision of the model, as torch-sim expects; in float32 that rounds large total energies.

    Args:
        model: A model file of this program or of mace-torch, or a model in memory, which is copied.
        device: Where to compute; None for a GPU if there is one. States must live there.
        dtype: ``torch.float64`` or ``torch.float32``.
        compute_forces: Whether results have forces; can be changed later.
        compute_stress: Whether results have a stress; can be changed later.
        head: Name or number of the head to use of a model that has several; None for the one called default.
        skin: How far beyond the cutoff neighbors of periodic structures are searched, in Angstrom, so that the search
            need not be repeated while atoms move less than half of it; results do not depend on it.

    Raises:
        UserError: If torch-sim is missing, or the model, device or precision cannot be used.
    """

    def __init__(
        self,
        model: str | Path | MACE,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float64,
        *,
        compute_forces: bool = True,
        compute_stress: bool = True,
        head: str | int | None = None,
        skin: float = DEFAULT_SKIN,
    ) -> None:
        """Load the model; see the class."""
        if _MISSING is not None:
            raise UserError(
                f"torch-sim cannot be imported ({_MISSING}); install it with pip install 'mace-train[torch-sim]', "
                "which needs Python 3.11 or newer."
            ) from _MISSING
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"MaceTorchSimModel: dtype is {dtype}; choose torch.float32 or torch.float64.")
        if not 0.0 <= skin < float("inf"):
            raise UserError(f"MaceTorchSimModel: skin is {skin}; it must be zero or a positive length in Angstrom.")
        # the interface shows these under their names without the underscore
        self._device = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self.model = _opened(model, self._device, dtype, head).eval()
        self._elements = ElementTable(self.model.plan.atomic_numbers)
        self._skin, self._searches = skin, list[SkinNeighbors]()
        self._warned_of_spins = False

    @property
    def compute_forces(self) -> bool:
        """Whether results have forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        """Choose whether they have."""
        self._compute_forces = wanted

    @property
    def compute_stress(self) -> bool:
        """Whether results have a stress."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        """Choose whether they have one."""
        self._compute_stress = wanted

    def forward(self, state: Any) -> dict[str, Tensor]:
        """Compute what is wanted of all structures of a state, which is not changed.

        Args:
            state: A ``SimState``, or a dictionary with its ``positions`` ``[atoms, 3]``, ``cell`` ``[systems, 3, 3]``
                whose columns are lattice vectors, ``pbc``, ``atomic_numbers`` ``[atoms]`` and ``system_idx``
                ``[atoms]``, without which there is one structure.

        Returns:
            ``energy`` in eV, ``[systems]``; ``forces`` in eV/Angstrom, ``[atoms, 3]``; ``stress``, +dE/dstrain/V in
            eV/Angstrom^3, ``[systems, 3, 3]``, NaN for a structure whose cell has no volume. None has a gradient.

        Raises:
            UserError: If a structure is no sensible one or has elements the model does not know.
        """
        configurations = _configurations(state, self.model.plan.conditions)
        self._warn_of_spins(configurations)
        _refuse_unknown_elements(configurations, self._elements)
        del self._searches[len(configurations) :]  # of a larger state before
        graph = graph_of_structures(configurations, self._elements, self.model.plan.r_max, search=self._search)
        graph = graph.to(self._device)
        prediction = predict(self.model, graph, forces=self._compute_forces, stress=self._compute_stress)
        found = {"energy": prediction.energy, "forces": prediction.forces, "stress": prediction.stress}
        return {name: value.detach().to(self._dtype) for name, value in found.items() if value is not None}

    def _warn_of_spins(self, configurations: Sequence[Configuration]) -> None:
        """Warn once where all spins are zero: some versions of torch-sim say so of structures without a spin."""
        spins = [c.conditions["total_spin"] for c in configurations if "total_spin" in c.conditions]
        if spins and not np.any(spins) and not self._warned_of_spins:
            _LOGGER.warning(
                "The spin of all systems is 0, as torch-sim has it where none is given, but multiplicities begin with "
                "1; give the state a spin if that is not meant"
            )
            self._warned_of_spins = True

    def _search(self, configurations: Sequence[Configuration], r_max: float) -> Neighbors:
        """Find neighbors; those of periodic structures only when what stands at their place has moved enough."""
        if self._skin == 0.0 or not any(any(c.pbc) for c in configurations):
            return find_all_neighbors(configurations, r_max)
        last = configurations[-1].index + 1  # large states are searched in parts
        self._searches += [SkinNeighbors(self._skin) for _ in range(last - len(self._searches))]
        return join_neighbors([self._searches[c.index](c, r_max) for c in configurations])


def _opened(model: str | Path | MACE, device: torch.device, dtype: torch.dtype, head: str | int | None) -> MACE:
    """Open a file or copy a model, take one of its heads, and make it ready for being evaluated only."""
    if isinstance(model, MACE):
        opened, names, place = carry_to(deepcopy(model), device, dtype), model.plan.head_names, "MaceTorchSimModel"
    elif isinstance(model, (str, Path)):
        loaded = open_model(model, device, dtype)
        opened, names, place = loaded.model, loaded.heads, str(model)
    else:
        raise UserError(f"MaceTorchSimModel: the model is a {type(model).__name__}; name a model file.")
    if not opened.plan.predicts_energy:
        raise UserError(f"MaceTorchSimModel: a {opened.plan.model} model predicts no energy, so it moves no atoms.")
    opened = with_one_head(opened, _head(names, head, place)).requires_grad_(False)
    choose_kernels(opened)
    choose_radial_tables(opened)
    return opened


def _head(names: Sequence[str], head: str | int | None, place: str) -> str:
    """Return the name of the head that is meant; torch-sim's own models take numbers too."""
    if not isinstance(head, int):
        return find_head(names, head, place)
    if not 0 <= head < len(names):
        raise UserError(f"{place}: there is no head {head}; the heads are 0 to {len(names) - 1} ({', '.join(names)}).")
    return names[head]


def _configurations(state: Any, conditions: Sequence[Condition]) -> list[Configuration]:
    """Take the structures of a state apart."""
    state = SimpleNamespace(**state) if isinstance(state, Mapping) else state
    positions = _array(state.positions, np.float64)
    numbers = _array(state.atomic_numbers, np.int64)
    cells = _array(state.cell, np.float64).reshape(-1, 3, 3).swapaxes(1, 2)  # columns become rows
    system = getattr(state, "system_idx", None)
    place = np.zeros(len(numbers), np.int64) if system is None else _array(system, np.int64)
    counts = np.bincount(place, minlength=len(cells))
    fits = len(place) == len(positions) == len(numbers) > 0 and len(counts) == len(cells)
    if not fits or (np.diff(place) < 0).any():
        raise UserError(f"{_PLACE}: every atom must have a number and, in system_idx, a cell; cells rise from 0.")
    periodic = np.broadcast_to(_array(state.pbc, np.bool_), (len(cells), 3)).tolist()
    ends = np.cumsum(counts)
    found = [
        Configuration(numbers[a:b], positions[a:b], cell, tuple(pbc), file=_PLACE, index=index)
        for index, (a, b, cell, pbc) in enumerate(zip(ends - counts, ends, cells, periodic, strict=True))
    ]
    for configuration in found:
        check_geometry(configuration)
    if not conditions:
        return found
    of_systems, of_atoms = (
        _extras(state, conditions, *kind) for kind in (("structure", len(cells)), ("atom", len(place)))
    )
    return [
        replace(configuration, conditions=_found(conditions, configuration, of_systems, of_atoms, slice(a, b)))
        for configuration, a, b in zip(found, ends - counts, ends, strict=True)
    ]


def _extras(state: Any, conditions: Sequence[Condition], per: str, length: int) -> dict[str, np.ndarray]:
    """Take conditions of systems or atoms from a state, by key ``[length, ...]``.

    Raises:
        UserError: If one does not have a row for each.
    """
    keys = {key for condition in conditions if condition.per == per for key in condition.keys}
    values = {key: getattr(state, key) for key in sorted(keys) if getattr(state, key, None) is not None}
    arrays = {key: torch.as_tensor(value).detach().cpu().numpy() for key, value in values.items()}
    for key, array in arrays.items():
        if array.shape[:1] != (length,):
            raise UserError(
                f"{_PLACE}: '{key}' has the shape {list(array.shape)} where a row for each of {length} "
                f"{'systems' if per == 'structure' else 'atoms'} is expected."
            )
    return arrays


def _found(
    conditions: Sequence[Condition],
    configuration: Configuration,
    of_systems: Mapping[str, np.ndarray],
    of_atoms: Mapping[str, np.ndarray],
    atoms: slice,
) -> dict[str, np.ndarray]:
    """Return the conditions of one system."""
    info = {key: values[configuration.index] for key, values in of_systems.items()}
    arrays = {key: values[atoms] for key, values in of_atoms.items()}
    where, n_atoms = configuration.where(), configuration.n_atoms
    return find_conditions(conditions, {}, info, arrays, n_atoms, where).values


def _array(values: Any, dtype: type[np.generic]) -> np.ndarray:
    """Copy a tensor, or what can become one, to the CPU."""
    return torch.as_tensor(values).detach().cpu().numpy().astype(dtype)


def _refuse_unknown_elements(configurations: Sequence[Configuration], known: ElementTable) -> None:
    for configuration in configurations:
        unknown = sorted(set(configuration.atomic_numbers.tolist()).difference(known))
        if unknown:
            raise UserError(
                f"{configuration.where()} contains {' and '.join(map(chemical_symbol, unknown))}, which the model was "
                f"not trained on; it knows {', '.join(known.symbols)}."
            )
