"""The ASE calculator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from mace.calculators.arguments import (
    DEFAULT_CHARGES_KEY,
    check_charges_key,
    check_model_type,
    check_positive,
    check_skin,
    condition_keys,
    refuse_unknown,
    take_other_names,
    tell_inert,
)
from mace.calculators.ase_properties import CalculatorOfAllProperties
from mace.calculators.extrapolation import CommitteeWatch, DistanceWatch
from mace.calculators.heads import HeadChoice
from mace.calculators.members import implemented_results, open_members
from mace.calculators.results import ATOMIC_STRESSES, OF_ENERGY_MODELS, Units, collect_results
from mace.calculators.structures import refuse_unknown_elements, to_configuration, volume_of
from mace.calculators.threads import UsedByThreads, in_turn
from mace.compat.functions import AtomicNumberTable
from mace.conditions import joined
from mace.elements import ElementTable
from mace.errors import UserError
from mace.evaluation.descriptors import descriptors
from mace.graphs.assembly import graph_of_structures
from mace.graphs.graph import Graph
from mace.graphs.neighbors import Neighbors, find_all_neighbors, join_neighbors
from mace.graphs.skin import DEFAULT_SKIN, SkinNeighbors
from mace.installation import require_own_files
from mace.model.kernel_choice import choose_kernels
from mace.model.mace import MACE
from mace.model.prediction import hessian, nonsense, predict
from mace.potential.loading import find_device, find_dtype
from mace.potential.radial_tables import choose_radial_tables
from mace.structures.condition_values import FoundConditions, find_conditions
from mace.structures.configuration import Configuration

require_own_files()
_LOGGER = logging.getLogger(__name__)
_OF_ASE = ("atoms", "label", "directory")
Search = Callable[[Sequence[Configuration], float], Neighbors]
"""Finds the neighbors of some structures within a cutoff."""

_ARGUMENTS = (
    "model_paths",
    "model_path",
    "model",
    "models",
    "device",
    "energy_units_to_eV",
    "length_units_to_A",
    "default_dtype",
    "charges_key",
    "info_keys",
    "arrays_keys",
    "model_type",
    "head",
    "skin",
    "radial_tables",
    "compute_atomic_stresses",
    "committee_threshold",
    "committee_action",
)


class MACECalculator(UsedByThreads, CalculatorOfAllProperties):
    """Energies, forces, stress and dipole of a trained model, for ASE.

    Results, in eV and Angstrom: ``energy`` and ``free_energy`` (the same number), ``energies`` (of each atom, with its
    reference energy), ``node_energy`` (of each atom, without it), ``forces``, and ``stress``. All of them are computed
    at once, so that any is at hand after asking for one. ``stresses`` ``[atoms, 6]`` and ``virials`` ``[atoms, 3, 3]``
    are computed when asked for: the share of each atom, half of what every pair it belongs to adds, in the stress, and
    with the opposite sign in the derivative by the strain, eV. Both sum to those of the whole structure.

    The stress is the derivative of the energy by a strain, divided by the volume of the cell, with six components in
    ASE's order and sign (positive under tension). It exists for every cell of three independent vectors, as in ASE's
    own calculators; of a slab it is thus per volume with the vacuum. Without such a cell, asking for it raises
    ``PropertyNotImplementedError``.

    A model of dipoles has ``dipole`` in e*Angstrom (``atoms.get_dipole_moment()``): with the results above if it is an
    EnergyDipolesMACE, and nothing else if it is an AtomicDipolesMACE. Charges of the atoms, if the structure has them,
    are part of it as charge times position. Of a periodic structure it is the sum over the atoms as they are given;
    without charges it does not depend on which images these are.

    A model may know of conditions: a total charge, a spin, a temperature (``mace_info`` lists them). They are taken
    from ``atoms.info``, those of atoms from ``atoms.arrays``, and a change of them is a change of the structure. A
    structure without a charge counts as neutral, without a spin as a singlet (``spin`` 1), without an electronic
    temperature as at zero; the log says so once. Others must be given.

    Several models form a committee: energy, energies, forces, stress and dipole are means, and there are
    ``energy_comm`` ``[models]``, ``energies_comm`` ``[models, atoms]``, ``forces_comm`` ``[models, atoms, 3]``,
    ``stress_comm`` ``[models, 3, 3]``, ``dipole_comm`` ``[models, 3]``, with ``energy_var``, ``energies_var``,
    ``forces_var`` ``[atoms, 3]``, ``stress_var`` ``[3, 3]`` and ``dipole_var`` ``[3]``, the variances over the models
    (divided by their number), and their square roots ``energy_std`` and so on.

    An element the model does not know is an error. An `ExtrapolationWarning` is given once if atoms come closer than
    any two of their elements in the training data; model files of earlier versions do not say how close that is.

    Args:
        model_paths: A model file of this program or of mace-torch, a glob pattern, or a list of either.
        models: Models in memory instead of files, one or a list; they are copied.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        energy_units_to_eV: The model's unit of energy in eV, for models trained on other units.
        length_units_to_A: The model's unit of length in Angstrom; positions are converted too.
        default_dtype: ``float32`` or ``float64``, also as ``torch.float32``; empty for the precision each model was
            trained in. Results have it, but for energies, which are float64.
        charges_key: Array of the structure with the charges of the atoms, for models of dipoles.
        info_keys: Keys in ``atoms.info`` by name of the condition, such as ``{"total_charge": "q"}``; those that are
            not named have the usual ones.
        arrays_keys: The same for conditions of atoms, in ``atoms.arrays``.
        model_type: May be left out: a model knows what it is. ``MACE``, ``DipoleMACE`` and ``EnergyDipoleMACE`` are
            compared with that.
        head: Which head to use of models that have several; may be changed later (``calculator.head = name``). None
            for the one called default. In `evaluate` a structure may name its own in ``info["head"]``.
        skin: How far beyond the cutoff neighbors are searched, in Angstrom, so that the search need not be repeated
            while atoms move less than half of it; results do not depend on it.
        radial_tables: Whether to read the radial functions from tables, which makes compiled kernels about twice as
            fast; None for tables in float32 if they change no force of a test structure by more than 1e-5 eV/Angstrom.
        compute_atomic_stresses: Compute ``stresses`` and ``virials`` in every calculation, not only when asked for.
        committee_threshold: Largest standard deviation of the force on an atom over the models of a committee, as the
            length of the vector in eV/Angstrom; beyond it they are taken to extrapolate.
        committee_action: What happens then: ``warn`` once, or ``error``.
        **kwargs: ``model_path`` and ``model``, other names of ``model_paths``; ``dispersion``, which adds nothing here;
            ``atoms``, ``label`` and ``directory`` of ASE's calculators; and the other arguments of
            mace-torch's calculator, at their defaults only.

    Raises:
        UserError: If a model, a device or an argument cannot be used.
        TypeError: If an argument is not known.
    """

    implemented_properties = [*OF_ENERGY_MODELS, *ATOMIC_STRESSES]

    def __init__(
        self,
        model_paths: str | Path | Sequence[str | Path] | None = None,
        models: MACE | Sequence[MACE] | None = None,
        device: str = "cpu",
        energy_units_to_eV: float = 1.0,
        length_units_to_A: float = 1.0,
        default_dtype: str | torch.dtype = "",
        charges_key: str = DEFAULT_CHARGES_KEY,
        info_keys: Mapping[str, str] | None = None,
        arrays_keys: Mapping[str, str] | None = None,
        model_type: str | None = None,
        head: str | None = None,
        skin: float = DEFAULT_SKIN,
        radial_tables: bool | None = None,
        compute_atomic_stresses: bool = False,
        committee_threshold: float | None = None,
        committee_action: str = "warn",
        **kwargs: Any,
    ) -> None:
        """Load the models; see the class."""
        model_paths = take_other_names(model_paths, kwargs)
        of_ase = {name: kwargs.pop(name) for name in _OF_ASE if name in kwargs}
        refuse_unknown(kwargs, [*_ARGUMENTS, *_OF_ASE])
        tell_inert(kwargs)
        super().__init__(**of_ase)
        if (model_paths is None) == (models is None):
            raise UserError("MACECalculator: name either model_paths or models, and not both.")
        self.energy_units_to_eV = check_positive(energy_units_to_eV, "energy_units_to_eV")
        self.length_units_to_A = check_positive(length_units_to_A, "length_units_to_A")
        self.device, dtype = find_device(device), find_dtype(default_dtype)
        members = open_members(model_paths, models, self.device, dtype)
        self.models = [member.model for member in members]
        self._heads = HeadChoice([(member.heads, member.place) for member in members], head)
        self.charges_key = charges_key
        self.conditions = joined(model.plan.conditions for model in self.models)
        self._condition_keys = condition_keys(info_keys, arrays_keys, self.conditions)
        self._told_of_defaults = False
        for model in self.models:
            check_model_type(model_type, model.plan)
            check_charges_key(charges_key, model.plan)
            model.requires_grad_(False)
            choose_kernels(model)
            choose_radial_tables(model, radial_tables)
        self.implemented_properties = implemented_results(self.models)
        self.compute_atomic_stresses = self._atomic_stresses(compute_atomic_stresses)
        self._distance_watches = [
            DistanceWatch(member.model, member.shortest_distances, self.length_units_to_A) for member in members
        ]
        self._warned_of_distances = False
        self._committee_watch = CommitteeWatch(committee_threshold, committee_action, self.num_models)
        self.skin = check_skin(skin)
        self._neighbors: dict[float, SkinNeighbors] = {}
        self.default_dtype = str(self.models[0].dtype).removeprefix("torch.")

    def _atomic_stresses(self, wanted: bool) -> bool:
        if wanted and not self.models[0].plan.predicts_energy:
            raise UserError("MACECalculator: compute_atomic_stresses=True cannot be used with models of dipoles only.")
        return wanted

    @property
    def num_models(self) -> int:
        """Number of models."""
        return len(self.models)

    @property
    def available_heads(self) -> list[str]:
        """Names of the heads of the models."""
        return list(self._heads.available)

    @property
    def head(self) -> str:
        """The head in use; setting another one makes results be computed anew."""
        return self._heads.chosen

    @head.setter
    def head(self, name: str) -> None:
        """Use another head."""
        self._heads.chosen = self._heads.find(name)
        self.results = {}

    @property
    def r_max(self) -> float:
        """The largest cutoff of the models, in Angstrom."""
        return max(model.plan.r_max for model in self.models) * self.length_units_to_A

    @property
    def z_table(self) -> AtomicNumberTable:
        """The elements of the (first) model; ``z_table.zs`` are their atomic numbers."""
        return AtomicNumberTable(self.models[0].plan.atomic_numbers)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Tell what has changed since the last calculation, with charges and conditions, which ASE does not look at."""
        changes: list[str] = super().check_state(atoms, tol)
        if changes:
            return changes
        if self.results and self.head_of_results != self.head:
            return ["head"]
        if self.models[0].plan.predicts_dipole:
            before, now = (a.arrays.get(self.charges_key) for a in (self.atoms or Atoms(), atoms))
            if (before is None) != (now is None) or (before is not None and not np.array_equal(before, now)):
                return ["charges"]
        if self.conditions:
            try:
                old, new = (self.find_conditions(a).values for a in (self.atoms, atoms))
            except UserError:  # of a structure that could not be calculated, or cannot be now
                return ["conditions"]
            changes += [name for name in new if not np.array_equal(old[name], new[name])]
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
            properties: What is wanted. Only stresses matter: without a volume they cannot be given, and those of single
                atoms are computed only if wanted.
            system_changes: What has changed, as ASE tells; not used, because nothing is kept between calls.

        Raises:
            UserError: If the structure has elements the model does not know, or is no sensible structure.
            PropertyNotImplementedError: If the stress of a structure without volume is wanted.
        """
        super().calculate(atoms, properties, system_changes)
        self.results = {}
        structure = self._structure(None, "The calculator")
        wanted = set(properties or ())
        if volume_of(structure) is None and any(name.startswith("stress") for name in wanted):
            raise PropertyNotImplementedError(
                "This structure has no stress, because its cell has no volume; give it a cell of three independent "
                "vectors, or do not ask for stress."
            )
        self._heads.warn_of_other(structure)
        atomic = self.compute_atomic_stresses or not wanted.isdisjoint(ATOMIC_STRESSES)
        head = self.head
        (results,) = self._evaluate([structure], self._search, atomic, [head])
        self.keep(results, head)

    def evaluate(
        self, structures: Sequence[Atoms], batch_size: int = 64, atomic_stresses: bool = False
    ) -> list[dict[str, Any]]:
        """Compute the results of many structures, several at a time, which is much faster than one after the other.

        Args:
            structures: Any structures; they are not changed. If models have several heads, ``info["head"]`` of a
                structure says for which of them it is; others are for that of the calculator.
            batch_size: How many at a time; lower it if memory runs out.
            atomic_stresses: Whether ``stresses`` and ``virials`` of single atoms are wanted too.

        Returns:
            For each structure, in the given order, what `calculate` would put into ``results``.

        Raises:
            UserError: If a structure has elements the model does not know, or is no sensible structure; the message
                names its place, counted from zero.
        """
        if batch_size < 1:
            raise UserError(f"evaluate: batch_size is {batch_size}; it must be at least 1.")
        results: list[dict[str, Any]] = []
        for start in range(0, len(structures), batch_size):
            batch = structures[start : start + batch_size]
            try:
                heads = [self._head_of(atoms, place) for place, atoms in enumerate(batch)]
                atomic = atomic_stresses or self.compute_atomic_stresses
                results += self._evaluate(batch, find_all_neighbors, atomic, heads)
            except _StructureError as error:
                raise UserError(f"Structure {start + error.place} of the list: {error}") from error
        return results

    @in_turn
    def _evaluate(
        self, structures: Sequence[Atoms], search: Search, atomic: bool, heads: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Predict some structures with all models, for the head in use or one of each, and collect the results."""
        graphs = self._graphs(structures, search, heads)
        volumes = [volume_of(atoms) for atoms in structures]
        stress = any(volume is not None for volume in volumes)
        predictions = [
            predict(model, graph, forces=True, stress=stress, atomic_virials=atomic)
            for model, graph in zip(self.models, graphs, strict=True)
        ]
        units = Units(self.energy_units_to_eV, self.length_units_to_A)
        results = collect_results(self.models, predictions, graphs, volumes, units)
        for place, result in enumerate(results):
            if said := nonsense(result):
                raise _StructureError(said, place)
        self._committee_watch.check(results)
        return results

    def get_atomic_stresses(self, atoms: Atoms | None = None) -> np.ndarray:
        """Return the share of every atom in the stress: half of what each pair it belongs to adds.

        They are divided by the volume of the whole cell, so that they sum to the stress, as ``stresses`` of ASE's own
        calculators do; multiplied by the number of atoms, they refer to the volume of an average atom.

        Args:
            atoms: The structure; that of the last calculation if there is none.

        Returns:
            eV/Angstrom^3, ``[atoms, 3, 3]``, symmetric; the mean for a committee.

        Raises:
            UserError: If there is no structure, its cell has no volume, or the models predict no energy.
        """
        structure = self._structure(atoms, "get_atomic_stresses")
        self._require_energy("get_atomic_stresses")
        volume = volume_of(structure)
        if volume is None:
            raise UserError("get_atomic_stresses: the cell has no volume; give it three independent vectors.")
        (results,) = self._evaluate([structure], self._search, atomic=True)
        stresses: np.ndarray = -results["virials"] / volume
        return stresses

    @in_turn
    def get_descriptors(
        self, atoms: Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> np.ndarray | list[np.ndarray]:
        """Return the features of every atom, those of all layers side by side.

        Args:
            atoms: The structure; that of the last calculation if there is none.
            invariants_only: Leave out those that turn with the structure. See `mace.evaluation.descriptors` for the
                order of all of them, which is that of mace-torch.
            num_layers: Only the first so many layers; -1 for all.

        Returns:
            ``[atoms, layers * channels]``, or more columns with all features; a list of them for a committee.

        Raises:
            UserError: If there is no structure or the arguments cannot be used.
        """
        graphs = self._graphs([self._structure(atoms, "get_descriptors")], self._search)
        found = [
            descriptors(predict(model, graph, forces=False, features=True), num_layers, invariants_only).cpu().numpy()
            for model, graph in zip(self.models, graphs, strict=True)
        ]
        return found if self.num_models > 1 else found[0]

    def get_dielectric_derivatives(self, atoms: Atoms | None = None) -> NoReturn:
        """Raise a `UserError`: there are no models of polarizabilities here."""
        raise UserError(
            "get_dielectric_derivatives needs a model of dipoles and polarizabilities (AtomicDielectricMACE), which "
            "does not exist here; use mace-torch, or displace the atoms and call get_dipole_moment."
        )

    @in_turn
    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray | list[np.ndarray]:
        """Return the second derivatives of the energy by the positions.

        Args:
            atoms: The structure; that of the last calculation if there is none.

        Returns:
            eV/Angstrom^2, ``[3 atoms, atoms, 3]``; a list of them for a committee.

        Raises:
            UserError: If there is no structure, or the models predict no energy.
        """
        structure = self._structure(atoms, "get_hessian")
        self._require_energy("get_hessian")
        unit = self.energy_units_to_eV / self.length_units_to_A**2
        graphs = self._graphs([structure], self._search)
        found = [
            hessian(model, graph).detach().cpu().double().numpy() * unit
            for model, graph in zip(self.models, graphs, strict=True)
        ]
        return found if self.num_models > 1 else found[0]

    def _structure(self, atoms: Atoms | None, caller: str) -> Atoms:
        """Return the given structure, or that of the last calculation."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise UserError(f"{caller} needs a structure; pass atoms.")
        return atoms

    def _require_energy(self, caller: str) -> None:
        if not self.models[0].plan.predicts_energy:
            raise UserError(f"{caller}: a {self.models[0].plan.model} model predicts no energy to differentiate.")

    def _search(self, configurations: Sequence[Configuration], r_max: float) -> Neighbors:
        """Find the neighbors of a structure that moves a little at a time."""
        search = self._neighbors.setdefault(r_max, SkinNeighbors(self.skin))
        return join_neighbors([search(configuration, r_max) for configuration in configurations])

    def _graphs(self, structures: Sequence[Atoms], search: Search, heads: Sequence[str] | None = None) -> list[Graph]:
        """Build the batch for every model; models with the same elements, cutoff and heads share one."""
        heads = heads or [self.head] * len(structures)
        configurations = [self._configuration(*of_one) for of_one in zip(structures, heads, count())]
        made: dict[tuple[tuple[int, ...], float, tuple[str, ...]], Graph] = {}
        keys = [(model.plan.atomic_numbers, model.plan.r_max, model.plan.head_names) for model in self.models]
        for key in dict.fromkeys(keys):
            elements, r_max, names = key
            graph = graph_of_structures(configurations, ElementTable(elements), r_max, names, search)
            made[key] = graph.to(self.device)
        graphs = [made[key] for key in keys]
        if not self._warned_of_distances:
            pairs = zip(self._distance_watches, graphs, strict=True)
            self._warned_of_distances = any(watch.check(graph) for watch, graph in pairs)
        return graphs

    def _head_of(self, atoms: Atoms, place: int) -> str:
        """Return the head that a structure is for."""
        try:
            return self._heads.of_structure(atoms)
        except UserError as error:
            raise _StructureError(str(error), place) from error

    def _configuration(self, atoms: Atoms, head: str, place: int) -> Configuration:
        """Check a structure; see `to_configuration`."""
        charges = atoms.arrays.get(self.charges_key) if self.models[0].plan.predicts_dipole else None
        try:
            conditions = self.find_conditions(atoms)
            configuration = to_configuration(atoms, self.length_units_to_A, charges, conditions.values, head)
            for model in self.models:
                refuse_unknown_elements(configuration, model.plan.atomic_numbers)
        except UserError as error:
            raise _StructureError(str(error), place) from error
        self._tell_of_defaults(conditions)
        return configuration

    def find_conditions(self, atoms: Atoms) -> FoundConditions:
        """Return the conditions of a structure that the models know of, by name, and under which keys it has them.

        Raises:
            UserError: If one is missing or not possible.
        """
        return find_conditions(
            self.conditions, self._condition_keys, atoms.info, atoms.arrays, len(atoms), "The structure"
        )

    def _tell_of_defaults(self, found: FoundConditions) -> None:
        """Say once what was assumed of a structure that does not say its conditions."""
        assumed = [f"{name} {found.values[name].item():g}" for name, key in found.keys.items() if key is None]
        if assumed and not self._told_of_defaults:
            _LOGGER.info("The structure does not say all it could; taken are %s", " and ".join(assumed))
            self._told_of_defaults = True


class _StructureError(UserError):
    """What is wrong with a structure, and its place among those evaluated together."""

    def __init__(self, text: str, place: int = 0) -> None:
        super().__init__(text)
        self.place = place
