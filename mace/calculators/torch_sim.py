"""A model for torch-sim, which simulates many structures at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mace.conditions import Condition
from mace.errors import UserError
from mace.graphs.skin import DEFAULT_SKIN
from mace.model.mace import MACE
from mace.potential.loading import find_device
from mace.potential.potential import open_potential
from mace.structures.checks import check_geometry
from mace.structures.condition_values import find_conditions
from mace.structures.configuration import Configuration

_LOGGER = logging.getLogger(__name__)
_MISSING: ImportError | None = None
try:
    from torch_sim.models.interface import ModelInterface
except ImportError as _error:  # the module can be imported without torch-sim, for its documentation
    ModelInterface, _MISSING = torch.nn.Module, _error

_PLACE = "torch-sim state"
"""Stands in for the file name in messages."""


class MaceTorchSimModel(ModelInterface):  # type: ignore[misc]  # torch-sim may be missing when types are checked
    """Energies, forces and stress of many structures at once, as torch-sim's ``ModelInterface``.

    Conditions that a model depends on, such as a total charge, are taken from attributes of the state, which torch-sim
    calls extras: one value for each system, or a row for each atom, under the keys that ``mace_info`` shows.

    Results have the precision of the model, as torch-sim expects; float32 rounds large total energies.

    Args:
        model: A model file of this program or of mace-torch, or a model in memory, which is copied.
        device: The device to compute on; None for a GPU if there is one. States must be on it.
        dtype: ``torch.float64`` or ``torch.float32``.
        compute_forces: Whether results have forces; can be changed later.
        compute_stress: Whether results have a stress; can be changed later.
        head: Name or number of the head to use if the model has several; None for the one called default.
        skin: Distance beyond the cutoff, in Angstrom, up to which neighbors of periodic structures are searched, so
            that neighbor lists can be reused while atoms move less than half of it; results do not depend on it.

    Raises:
        UserError: If torch-sim is missing, or the model, device or precision cannot be used.
    """

    # replace read-only properties of the interface
    compute_forces: bool = True
    """Whether results have forces."""
    compute_stress: bool = True
    """Whether results have a stress."""

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
        device = find_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.potential = open_potential(
            model,
            device,
            dtype,
            head,
            radial_tables=None,
            skin=skin,
            one_head=True,
            committee=False,
            caller="MaceTorchSimModel",
        )
        self.model = self.potential.models[0].eval()
        if "energy" not in self.potential.outputs:
            kind = self.model.plan.model
            raise UserError(f"MaceTorchSimModel: a {kind} model predicts no energy, so it moves no atoms.")
        self._device, self._dtype = device, dtype  # exposed by the interface without the underscore
        self.compute_forces, self.compute_stress = compute_forces, compute_stress
        self._warned_of_spins = False

    def forward(self, state: Any) -> dict[str, Tensor]:
        """Compute the requested results of all structures of a state, which is not changed.

        Args:
            state: A ``SimState``, or a dictionary with its ``positions`` ``[atoms, 3]``, ``cell`` ``[systems, 3, 3]``
                whose columns are lattice vectors, ``pbc``, ``atomic_numbers`` ``[atoms]`` and ``system_idx``
                ``[atoms]``; without the latter, there is one structure.

        Returns:
            ``energy`` in eV, ``[systems]``; ``forces`` in eV/Angstrom, ``[atoms, 3]``; ``stress``, +dE/dstrain/V in
            eV/Angstrom^3, ``[systems, 3, 3]``, NaN for a structure whose cell has no volume. All are detached.

        Raises:
            UserError: If a structure is invalid or has elements that the model does not know.
        """
        configurations = _configurations(state, self.potential.conditions)
        self._warn_of_spins(configurations)
        for configuration in configurations:
            self.potential.check_elements(configuration, configuration.where())
        (prediction,) = self.potential.evaluate(
            configurations, follow=True, forces=self.compute_forces, stress=self.compute_stress
        )
        found = {"energy": prediction.energy, "forces": prediction.forces, "stress": prediction.stress}
        return {name: value.detach().to(self._dtype) for name, value in found.items() if value is not None}

    def _warn_of_spins(self, configurations: Sequence[Configuration]) -> None:
        """Warn once if all spins are zero: some versions of torch-sim set this for structures without a spin."""
        spins = [c.conditions["total_spin"] for c in configurations if "total_spin" in c.conditions]
        if spins and not np.any(spins) and not self._warned_of_spins:
            _LOGGER.warning(
                "The spin of all systems is 0, as torch-sim has it where none is given, but multiplicities begin with "
                "1; give the state a spin if that is not meant"
            )
            self._warned_of_spins = True


def _configurations(state: Any, conditions: Sequence[Condition]) -> list[Configuration]:
    """Split a state into its structures, and check them."""
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
    extras: dict[str, dict[str, np.ndarray]] = {"structure": {}, "atom": {}}
    for condition in conditions:
        length, what = (len(cells), "systems") if condition.per == "structure" else (len(place), "atoms")
        for key in condition.keys:
            if (value := getattr(state, key, None)) is None:
                continue
            extras[condition.per][key] = array = torch.as_tensor(value).detach().cpu().numpy()
            if array.shape[:1] != (length,):
                raise UserError(
                    f"{_PLACE}: '{key}' has the shape {list(array.shape)} where a row for each of {length} {what} is "
                    "expected."
                )
    found, ends = list[Configuration](), np.cumsum(counts)
    for index, (a, b, cell, pbc) in enumerate(zip(ends - counts, ends, cells, periodic, strict=True)):
        configuration = Configuration(numbers[a:b], positions[a:b], cell, tuple(pbc), file=_PLACE, index=index)
        check_geometry(configuration)
        info = {key: rows[index] for key, rows in extras["structure"].items()}
        arrays = {key: rows[a:b] for key, rows in extras["atom"].items()}
        values = find_conditions(conditions, {}, info, arrays, b - a, configuration.where()).values
        found.append(replace(configuration, conditions=values))
    return found


def _array(values: Any, dtype: type[np.generic]) -> np.ndarray:
    """Return a tensor, or anything that can become one, as a NumPy array on the CPU."""
    return torch.as_tensor(values).detach().cpu().numpy().astype(dtype)
