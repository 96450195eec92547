"""Description of a model file: plan, size, origin, metrics and consistency checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mace.compat.exporting import check_structures
from mace.compat.layers import word_of_interaction
from mace.elements import chemical_symbol
from mace.model.plan import ModelPlan
from mace.potential.potential import Potential
from mace.properties import PROPERTIES
from mace.structures.configuration import Configuration

_DATA_SETTINGS = ("train_file", "valid_file", "test_file", "E0s", "loss", "max_num_epochs", "foundation_model")
_HEAD_SETTINGS = ("heads", "head_sampling", "select_by")
_STEP = 1e-4


def describe_model(path: str | Path, potential: Potential, checks: bool = True) -> dict[str, Any]:
    """Collect all useful information about a model, as numbers, strings, lists and dictionaries.

    Args:
        path: The model file.
        potential: The model in float64, on the CPU.
        checks: Whether to run the checks of `check_model`.
    """
    (loaded,) = potential.members
    plan, metadata = loaded.model.plan, loaded.metadata
    symbols = [chemical_symbol(z) for z in plan.atomic_numbers]
    return {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "model": plan.model,
        "elements": symbols,
        "r_max": plan.r_max,
        "receptive_field": plan.r_max * plan.n_layers,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "precision": str(loaded.stored_dtype).removeprefix("torch."),
        "reference_energies": dict(zip(symbols, plan.reference_energies, strict=False)),
        "heads": {
            head.name: {
                "reference_energies": dict(zip(symbols, head.reference_energies, strict=True)),
                "scale": head.scale,
                "shift": head.shift,
            }
            for head in plan.heads
        },
        "interactions": [word_of_interaction(kind) for kind in plan.interactions],
        "variants": variants(plan),
        "conditions": [condition.text for condition in plan.conditions],
        "plan": plan.model_dump(mode="json"),
        "origin": {
            "name": metadata.name,
            "created": metadata.created,
            "comment": metadata.comment,
            "seed": metadata.seed,
            "epoch": metadata.epoch,
            "stage": metadata.stage,
            "data_hash": metadata.data_hash,
        },
        "training": _training(metadata.settings),
        "metrics": metadata.metrics,
        "versions": metadata.versions,
        "checks": check_model(potential) if checks else {},
    }


def _training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the settings that say what a model was trained on, those of heads only where there were some."""
    found = {key: settings[key] for key in _DATA_SETTINGS if settings.get(key) is not None}
    if not settings.get("heads"):
        return found
    of_heads = {key: settings[key] for key in _HEAD_SETTINGS if key in settings}
    heads = {name: {k: v for k, v in own.items() if v is not None} for name, own in settings["heads"].items()}
    return found | of_heads | {"heads": heads}


def variants(plan: ModelPlan) -> list[str]:
    """List the respects in which a model differs from the standard one."""
    sent = [f"{plan.channels_of_messages(i)} of degrees {list(plan.l_of_messages(i))}" for i in range(plan.n_layers)]
    found = {
        "cutoff after the radial networks": plan.cutoff_after_network,
        f"channels that neighbors send: {'; '.join(sent)}": (plan.message_channels, plan.message_l) != (None, None),
        "products of all elements in one": plan.product_of_all_elements,
        "energies from the last layer only": plan.last_readout_only,
        "last readout with biases": plan.readout_biases,
        "an energy of element and conditions alone": plan.condition_readout,
        "energies jump at the cutoff": not plan.cutoff_after_network and plan.is_directed,
    }
    return [name for name, has in found.items() if has]


def check_model(potential: Potential) -> dict[str, bool]:
    """Check that all heads of a model give finite numbers, and forces that are the negative gradient of the energy.

    Args:
        potential: The model in float64, on the CPU.
    """
    every = [_check_head(potential, head) for head in potential.models[0].plan.head_names]
    return {name: all(checks[name] for checks in every) for name in every[0]}


def _check_head(potential: Potential, head: str) -> dict[str, bool]:
    def evaluate(structure: Configuration) -> tuple[float, np.ndarray]:
        (prediction,) = potential.evaluate([structure])
        assert prediction.energy is not None and prediction.forces is not None
        return float(prediction.energy[0]), prediction.forces.detach().numpy()

    cluster, crystal = check_structures(potential.models[0].plan, head)
    if "energy" not in potential.outputs:
        (prediction,) = potential.evaluate([cluster])
        found = {PROPERTIES[name].plural: getattr(prediction, name) for name in potential.outputs}
        return {f"{words}_are_finite": bool(torch.isfinite(values).all()) for words, values in found.items()}
    results = [evaluate(structure) for structure in (cluster, crystal)]
    forces = results[0][1]
    direction = np.random.default_rng(2).normal(size=forces.shape)
    plus, minus = (
        evaluate(replace(cluster, positions=cluster.positions + step * direction)) for step in (_STEP, -_STEP)
    )
    slope, expected = (plus[0] - minus[0]) / (2 * _STEP), -float((forces * direction).sum())
    largest = float(np.abs(forces).max())
    return {
        "energies_and_forces_are_finite": all(bool(np.isfinite(e) and np.isfinite(f).all()) for e, f in results),
        "forces_are_the_gradient": abs(slope - expected) <= 1e-4 * max(abs(expected), largest),
        "forces_add_up_to_zero": bool(np.abs(forces.sum(0)).max() <= 1e-8 * max(1.0, largest)),
    }
