"""The ASE calculator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mace.calculators.arguments import (
    DEFAULT_CHARGES_KEY,
    check_charges_key,
    check_inactive,
    check_model_type,
    refuse_unknown,
)
from mace.compat.importing import open_model
from mace.deployment.descriptors import invariant_descriptors
from mace.deployment.loading import expand_models, find_device, find_dtype
from mace.deployment.radial_tables import choose_radial_tables
from mace.elements import ElementTable, chemical_symbol
from mace.errors import UserError
from mace.graphs.batching import build_graph
from mace.graphs.graph import Graph
from mace.graphs.skin import DEFAULT_SKIN, SkinNeighbors
from mace.model.derivatives import Prediction, hessian, predict
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.model_file import carry_to
from mace.structures.configuration import Configuration
from mace.structures.stress import SMALLEST_VOLUME

_OF_ASE = ("atoms", "label", "directory")
_OF_ENERGY_MODELS = ("energy", "free_energy", "energies", "node_energy", "forces", "stress")
_ARGUMENTS = (
    "model_paths",
    "model_path",
    "models",
    "device",
    "energy_units_to_eV",
    "length_units_to_A",
    "default_dtype",
    "charges_key",
    "model_type",
    "head",
)


class MACECalculator(Calculator):  # type: ignore[misc]  # the types of ASE are not looked at
    """Energies, forces, stress and dipole of a trained model, for ASE.

    Results, in eV and Angstrom: ``energy`` and ``free_energy`` (the same number), ``energies`` (of each atom, with its
    reference energy), ``node_energy`` (of each atom, without it), ``forces``, and ``stress``. All of them are computed
    at once, so that any is at hand after asking for one.

    The stress is the derivative of the energy by a strain, divided by the volume of the cell, with six components in
    ASE's order and sign (positive under tension). It exists for every cell of three independent vectors, as in ASE's
    own calculators; of a slab it is thus per volume with the vacuum. Without such a cell, asking for it raises
    ``PropertyNotImplementedError``.

    A model of dipoles has ``dipole`` in e*Angstrom (``atoms.get_dipole_moment()``): with the results above if it is an
    EnergyDipolesMACE, and nothing else if it is an AtomicDipolesMACE. Charges of the atoms, if the structure has them,
    are part of it as charge times position. Of a periodic structure it is the sum over the atoms as they are given;
    without charges it does not depend on which images these are.

    Several models form a committee: energy, energies, forces, stress and dipole are means, and there are
    ``energy_comm`` ``[models]``, ``forces_comm`` ``[models, atoms, 3]``, ``stress_comm`` ``[models, 3, 3]``,
    ``dipole_comm`` ``[models, 3]``, with ``energy_var``, ``forces_var`` ``[atoms, 3]``, ``stress_var`` ``[3, 3]`` and
    ``dipole_var`` ``[3]``, the variances over the models (divided by their number).

    Args:
        model_paths: A model file of this program or of mace-torch, a glob pattern, or a list of either.
        models: Models in memory instead of files, one or a list; they are copied.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        energy_units_to_eV: The model's unit of energy in eV, for models trained on other units.
        length_units_to_A: The model's unit of length in Angstrom; positions are converted too.
        default_dtype: ``float32`` or ``float64``; empty for the precision each model was trained in.
        charges_key: Array of the structure with the charges of the atoms, for models of dipoles.
        model_type: May be left out: a model knows what it is. ``MACE``, ``DipoleMACE`` and ``EnergyDipoleMACE`` are
            compared with that.
        head: Which head to take of a model of mace-torch that has several.
        skin: How far beyond the cutoff neighbors are searched, in Angstrom, so that the search need not be repeated
            while atoms move less than half of it; results do not depend on it.
        radial_tables: Whether to read the radial functions from tables, which makes compiled kernels about twice as
            fast; None for tables in float32 if they change no force of a test structure by more than 1e-5 eV/Angstrom.
        **kwargs: ``model_path``, an older name of ``model_paths``; ``atoms``, ``label`` and ``directory`` of ASE's
            calculators; and the other arguments of mace-torch's calculator, at their defaults only.

    Raises:
        UserError: If a model, a device or an argument cannot be used.
        TypeError: If an argument is not known.
    """

    implemented_properties = list(_OF_ENERGY_MODELS)

    def __init__(
        self,
        model_paths: str | Path | Sequence[str | Path] | None = None,
        models: MACE | Sequence[MACE] | None = None,
        device: str = "cpu",
        energy_units_to_eV: float = 1.0,
        length_units_to_A: float = 1.0,
        default_dtype: str = "",
        charges_key: str = DEFAULT_CHARGES_KEY,
        model_type: str | None = None,
        head: str | None = None,
        skin: float = DEFAULT_SKIN,
        radial_tables: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Load the models; see the class."""
        model_paths = _take_older_name(model_paths, kwargs)
        of_ase = {name: kwargs.pop(name) for name in _OF_ASE if name in kwargs}
        refuse_unknown(kwargs, [*_ARGUMENTS, *_OF_ASE])
        check_inactive(kwargs)
        super().__init__(**of_ase)
        if (model_paths is None) == (models is None):
            raise UserError("MACECalculator: name either model_paths or models, and not both.")
        self.energy_units_to_eV = _positive(energy_units_to_eV, "energy_units_to_eV")
        self.length_units_to_A = _positive(length_units_to_A, "length_units_to_A")
        self.device, dtype = find_device(device), find_dtype(default_dtype)
        if models is None:
            self.models = _loaded(model_paths, self.device, dtype, head)
        else:
            if head is not None and head.lower() != "default":
                raise UserError(f"MACECalculator: models in memory have one head, so head='{head}' cannot be used.")
            self.models = _copied(models, self.device, dtype)
        self.charges_key = charges_key
        for model in self.models:
            check_model_type(model_type, model.plan)
            check_charges_key(charges_key, model.plan)
            model.requires_grad_(False)
            choose_kernels(model)
            choose_radial_tables(model, radial_tables)
        self.implemented_properties = _implemented(self.models)
        self.skin = _skin(skin)
        self._neighbors: dict[float, SkinNeighbors] = {}
        self.default_dtype = str(self.models[0].dtype).removeprefix("torch.")

    @property
    def num_models(self) -> int:
        """Number of models."""
        return len(self.models)

    @property
    def r_max(self) -> float:
        """The largest cutoff of the models, in Angstrom."""
        return max(model.plan.r_max for model in self.models) * self.length_units_to_A

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Tell what has changed since the last calculation, charges included, which ASE does not look at."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and self.models[0].plan.predicts_dipole:
            before, now = (a.arrays.get(self.charges_key) for a in (self.atoms, atoms))
            if (before is None) != (now is None) or (before is not None and not np.array_equal(before, now)):
                changes = ["charges"]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all results of a structure; see the class.

        Args:
            atoms: The structure; that of the last call if there is none.
            properties: What is wanted. Only ``stress`` matters: without a volume it cannot be given.
            system_changes: What has changed, as ASE tells; not used, because nothing is kept between calls.

        Raises:
            UserError: If the structure has elements the model does not know, or is no sensible structure.
            PropertyNotImplementedError: If the stress of a structure without volume is wanted.
        """
        super().calculate(atoms, properties, system_changes)
        self.results = {}
        structure = self.atoms
        if structure is None:
            raise UserError("The calculator has no structure yet; pass atoms.")
        has_volume = abs(np.linalg.det(structure.cell.array)) > SMALLEST_VOLUME
        wanted = set(properties or ())
        if not has_volume and any(name.startswith("stress") for name in wanted):
            raise PropertyNotImplementedError(
                "This structure has no stress, because its cell has no volume; give it a cell of three independent "
                "vectors, or do not ask for stress."
            )
        predictions = [
            predict(model, graph, forces=True, stress=has_volume)
            for model, graph in zip(self.models, self._graphs(structure), strict=True)
        ]
        self.results = self._collect(predictions, structure.numbers, has_volume)

    def get_descriptors(
        self, atoms: Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> np.ndarray | list[np.ndarray]:
        """Return the scalar features of every atom, those of all layers side by side.

        Args:
            atoms: The structure; that of the last calculation if there is none.
            invariants_only: Must be true; features that turn with the structure are not given out yet.
            num_layers: Only the first so many layers; -1 for all.

        Returns:
            ``[atoms, layers * channels]``; a list of them for a committee.

        Raises:
            UserError: If there is no structure or the arguments cannot be used.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise UserError("get_descriptors needs a structure; pass atoms.")
        if not invariants_only:
            raise UserError("get_descriptors: only invariants are available yet; leave invariants_only=True.")
        found = []
        for model, graph in zip(self.models, self._graphs(atoms), strict=True):
            prediction = predict(model, graph, forces=False)
            found.append(invariant_descriptors(prediction, num_layers).cpu().numpy())
        return found if self.num_models > 1 else found[0]

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray | list[np.ndarray]:
        """Return the second derivatives of the energy by the positions.

        Args:
            atoms: The structure; that of the last calculation if there is none.

        Returns:
            eV/Angstrom^2, ``[3 atoms, atoms, 3]``; a list of them for a committee.

        Raises:
            UserError: If there is no structure, or the models predict no energy.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise UserError("get_hessian needs a structure; pass atoms.")
        if not self.models[0].plan.predicts_energy:
            raise UserError(f"get_hessian: a {self.models[0].plan.model} model predicts no energy to differentiate.")
        unit = self.energy_units_to_eV / self.length_units_to_A**2
        graphs = self._graphs(atoms)
        found = [
            hessian(model, graph).detach().cpu().double().numpy() * unit
            for model, graph in zip(self.models, graphs, strict=True)
        ]
        return found if self.num_models > 1 else found[0]

    def _graphs(self, atoms: Atoms) -> list[Graph]:
        """Build the graph for every model; models with the same elements and cutoff share one."""
        charges = atoms.arrays.get(self.charges_key) if self.models[0].plan.predicts_dipole else None
        configuration = _to_configuration(atoms, self.length_units_to_A, charges)
        made: dict[tuple[tuple[int, ...], float], Graph] = {}
        keys = [(model.plan.atomic_numbers, model.plan.r_max) for model in self.models]
        for key in keys:
            if key not in made:
                elements, r_max = key
                _check_elements(configuration, elements)
                search = self._neighbors.setdefault(r_max, SkinNeighbors(self.skin))
                made[key] = build_graph(configuration, ElementTable(elements), r_max, search).to(self.device)
        return [made[key] for key in keys]

    def _collect(self, predictions: list[Prediction], numbers: np.ndarray, has_volume: bool) -> dict[str, Any]:
        """Turn predictions into ASE's results, means over the models."""
        results: dict[str, Any] = {}
        members: dict[str, np.ndarray] = {}
        if self.models[0].plan.predicts_energy:
            results, members = self._collect_energies(predictions, numbers, has_volume)
        if self.models[0].plan.predicts_dipole:
            members["dipole"] = _stack([p.dipole for p in predictions])[:, 0] * self.length_units_to_A
            results["dipole"] = members["dipole"].mean(0)
        if self.num_models > 1:
            for name, values in members.items():
                results[f"{name}_comm"] = values
                results[f"{name}_var"] = values.var(0) if values.ndim > 1 else float(values.var())
        return results

    def _collect_energies(
        self, predictions: list[Prediction], numbers: np.ndarray, has_volume: bool
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Collect what models with energies say: means over the models, and what each of them says."""
        energy_unit, length_unit = self.energy_units_to_eV, self.length_units_to_A
        energy = _stack([p.energy for p in predictions])[:, 0] * energy_unit
        energies = _stack([p.atomic_energies for p in predictions]) * energy_unit
        forces = _stack([p.forces for p in predictions]) * (energy_unit / length_unit)
        references = _stack([_reference_energies(m, numbers) for m in self.models]) * energy_unit
        results: dict[str, Any] = {
            "energy": float(energy.mean()),
            "free_energy": float(energy.mean()),
            "energies": energies.mean(0),
            "node_energy": (energies - references).mean(0),
            "forces": forces.mean(0),
        }
        members = {"energy": energy, "forces": forces}
        if has_volume:
            stress = _stack([p.stress[0] for p in predictions if p.stress is not None])
            members["stress"] = stress * (energy_unit / length_unit**3)
            results["stress"] = full_3x3_to_voigt_6_stress(members["stress"].mean(0))
        return results, members


def _take_older_name(model_paths: Any, kwargs: dict[str, Any]) -> Any:
    """Read ``model_path`` where scripts still use it."""
    if "model_path" not in kwargs:
        return model_paths
    if model_paths is not None:
        raise UserError("MACECalculator: model_path is the older name of model_paths; give only one of them.")
    return kwargs.pop("model_path")


def _implemented(models: list[MACE]) -> list[str]:
    """List the results of some models.

    Raises:
        UserError: If they do not all predict the same.
    """
    kinds = {(model.plan.predicts_energy, model.plan.predicts_dipole) for model in models}
    if len(kinds) > 1:
        words = " and ".join(sorted({model.plan.model for model in models}))
        raise UserError(
            f"MACECalculator: a committee of {words} models cannot be formed; they predict different things."
        )
    energy, dipole = kinds.pop()
    members = [*(("energy", "forces", "stress") if energy else ()), *(("dipole",) if dipole else ())]
    committee = [f"{name}_{what}" for name in members for what in ("comm", "var")] if len(models) > 1 else []
    return [*(_OF_ENERGY_MODELS if energy else ()), *(("dipole",) if dipole else ()), *committee]


def _copied(models: MACE | Sequence[MACE], device: torch.device, dtype: torch.dtype | None) -> list[MACE]:
    """Copy models, so that what happens to the given ones later changes no energy."""
    given = [models] if isinstance(models, torch.nn.Module) else list(models)
    if not given:
        raise UserError("MACECalculator: the list of models is empty; name at least one.")
    for model in given:
        if not isinstance(model, MACE):
            kind = f"{type(model).__module__}.{type(model).__name__}"
            raise UserError(f"MACECalculator: models must hold models of mace-train, not {kind}; use model_paths.")
    return [carry_to(deepcopy(model), device, dtype or model.dtype) for model in given]


def _loaded(paths: Any, device: torch.device, dtype: torch.dtype | None, head: str | None) -> list[MACE]:
    files = expand_models(paths)
    if not files:
        raise UserError("MACECalculator: the list of model_paths is empty; name at least one.")
    return [open_model(file, device, dtype, head).model for file in files]


def _positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0.0):
        raise UserError(f"MACECalculator: {name} is {value}; it must be a finite number larger than zero.")
    return float(value)


def _skin(value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise UserError(f"MACECalculator: skin is {value}; it must be zero or a positive length in Angstrom.")
    return float(value)


def _to_configuration(atoms: Atoms, length_unit: float, charges: np.ndarray | None) -> Configuration:
    """Check a structure and carry it to the model's unit of length.

    Raises:
        UserError: If it has no atoms, numbers that are NaN or infinite, no cell where it repeats, or charges that are
            not one number per atom.
    """
    if len(atoms) == 0:
        raise UserError("The structure has no atoms, so there is nothing to calculate.")
    positions, cell = np.array(atoms.positions, dtype=np.float64), np.array(atoms.cell.array, dtype=np.float64)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise UserError("A position or the cell is NaN or infinite; did the simulation break down before this step?")
    pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    if np.linalg.matrix_rank(cell[list(pbc)]) < sum(pbc):
        raise UserError(
            f"The structure repeats along pbc={list(pbc)}, but its lattice vectors there are zero or linearly "
            "dependent; give it a cell, or set pbc to False."
        )
    if charges is not None and (charges.shape != (len(atoms),) or not np.isfinite(charges).all()):
        raise UserError("The charges of the structure must be one finite number for every atom.")
    return Configuration(
        charges=None if charges is None else charges.astype(np.float64),
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=positions / length_unit,
        cell=cell / length_unit,
        pbc=pbc,
    )


def _check_elements(configuration: Configuration, known: tuple[int, ...]) -> None:
    unknown = sorted(set(configuration.atomic_numbers.tolist()) - set(known))
    if unknown:
        names = " and ".join(chemical_symbol(number) for number in unknown)
        raise UserError(
            f"The structure contains {names}, which the model was not trained on; it knows "
            f"{', '.join(chemical_symbol(number) for number in known)}."
        )


def _reference_energies(model: MACE, numbers: np.ndarray) -> Tensor:
    """Return the reference energy of every atom in the model's unit, ``[atoms]``."""
    plan = model.plan
    by_number = dict(zip(plan.atomic_numbers, plan.reference_energies, strict=True))
    return torch.tensor([by_number[number] for number in numbers.tolist()], dtype=torch.float64)


def _stack(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """Collect what each model says, ``[models, ...]``, float64."""
    rows = [tensor.detach().cpu().double().numpy() for tensor in tensors if tensor is not None]
    return np.stack(rows)
