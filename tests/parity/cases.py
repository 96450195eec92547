"""The stored cases of this folder, as plans, weights and labeled configurations of this project."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mace.compat.layers import KINDS_OF_INTERACTIONS
from mace.compat.weights import weights_from_original
from mace.conditions import read_specs
from mace.elements import ElementTable
from mace.graphs.in_memory import InMemoryDataset
from mace.kernels.adam import CompiledAdam
from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.model.mace import MACE
from mace.model.plan import HeadPlan, ModelPlan
from mace.model.prediction import predict
from mace.structures.configuration import Configuration
from mace.testing.laws import BatchPotential, Potential, Result, Structure
from mace.training.loss import Loss
from mace.training.optimization import MovingAverage, parameter_groups
from mace.training.step import loss_gradient, update_parameters
from mace.units import DEBYE_OF_MACE_TORCH

FOLDER = Path(__file__).parent / "references"
DIPOLES = "dipoles"
"""The folder of the cases with dipoles."""

CONDITIONS = "conditions"
"""The folder of the cases with conditions."""

HEADS = "heads"
"""The folder of the cases with several heads."""

MIXED_HEADS = "mixed_heads"
"""The folder of what the same cases say of batches of mixed heads."""

STRIDE = 11
"""Which entries of weights that are not of readouts are stored of batches of mixed heads."""

STRUCTURES = "structures"
"""Not a case but the atoms that all cases share."""

COMPILED = False
"""Whether models use compiled kernels; the fixture ``kernels`` decides."""

N_STRUCTURES = 3
METHANOL, SILICON, SLAB = range(N_STRUCTURES)


@dataclass(frozen=True)
class Case:
    """One stored run of the original.

    Attributes:
        plan: The plan of the same model.
        weights: The original's weights by the names of this project; do not write into them.
        configurations: Methanol, silicon and slab with the labels and weights of the stored losses.
        data: Everything stored, by the original's names.
        settings: What the case was made from, with the versions.
    """

    plan: ModelPlan
    weights: dict[str, np.ndarray]
    configurations: list[Configuration]
    data: dict[str, np.ndarray]
    settings: dict[str, Any]

    def model(self, scale: float | None = None) -> MACE:
        """Build the model with the stored weights, in float64, with another scale of the energy if one is given."""
        plan = self.plan if scale is None else self.plan.model_copy(update={"scale": scale})
        model = MACE(plan, torch.float64)
        model.load_state_dict({name: torch.tensor(array) for name, array in self.weights.items()})
        return model.use_backend(C if COMPILED else TORCH)

    def dataset(self) -> InMemoryDataset:
        """Build the graphs of the three structures."""
        elements, heads = ElementTable(self.plan.atomic_numbers), self.plan.head_names
        return InMemoryDataset(self.configurations, elements, self.plan.r_max, heads=heads)

    def potential(self) -> Potential:
        """Return the model as a potential that laws can be asserted of."""
        return potential(self.model())

    def structures(self) -> list[Structure]:
        """Return methanol, silicon and slab as arguments of a potential."""
        return [Structure(c.atomic_numbers, c.positions, c.cell, c.pbc) for c in self.configurations]

    def strong_model(self) -> MACE:
        """Build the model with its energies scaled so that the largest force is one eV/Angstrom.

        Random weights make forces that are very small or very large, which laws would judge too mildly.
        """
        forces = predict(self.model(), self.dataset().batch(range(N_STRUCTURES)).graph).forces
        assert forces is not None
        return self.model(self.plan.scale / float(forces.abs().max()))

    def reference_energies(self) -> np.ndarray:
        """Sum the energies of the isolated atoms of every structure, eV, ``[structures]``."""
        of_element = dict(zip(self.plan.atomic_numbers, self.plan.reference_energies, strict=True))
        return np.array([sum(of_element[int(z)] for z in c.atomic_numbers) for c in self.configurations])


def batch_potential(model: MACE) -> BatchPotential:
    """Make a function of several structures at once from a model."""
    elements = ElementTable(model.plan.atomic_numbers)

    def evaluate(structures: Sequence[Structure]) -> list[Result]:
        configurations = [Configuration(*structure) for structure in structures]
        batch = InMemoryDataset(configurations, elements, model.plan.r_max).batch(range(len(structures)))
        prediction = predict(model, batch.graph, stress=True)
        assert prediction.forces is not None and prediction.stress is not None
        counts = [len(structure.atomic_numbers) for structure in structures]
        forces = prediction.forces.split(counts)
        # without periodicity a cell is only a box, and stress has no meaning
        return [
            (
                float(prediction.energy[i]),
                forces[i].numpy(),
                prediction.stress[i].numpy() if any(structure.pbc) else None,
            )
            for i, structure in enumerate(structures)
        ]

    return evaluate


def potential(model: MACE) -> Potential:
    """Make a function of one structure from a model."""
    evaluate = batch_potential(model)

    def single(
        atomic_numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool]
    ) -> Result:
        return evaluate([Structure(atomic_numbers, positions, cell, pbc)])[0]

    return single


def reference_names() -> list[str]:
    """List the stored cases."""
    return sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != STRUCTURES)


def dipole_reference_names() -> list[str]:
    """List the stored cases of models with dipoles."""
    return sorted(f"{DIPOLES}/{path.stem}" for path in (FOLDER / DIPOLES).glob("*.npz"))


def condition_reference_names() -> list[str]:
    """List the stored cases of models with conditions."""
    return sorted(f"{CONDITIONS}/{path.stem}" for path in (FOLDER / CONDITIONS).glob("*.npz"))


def head_reference_names() -> list[str]:
    """List the stored cases of models with several heads."""
    return sorted(f"{HEADS}/{path.stem}" for path in (FOLDER / HEADS).glob("*.npz"))


def case_plan(settings: dict[str, Any]) -> ModelPlan:
    """Translate the settings of a case."""
    plan = _common_plan(settings)
    if "vectors" in settings:
        changes = {"scale": 1.0, "readout_vectors": settings["vectors"], "dipole_scale": DEBYE_OF_MACE_TORCH}
        if settings["model"] == "AtomicDipolesMACE":
            changes |= {"readout_channels": 0, "reference_energies": ()}
        plan = ModelPlan.model_validate(plan.model_dump() | {"model": settings["model"], **changes})
    names = settings.get("options", {}).get("heads", [])
    heads = [
        HeadPlan(
            name=name,
            reference_energies=tuple(energy + 0.25 * i for energy in plan.reference_energies),
            scale=plan.scale - 0.1 * i * ("vectors" not in settings),
            shift=plan.shift * (1.0 - i),
        )
        for i, name in enumerate(names)
    ]
    without = {"reference_energies": (), "scale": 1.0, "shift": 0.0} if heads else {}
    return ModelPlan.model_validate(plan.model_dump() | without | {"heads": heads})


def _common_plan(settings: dict[str, Any]) -> ModelPlan:
    """Translate what models of energies and of dipoles have in common."""
    kinds = [settings["first"]] + [settings["other"]] * (settings["layers"] - 1)
    energies = {int(number): energy for number, energy in settings["energies"].items()}
    return ModelPlan(
        model="MACE" if "vectors" in settings else settings["model"],
        r_max=settings["r_max"],
        radial_type=settings["radial"],
        num_radial_basis=6,
        num_cutoff_basis=5,
        distance_transform=settings["transform"],
        pair_repulsion=settings["repulsion"],
        **_variants(settings),
        l_max=settings["l_max"],
        n_channels=settings["channels"],
        hidden_l=tuple(int(irrep[0]) for irrep in settings["hidden"].split("+")),
        interactions=tuple(KINDS_OF_INTERACTIONS[kind] for kind in kinds),
        correlation=(settings["correlation"],) * settings["layers"],
        radial_mlp=(7, 9),
        readout_channels=5,
        gate=settings["gate"],
        avg_num_neighbors=9.5,
        atomic_numbers=tuple(sorted(energies)),
        reference_energies=tuple(energies[number] for number in sorted(energies)),
        scale=0.8,
        shift=0.3 if settings["model"] == "ScaleShiftMACE" else 0.0,
    )


def _variants(settings: dict[str, Any]) -> dict[str, Any]:
    """Translate the options of the original's model, which older cases do not have."""
    options = settings.get("options", {})
    plan: dict[str, Any] = {
        "cutoff_after_network": not options.get("apply_cutoff", True),
        "product_of_all_elements": options.get("use_agnostic_product", False),
        "last_readout_only": options.get("use_last_readout_only", False),
        "readout_biases": "readout_cls" in options,
    }
    if "embedding_specs" in options:
        plan["conditions"] = read_specs(options["embedding_specs"])
        plan["condition_readout"] = options.get("use_embedding_readout", False)
    if "edge_irreps" in options:
        channels, others = int(options["edge_irreps"][0]), settings["layers"] - 1
        first = channels if options.get("use_edge_irreps_first") else settings["channels"]
        plan["message_channels"] = (first, *[channels] * others)
    return plan


def original_weights(case: Case, prefix: str) -> dict[str, np.ndarray]:
    """Take the stored arrays of a prefix, by our names; entries that were not stored are NaN.

    Args:
        case: The case.
        prefix: ``weights``, ``gradients``, ``stepped`` or ``averaged``.
    """
    return _weights(case.data, prefix, case.plan)


def mixed_heads(name: str) -> dict[str, np.ndarray]:
    """Read what ``make_head_references.py`` stored of a case with several heads, in its names."""
    with np.load(FOLDER / MIXED_HEADS / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def spread(case: Case, data: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """Return arrays stored in one by `mixed_heads`, by our names; entries that were not stored are NaN.

    Args:
        case: The case.
        data: What was read.
        key: Of joined arrays, such as ``gradients/universal``.
    """
    shapes: dict[str, list[int]] = json.loads(str(data["parameters"]))
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    n_others = sum(size for name, size in sizes.items() if not name.startswith("readouts."))
    others, n_stored = np.full(n_others, np.nan), -(-n_others // STRIDE)
    others[::STRIDE], readouts = np.split(data[key], [n_stored])
    found = {}
    for name, size in sizes.items():
        if name.startswith("readouts."):
            taken, readouts = np.split(readouts, [size])
        else:
            taken, others = np.split(others, [size])
        found[name] = taken.reshape(shapes[name])
    assert not len(others) and not len(readouts)
    return weights_from_original(found, case.plan)


def assert_as_stored(
    case: Case, prefix: str, ours: Mapping[str, torch.Tensor], tolerance: float = 1e-8, chosen: Set[str] | None = None
) -> None:
    """Compare weights or gradients with the stored ones, each to a share of the largest of all.

    Args:
        case: The case.
        prefix: See `original_weights`.
        ours: Ours, by name.
        tolerance: The share.
        chosen: Names to compare; all if there are none.
    """
    theirs = {name: array for name, array in original_weights(case, prefix).items() if chosen is None or name in chosen}
    assert_close(ours, theirs, tolerance)


def assert_close(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Compare weights or gradients with others that are not NaN, each to a share of the largest of all."""
    assert ours.keys() == theirs.keys()
    scale = max(np.abs(array[~np.isnan(array)]).max(initial=0.0) for array in theirs.values())
    for name, array in theirs.items():
        assert tuple(ours[name].shape) == array.shape, name
        stored = ~np.isnan(array)
        deviation = np.abs(ours[name].detach().numpy()[stored] - array[stored]).max(initial=0.0) / scale
        assert deviation < tolerance, f"{name} deviates by {deviation:.1e} of the largest"


def three_steps(case: Case, model: MACE, loss: Loss) -> MovingAverage:
    """Make the optimizer steps whose results are stored as ``stepped`` and, of the moving average, ``averaged``."""
    optimizer = (CompiledAdam if COMPILED else torch.optim.Adam)(
        parameter_groups(model, lr=0.01, weight_decay=5e-3, factors={}), lr=0.01, amsgrad=True, fused=True
    )
    average = MovingAverage(model.parameters(), decay=0.99)
    batch = case.dataset().batch(range(N_STRUCTURES))
    for _ in range(3):
        loss_gradient(model, batch, loss)
        update_parameters(model, optimizer, clip_grad=10.0, average=average)
    return average


def _weights(data: dict[str, np.ndarray], prefix: str, plan: ModelPlan) -> dict[str, np.ndarray]:
    found = {key.removeprefix(prefix + "/"): array for key, array in data.items() if key.startswith(prefix + "/")}
    for key, shape in data.items():
        if key.startswith(f"shape/{prefix}/"):
            name = key.removeprefix(f"shape/{prefix}/")
            found[name] = _large(name, tuple(shape), data.get(f"some/{prefix}/{name}"))
    return weights_from_original(found, plan)


def _large(name: str, shape: tuple[int, ...], some: np.ndarray | None) -> np.ndarray:
    """Draw a large weight anew, see ``make_references.py``, or spread the entries that were stored."""
    if some is None:
        return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    spread = np.full(int(np.prod(shape)), np.nan)
    # every so many-th entry, evenly
    spread[:: -(-spread.size // some.size)] = some
    return spread.reshape(shape)


def case_configurations(data: dict[str, np.ndarray], plan: ModelPlan) -> list[Configuration]:
    """Join the stored structures with the stored labels and the uneven weights of the stored losses.

    Methanol has no volume and a stress no meaning there: it goes without, though the original's loss has one for it.
    Dipoles are turned from Debye into e*Angstrom; the original's losses do not look at weights of theirs, so that they
    have weights here that leave none. Silicon is for the first head, the others for the last.
    """
    stored = np.load(FOLDER / f"{STRUCTURES}.npz")
    counts = [len(stored[f"{i}/numbers"]) for i in range(N_STRUCTURES)]
    forces = np.split(data["labels/forces"], np.cumsum(counts)[:-1])
    dipoles, charges = [None] * N_STRUCTURES, [None] * N_STRUCTURES
    if "labels/dipole" in data:
        dipoles = list(data["labels/dipole"] * DEBYE_OF_MACE_TORCH)
        charges = np.split(data["labels/charges"], np.cumsum(counts)[:-1])
    return [
        Configuration(
            atomic_numbers=stored[f"{i}/numbers"].astype(np.int64),
            positions=stored[f"{i}/positions"],
            cell=stored[f"{i}/cell"],
            pbc=tuple(map(bool, stored[f"{i}/pbc"])),  # type: ignore[arg-type]
            energy=float(data["labels/energy"][i]),
            forces=forces[i],
            stress=data["labels/stress"][i] if i != METHANOL else None,
            virials=data["labels/virials"][i],
            dipole=dipoles[i],
            charges=charges[i],
            conditions=_conditions(data, i, counts[i]),
            weight=1.0 + 0.5 * i,
            head=plan.head_names[0 if i == SILICON else -1],
            property_weights={
                "energy": 1.0 + i,
                "forces": 0.5 + i,
                "stress": 2.0 - 0.3 * i,
                "virials": 1.0 + 0.2 * i,
                "dipole": 1.0 / (1.0 + 0.5 * i),
            },
        )
        for i in range(N_STRUCTURES)
    ]


def _conditions(data: dict[str, np.ndarray], i: int, n_atoms: int) -> dict[str, np.ndarray]:
    """Take the conditions of one structure, ``[1]`` or ``[atoms, values]``."""
    prefix = f"condition/{i}/"
    found = {key.removeprefix(prefix): np.asarray(data[key], np.float64) for key in data if key.startswith(prefix)}
    return {name: value.reshape((n_atoms, -1) if value.ndim else (1,)) for name, value in found.items()}


@cache
def load_case(name: str) -> Case:
    """Read one stored case.

    Args:
        name: One of `reference_names` or of the like for dipoles, conditions or heads.

    Returns:
        The case; it is shared between callers, so do not write into its arrays.
    """
    with np.load(FOLDER / f"{name}.npz") as stored:
        data = {key: stored[key] for key in stored.files}
    settings = json.loads(str(data.pop("settings")))
    plan = case_plan(settings)
    return Case(plan, _weights(data, "weights", plan), case_configurations(data, plan), data, settings)
