"""Our models for programs that open those of mace-torch, written by an interpreter that has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress

from mace.compat.dipoles import for_original
from mace.compat.layers import word_of_interaction
from mace.compat.weights import weights_to_original
from mace.conditions import spec_of_condition
from mace.elements import ElementTable
from mace.errors import UserError
from mace.graphs.assembly import build_graph
from mace.model.mace import MACE
from mace.model.plan import ModelPlan
from mace.model.prediction import predict
from mace.structures.condition_values import example_values
from mace.structures.configuration import DEFAULT_HEAD, Configuration
from mace.units import DEBYE_OF_MACE_TORCH

TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""Largest deviation of the original's numbers from ours, over the largest magnitude, at which a file is handed out."""

TIME_LIMIT = 1800
_ROUNDINGS = 8
"""How often the sum of the reference energies may have been rounded."""

_MODEL_TYPES = {"ScaleShiftMACE": "MACE", "AtomicDipolesMACE": "DipoleMACE", "EnergyDipolesMACE": "EnergyDipoleMACE"}
"""What the original's calculator has to be told of each class."""

_SPACING = 0.45
"""Distance of neighboring atoms of the test structures over the cutoff."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: The file.
        version: Version of mace-torch that wrote it.
        deviations: How far its energies, forces, stress and dipoles are from ours, over their largest magnitude.
    """

    path: Path
    version: str
    deviations: dict[str, float]


def export_to_original(model: MACE, path: str | Path, python: str | Path) -> Export:
    """Write a model that mace-torch opens, and compare what it computes on two structures with ours.

    Args:
        model: The model, on the CPU.
        path: The file to write; it appears only if the numbers agree.
        python: An interpreter that has mace-torch.

    Returns:
        The file with the deviations found.

    Raises:
        UserError: If the interpreter has no mace-torch, cannot build this model, or computes something else.
    """
    path, found = Path(path), shutil.which(str(python))
    if found is None:
        raise UserError(f"--python: there is no program {python}; name the python of an environment with mace-torch.")
    precision = str(model.dtype).removeprefix("torch.")
    rewritten, weights = for_original(
        model.plan, {name: value.detach().cpu().numpy() for name, value in model.named_parameters()}
    )
    plan = original_arguments(rewritten)
    arrays = {f"weight/{name}": value for name, value in weights_to_original(weights, rewritten).items()}
    structures = [structure for head in model.plan.head_names for structure in check_structures(model.plan, head)]
    for i, structure in enumerate(structures):
        arrays |= {f"structure/{i}/{name}": value for name, value in _expected(model, structure).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mace_export") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan | {"dtype": precision, "n_structures": len(structures)}))
        np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]  # none is called allow_pickle
        told = _run(os.path.abspath(found), folder)
        tolerance = TOLERANCES[precision]
        if bad := {name: value for name, value in told["deviations"].items() if not value < tolerance}:
            listed = ", ".join(f"{name} {value:.2g}" for name, value in bad.items())
            raise UserError(
                f"{path}: the model written by mace-torch {told['version']} computes something else ({listed} relative "
                "deviation), so it was thrown away; please report this."
            )
        try:
            shutil.move(folder / "exported.model", path)
        except OSError as error:
            raise UserError(f"{path}: the model cannot be written ({error.strerror or error}).") from error
    return Export(path, told["version"], told["deviations"])


def original_arguments(plan: ModelPlan) -> dict[str, Any]:
    """Translate a plan into the arguments of the original's model.

    Raises:
        UserError: If the original cannot mix kinds of layers this way.
    """
    if len(set(plan.interactions[1:])) > 1:
        raise UserError("mace-torch has one kind of interaction for all layers but the first; this model has several.")
    kinds = [word_of_interaction(kind) for kind in plan.interactions]
    edge_irreps, narrow_first = _edge_irreps(plan)
    degrees = plan.l_out(0) if plan.n_layers == 1 and "dipole" in plan.outputs else plan.hidden_l
    widths = {"0e": plan.readout_channels, "1o": plan.readout_vectors}
    kind = plan.model if "dipole" in plan.outputs else "ScaleShiftMACE"
    constants = ("reference_energies", "scale", "shift")
    excluded = {"interactions", "model", "hidden_l", "radial_mlp", "conditions", "heads"}
    return plan.model_dump(mode="json", exclude=excluded) | {
        "head_names": plan.head_names if plan.heads else [],
        **{name: [getattr(head, name) for head in plan.heads] for name in constants if plan.heads},
        "kind": kind,
        "model_type": _MODEL_TYPES[kind],
        "n_layers": plan.n_layers,
        "hidden_irreps": "+".join(f"{plan.n_channels}x{l}{'eo'[l % 2]}" for l in degrees),
        "MLP_irreps": "+".join(f"{width}x{irrep}" for irrep, width in widths.items() if width) or "1x1o",
        "interaction_cls_first": kinds[0],
        "interaction_cls": kinds[-1],
        # value, and the one at which a version without this argument is as good
        "options": {
            "radial_MLP": (list(plan.radial_mlp), [64, 64, 64]),
            "radial_type": (plan.radial_type, "bessel"),
            "distance_transform": (plan.distance_transform, "None"),
            "pair_repulsion": (plan.pair_repulsion, False),
            "use_reduced_cg": (False, False),
            "apply_cutoff": (not plan.cutoff_after_network, True),
            "edge_irreps": (edge_irreps, None),
            "use_edge_irreps_first": (narrow_first, False),
            "use_agnostic_product": (plan.product_of_all_elements, False),
            "use_last_readout_only": (plan.last_readout_only, False),
            "readout_cls": ("NonLinearBiasReadoutBlock" if plan.readout_biases else None, None),
            "embedding_specs": ({c.name: spec_of_condition(c) for c in plan.conditions} or None, None),
            "use_embedding_readout": (plan.condition_readout, False),
            # models of dipoles take none: all their heads share the readouts
            "heads": (list(plan.head_names) if plan.n_readout_heads > 1 else None, None),
        },
    }


def _edge_irreps(plan: ModelPlan) -> tuple[str | None, bool]:
    """Say in the original's words what neighbors send, and whether the first layer has as few channels.

    Raises:
        UserError: If the original has no words for it.
    """
    channels = [plan.channels_of_messages(layer) for layer in range(plan.n_layers)]
    if plan.message_l is None and set(channels) == {plan.n_channels}:
        return None, False
    if len(set(channels[1:])) > 1 or channels[0] not in (plan.n_channels, channels[-1]):
        raise UserError("mace-torch has one number of channels of messages for all layers but the first.")
    degrees = plan.l_of_messages(plan.n_layers - 1)
    if channels[0] != plan.n_channels and 0 not in degrees:
        raise UserError("mace-torch takes the channels of messages in the first layer from those of scalars.")
    return "+".join(f"{channels[-1]}x{l}{'eo'[l % 2]}" for l in degrees), channels[0] != plan.n_channels


def check_structures(plan: ModelPlan, head: str = DEFAULT_HEAD) -> list[Configuration]:
    """Make a cluster and a skewed periodic cell for a head that hold every element, under different conditions."""
    rng = np.random.default_rng(1)
    n = max(plan.n_elements, 8)
    side = int(np.ceil(n ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    spacing = _SPACING * plan.r_max
    numbers = np.array([plan.atomic_numbers[i % plan.n_elements] for i in range(n)], dtype=np.int64)
    positions = spacing * (grid + rng.uniform(-0.1, 0.1, (n, 3)))
    skew = np.eye(3) + 0.1 * np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    return [
        Configuration(
            numbers, places, lattice, (is_periodic,) * 3, conditions=example_values(plan.conditions, n, seed), head=head
        )
        for places, lattice, is_periodic, seed in (
            (positions, np.zeros((3, 3)), False, None),
            (positions @ skew, spacing * side * skew, True, 1),
        )
    ]


def _expected(model: MACE, structure: Configuration) -> dict[str, np.ndarray]:
    """Compute what the original has to compute, with the magnitudes by which deviations are divided.

    Of the Chebyshev basis it knows no derivatives. Its dipoles are in Debye.
    """
    plan, periodic = model.plan, all(structure.pbc)
    graph = build_graph(structure, ElementTable(plan.atomic_numbers), plan.r_max, plan.head_names)
    prediction = predict(model, graph, stress=periodic)
    found: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    if prediction.energy is not None:
        isolated = model.reference_of_atoms(graph).sum()
        found["energy"] = prediction.energy[0].detach().numpy()
        # what is rounded away beside the reference energies is no deviation
        tolerance = TOLERANCES[str(model.dtype).removeprefix("torch.")]
        rounding = _ROUNDINGS * torch.finfo(model.dtype).eps * abs(float(isolated)) / tolerance
        scales["energy"] = abs(float(prediction.energy[0]) - float(isolated)) + rounding
    if prediction.forces is not None and plan.radial_type != "chebyshev":
        found["forces"] = prediction.forces.detach().numpy()
        if periodic and prediction.stress is not None:
            found["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].detach().numpy())
    if prediction.dipole is not None and prediction.atomic_dipoles is not None:
        found["dipole"] = prediction.dipole[0].detach().numpy() / DEBYE_OF_MACE_TORCH
        # the dipole of a structure may be zero, those of its atoms are not
        scales["dipole"] = float(prediction.atomic_dipoles.detach().abs().sum(0).max()) / DEBYE_OF_MACE_TORCH
    scales = {name: float(np.abs(values).max()) for name, values in found.items()} | scales
    described = {"numbers": structure.atomic_numbers, "positions": structure.positions, "cell": structure.cell}
    described |= {f"condition/{name}": values for name, values in structure.conditions.items()}
    described["head"] = np.array(structure.head)
    return described | found | {f"{name}_scale": np.array(max(value, 1e-12)) for name, value in scales.items()}


def _run(executable: str, folder: Path) -> dict[str, Any]:
    """Let the other interpreter write and check the model; our folders are kept out of its way."""
    script = files("mace.compat").joinpath("write_with_mace_torch.txt").read_text(encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        result = subprocess.run(
            [executable, "-", str(folder), str(folder / "exported.model")],
            input=script, capture_output=True, text=True, cwd=folder, env=environment, timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--python: {executable} could not write the model ({error}).") from error
    lines = result.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else {}
    except ValueError:
        told = {}
    if not isinstance(told, dict) or "version" not in told:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        reason = told.get("error", last) if isinstance(told, dict) else last
        raise UserError(f"--python: {executable} could not write the model: {reason}.")
    return told
