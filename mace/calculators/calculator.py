"""The ASE calculator."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
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
    condition_keys,
    refuse_unknown,
    take_other_names,
    warn_of_inert,
)
from mace.calculators.ase_properties import CalculatorOfAllProperties
from mace.calculators.extrapolation import CommitteeWatch, DistanceWatch
from mace.calculators.results import ATOMIC_STRESSES, collect_results, result_names
from mace.calculators.structures import to_configuration, volume_of, what_changed
from mace.calculators.threads import UsedByThreads, in_turn
from mace.compat.functions import AtomicNumberTable
from mace.errors import UserError
from mace.graphs.graph import Graph
from mace.graphs.skin import DEFAULT_SKIN
from mace.installation import require_own_files
from mace.model.mace import MACE
from mace.model.plan import OUTPUTS
from mace.model.prediction import copies_for_hessian, hessian, nonsense
from mace.potential.descriptors import descriptors
from mace.potential.potential import open_potential
from mace.structures.condition_values import FoundConditions, find_conditions
from mace.structures.configuration import HEAD_KEY, Configuration

require_own_files()
_LOGGER = logging.getLogger(__name__)
_OF_ASE = ("atoms", "label", "directory")


class MACECalculator(UsedByThreads, CalculatorOfAllProperties):
    """ASE calculator for energies, forces, stress and dipole of a trained model.

    Results, in eV and Angstrom: ``energy`` and ``free_energy`` (the same number), ``energies`` (of each atom, with its
    reference energy), ``node_energy`` (of each atom, without it), ``forces``, and ``stress``. All of them are computed
    at once, so after requesting one, all are available. ``stresses`` ``[atoms, 6]`` and ``virials`` ``[atoms, 3, 3]``
    are computed on request only: the contribution of each atom, half of that of each of its pairs, to the stress and to
    the negative derivative of the energy by strain (eV), respectively. Both sum to those of the whole structure.

    The stress is the derivative of the energy by strain, divided by the volume of the cell, with six components in
    ASE's order and sign (positive under tension). It is defined for every cell of three independent vectors, as in
    ASE's own calculators; for a slab, the volume thus includes the vacuum. Without such a cell, requesting the stress
    raises ``PropertyNotImplementedError``.

    Dipole models give ``dipole`` in e*Angstrom (``atoms.get_dipole_moment()``): an EnergyDipolesMACE in addition to the
    results above, an AtomicDipolesMACE nothing else. Charges of the atoms, if the structure has them, contribute charge
    times position. For a periodic structure the dipole is the sum over the atoms as they are given; without charges it
    does not depend on which periodic images these are.

    A model may depend on conditions: a total charge, a spin, a temperature (``mace_info`` lists them). They are taken
    from ``atoms.info``, or from ``atoms.arrays`` for those of atoms, and results are recomputed when they change. A
    structure without a charge is taken as neutral, without a spin as a singlet (``spin`` 1), without an electronic
    temperature as at zero; the log says so once. Other conditions must be given.

    Several models form a committee: energy, energies, forces, stress and dipole are means, and there are
    ``energy_comm`` ``[models]``, ``energies_comm`` ``[models, atoms]``, ``forces_comm`` ``[models, atoms, 3]``,
    ``stress_comm`` ``[models, 3, 3]``, ``dipole_comm`` ``[models, 3]``, with ``energy_var``, ``energies_var``,
    ``forces_var`` ``[atoms, 3]``, ``stress_var`` ``[3, 3]`` and ``dipole_var`` ``[3]``, the variances over the models
    (divided by their number), and their square roots ``energy_std`` and so on.

    An element that the model does not know is an error. An `ExtrapolationWarning` is given once if two atoms come
    closer than any two of their elements in the training data; model files of earlier versions lack this information.

    Args:
        model_paths: A model file of this program or of mace-torch, a glob pattern, or a list of either.
        models: Models in memory instead of files, one or a list; they are copied.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or ``xpu``.
        energy_units_to_eV: The model's unit of energy in eV, for models trained in other units.
        length_units_to_A: The model's unit of length in Angstrom; positions are converted too.
        default_dtype: ``float32`` or ``float64``, or the torch dtype; empty for the precision each model was trained
            in. Results have this precision, except energies, which are float64.
        charges_key: Array of the structure with the charges of the atoms, for models of dipoles.
        info_keys: Keys in ``atoms.info`` by name of the condition, such as ``{"total_charge": "q"}``; conditions not
            named have their usual keys.
        arrays_keys: The same for conditions of atoms, in ``atoms.arrays``.
        model_type: Optional, as a model knows its kind; ``MACE``, ``DipoleMACE`` or ``EnergyDipoleMACE`` is compared
            with it.
        head: The head to use if models have several; may be changed later (``calculator.head = name``). None for the
            one called default. In `evaluate`, a structure may name its own head in ``info["head"]``.
        skin: Distance beyond the cutoff, in Angstrom, up to which neighbors are searched, so that the neighbor list can
            be reused while atoms move less than half of it; results do not depend on it.
        radial_tables: Whether to read the radial functions from tables, which makes compiled kernels about twice as
            fast; None for tables in float32 if they change no force of a test structure by more than 1e-5 eV/Angstrom.
        compute_atomic_stresses: Compute ``stresses`` and ``virials`` in every calculation, not only on request.
        committee_threshold: Largest standard deviation of the force on an atom over the models of a committee, as the
            norm of the vector in eV/Angstrom; beyond it, the models are considered to extrapolate.
        committee_action: What to do then: ``warn`` once, or ``error``.
        **kwargs: ``model_path`` and ``model``, other names of ``model_paths``; ``dispersion``, without effect here;
            ``atoms``, ``label`` and ``directory`` of ASE's calculators; and the other arguments of
            mace-torch's calculator, at their defaults only.

    Raises:
        UserError: If a model, a device or an argument cannot be used.
        TypeError: If an argument is unknown.
    """

    implemented_properties = result_names(OUTPUTS["MACE"], committee=False)

    def __init__(  # noqa: PLR0913  # the arguments are those of mace-torch
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
        named = inspect.signature(MACECalculator).parameters.keys() - {"kwargs"}
        refuse_unknown(kwargs, [*named, "model_path", "model", *_OF_ASE])
        warn_of_inert(kwargs)
        super().__init__(**of_ase)
        if (model_paths is None) == (models is None):
            raise UserError("MACECalculator: name either model_paths or models, and not both.")
        given: Any = models if model_paths is None else model_paths
        if models is None and not isinstance(given, (str, Path)):
            given = list(given)
            if not given:
                raise UserError("MACECalculator: the list of model_paths is empty; name at least one.")
        self.energy_units_to_eV = check_positive(energy_units_to_eV, "energy_units_to_eV")
        self.length_units_to_A = check_positive(length_units_to_A, "length_units_to_A")
        self.potential = open_potential(
            given, device, default_dtype, radial_tables=radial_tables, skin=skin, caller="MACECalculator"
        )
        self.models, self.device = list(self.potential.models), self.potential.device
        self.conditions = self.potential.conditions
        self._head, self._warned_of_head = self.potential.find_head(head), False
        if len(self.available_heads) > 1:
            _LOGGER.info("Using the head %s of %s", self.head, ", ".join(self.available_heads))
        self.charges_key = charges_key
        self._condition_keys = condition_keys(info_keys, arrays_keys, self.conditions)
        self._told_of_defaults = False
        for model in self.models:
            check_model_type(model_type, model.plan)
            check_charges_key(charges_key, model.plan)
        self.implemented_properties = result_names(self.potential.outputs, committee=len(self.models) > 1)
        if compute_atomic_stresses and "energy" not in self.potential.outputs:
            raise UserError("MACECalculator: compute_atomic_stresses=True cannot be used with models of dipoles only.")
        self.compute_atomic_stresses = compute_atomic_stresses
        self._distance_watch = DistanceWatch(self.potential, self.length_units_to_A)
        self._committee_watch = CommitteeWatch(committee_threshold, committee_action, self.num_models)
        self.skin = skin
        self.default_dtype = str(self.potential.dtype).removeprefix("torch.")

    @property
    def num_models(self) -> int:
        """Number of models."""
        return len(self.models)

    @property
    def available_heads(self) -> list[str]:
        """Names of the heads of the models."""
        return list(self.potential.heads)

    @property
    def head(self) -> str:
        """The head in use; setting another one discards the results."""
        return self._head

    @head.setter
    def head(self, name: str) -> None:
        """Use another head."""
        self._head = self.potential.find_head(name)
        self.results = {}

    @property
    def r_max(self) -> float:
        """The largest cutoff of the models, in Angstrom."""
        return self.potential.cutoff * self.length_units_to_A

    @property
    def z_table(self) -> AtomicNumberTable:
        """The elements of the first model; ``z_table.zs`` are their atomic numbers."""
        return AtomicNumberTable(self.models[0].plan.atomic_numbers)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what has changed since the last calculation, including charges and conditions, which ASE ignores."""
        changes = what_changed(self.atoms, atoms, tol)
        if changes:
            return changes
        if self.results and self.head_of_results != self.head:
            return ["head"]
        if "dipole" in self.potential.outputs:
            before, now = (a.arrays.get(self.charges_key) for a in (self.atoms or Atoms(), atoms))
            if (before is None) != (now is None) or (before is not None and not np.array_equal(before, now)):
                return ["charges"]
        if self.conditions:
            try:
                old, new = (self.find_conditions(a).values for a in (self.atoms, atoms))
            except UserError:  # the conditions of the old or the new structure are not valid
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
            atoms: The structure; None for that of the last call.
            properties: The requested properties. Only stresses matter: without a volume they are an error, and atomic
                stresses are computed only on request.
            system_changes: What has changed, as reported by ASE; not used, as nothing is kept between calls.

        Raises:
            UserError: If the structure has elements that the model does not know, or is invalid.
            PropertyNotImplementedError: If the stress of a structure without volume is requested.
        """
        if atoms is not None:  # all that ASE's method would do for a calculator without files
            self.atoms = atoms.copy()
        self.results = {}
        structure = self._structure(None, "The calculator")
        wanted = set(properties or ())
        if volume_of(structure) is None and any(name.startswith("stress") for name in wanted):
            raise PropertyNotImplementedError(
                "This structure has no stress, because its cell has no volume; give it a cell of three independent "
                "vectors, or do not ask for stress."
            )
        head, own = self.head, structure.info.get(HEAD_KEY)
        if own is not None and str(own) != head and len(self.available_heads) > 1 and not self._warned_of_head:
            self._warned_of_head = True
            warnings.warn(
                f"info['{HEAD_KEY}'] of the structure is '{own}', but the calculator uses the head '{head}'; set "
                "calculator.head, or use calculator.evaluate, which obeys the structure. This is said once.",
                stacklevel=2,
            )
        atomic = self.compute_atomic_stresses or not wanted.isdisjoint(ATOMIC_STRESSES)
        (results,) = self._evaluate([structure], atomic, head)
        self.keep(results, head)

    def evaluate(
        self, structures: Sequence[Atoms], batch_size: int = 64, atomic_stresses: bool = False
    ) -> list[dict[str, Any]]:
        """Compute the results of many structures in batches, which is much faster than one at a time.

        Args:
            structures: Any structures; they are not changed. If models have several heads, ``info["head"]`` of a
                structure selects one of them; structures without it use the head of the calculator.
            batch_size: Number of structures at a time; lower it if memory runs out.
            atomic_stresses: Whether to compute ``stresses`` and ``virials`` of atoms too.

        Returns:
            For each structure, in the given order, what `calculate` would store in ``results``.

        Raises:
            UserError: If a structure has elements that the model does not know, or is invalid; the message names its
                place in the list, counted from zero.
        """
        if batch_size < 1:
            raise UserError(f"evaluate: batch_size is {batch_size}; it must be at least 1.")
        results: list[dict[str, Any]] = []
        atomic = atomic_stresses or self.compute_atomic_stresses
        for start in range(0, len(structures), batch_size):
            results += self._evaluate(structures[start : start + batch_size], atomic, first=start)
        return results

    @in_turn
    def _evaluate(
        self, structures: Sequence[Atoms], atomic: bool, head: str | None = None, first: int | None = None
    ) -> list[dict[str, Any]]:
        """Predict some structures with all models and collect the results.

        Args:
            structures: The structures.
            atomic: Whether to compute the virials of atoms.
            head: The head; None for the one named by each structure, or else the one in use.
            first: Index of the first of them in the user's list, for messages; None for a single moving structure.
        """

        def where(place: int) -> str:
            return "" if first is None else f"Structure {first + place} of the list: "

        configurations: list[Configuration] = []
        try:
            for atoms in structures:
                configurations.append(self._configuration(atoms, head))
        except UserError as error:
            raise UserError(f"{where(len(configurations))}{error}") from error
        graphs = self._graphs(configurations, follow=first is None)
        volumes = [volume_of(atoms) for atoms in structures]
        with_volume = any(volume is not None for volume in volumes)
        predictions = self.potential.predict(graphs, stress=with_volume, atomic_virials=atomic)
        units = (self.energy_units_to_eV, self.length_units_to_A)
        counts = [configuration.n_atoms for configuration in configurations]
        results = collect_results(predictions, counts, volumes, units, self.potential.dtype)
        for place, result in enumerate(results):
            if said := nonsense(result):
                raise UserError(f"{where(place)}{said}")
        self._committee_watch.check(results)
        return results

    def get_atomic_stresses(self, atoms: Atoms | None = None) -> np.ndarray:
        """Return the contribution of every atom to the stress: half of that of each of its pairs.

        They are divided by the volume of the whole cell, so they sum to the stress, as ``stresses`` of ASE's own
        calculators do; multiplied by the number of atoms, they refer to the average volume per atom.

        Args:
            atoms: The structure; None for that of the last calculation.

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
        (results,) = self._evaluate([structure], atomic=True, head=self.head)
        stresses: np.ndarray = -results["virials"] / volume
        return stresses

    @in_turn
    def get_descriptors(
        self, atoms: Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> np.ndarray | list[np.ndarray]:
        """Return the features of every atom, concatenated over the layers.

        Args:
            atoms: The structure; None for that of the last calculation.
            invariants_only: Whether to leave out features that rotate. See `mace.potential.descriptors` for the
                order of all features, which is that of mace-torch.
            num_layers: Number of layers to use, from the first; -1 for all.

        Returns:
            ``[atoms, layers * channels]``, or more columns with all features; a list of them for a committee.

        Raises:
            UserError: If there is no structure or the arguments cannot be used.
        """
        structure = self._structure(atoms, "get_descriptors")
        graphs = self._graphs([self._configuration(structure, self.head)], follow=True)
        predictions = self.potential.predict(graphs, forces=False, features=True)
        found = [descriptors(each, num_layers, invariants_only).cpu().numpy() for each in predictions]
        return found if self.num_models > 1 else found[0]

    def get_dielectric_derivatives(self, atoms: Atoms | None = None) -> NoReturn:
        """Raise a `UserError`: there are no models of polarizabilities here."""
        raise UserError(
            "get_dielectric_derivatives needs a model of dipoles and polarizabilities (AtomicDielectricMACE), which "
            "does not exist here; use mace-torch, or displace the atoms and call get_dipole_moment."
        )

    @in_turn
    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray | list[np.ndarray]:
        """Return the second derivatives of the energy with respect to positions.

        Args:
            atoms: The structure; None for that of the last calculation.

        Returns:
            eV/Angstrom^2, ``[3 atoms, atoms, 3]``; a list of them for a committee.

        Raises:
            UserError: If there is no structure, or the models predict no energy.
        """
        structure = self._structure(atoms, "get_hessian")
        self._require_energy("get_hessian")
        unit = self.energy_units_to_eV / self.length_units_to_A**2
        copies = copies_for_hessian(len(structure), self.device)
        graphs = self._graphs([self._configuration(structure, self.head)] * copies, follow=True)
        found = [
            hessian(model, graph.to(self.device), copies).detach().cpu().double().numpy() * unit
            for model, graph in zip(self.models, graphs, strict=True)
        ]
        return found if self.num_models > 1 else found[0]

    def _structure(self, atoms: Atoms | None, caller: str) -> Atoms:
        """Return the given structure, or that of the last calculation if None."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise UserError(f"{caller} needs a structure; pass atoms.")
        return atoms

    def _require_energy(self, caller: str) -> None:
        if "energy" not in self.potential.outputs:
            raise UserError(f"{caller}: a {self.models[0].plan.model} model predicts no energy to differentiate.")

    def _graphs(self, configurations: Sequence[Configuration], follow: bool) -> list[Graph]:
        """Build the graph of every model, and check for distances shorter than in its training data."""
        graphs = self.potential.graphs(configurations, follow)
        self._distance_watch.check(graphs)
        return graphs

    def _configuration(self, atoms: Atoms, head: str | None) -> Configuration:
        """Check a structure and convert it to the model's units; `head` None selects its own head or the one in use."""
        own = atoms.info.get(HEAD_KEY) if head is None and len(self.available_heads) > 1 else None
        head = self.potential.find_head(str(own)) if own is not None else head or self.head
        charges = atoms.arrays.get(self.charges_key) if "dipole" in self.potential.outputs else None
        conditions = self.find_conditions(atoms)
        configuration = to_configuration(atoms, self.length_units_to_A, charges, conditions.values, head)
        self.potential.check_elements(configuration)
        assumed = [f"{name} {conditions.values[name].item():g}" for name, key in conditions.keys.items() if key is None]
        if assumed and not self._told_of_defaults:
            _LOGGER.info("The structure does not say all it could; taken are %s", " and ".join(assumed))
            self._told_of_defaults = True
        return configuration

    def find_conditions(self, atoms: Atoms) -> FoundConditions:
        """Return the conditions of a structure that the models depend on, by name, and the keys they were found under.

        Raises:
            UserError: If a condition is missing or invalid.
        """
        return find_conditions(
            self.conditions, self._condition_keys, atoms.info, atoms.arrays, len(atoms), "The structure"
        )
