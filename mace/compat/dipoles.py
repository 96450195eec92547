"""What mace-torch's models of dipoles lack: it is refused, or worked into the weights, before one is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.model.plan import HeadPlan, ModelPlan
from mace.units import DEBYE_OF_MACE_TORCH


def for_original(plan: ModelPlan, weights: Mapping[str, np.ndarray]) -> tuple[ModelPlan, dict[str, np.ndarray]]:
    """Rewrite a model so that it has only what mace-torch's class of the same name has.

    Its models of dipoles have neither scale nor shift, and their dipoles are in Debye.

    Args:
        plan: The plan.
        weights: Arrays by the names of `mace.model.mace.MACE` parameters.

    Returns:
        Plan and weights of a model that computes the same; those given, if it is a model of energies.

    Raises:
        UserError: If the model has something that mace-torch's does not have.
    """
    if "dipole" not in plan.outputs:
        return plan, dict(weights)
    lacking = {
        "a distance transform": plan.distance_transform != "None",
        "nuclear repulsion": plan.pair_repulsion,
        f"the {plan.radial_type} basis": "energy" in plan.outputs and plan.radial_type != "bessel",
        "different correlation orders": len(set(plan.correlation)) > 1,
        "a cutoff after the radial network": plan.cutoff_after_network,
        "products of all elements": plan.product_of_all_elements,
        "a scale of its own for each head": len({head.scale for head in plan.every_head}) > 1,
        "fewer channels or degrees of messages": (plan.message_channels, plan.message_l) != (None, None),
    }
    if found := [name for name, has in lacking.items() if has]:
        raise UserError(f"mace-torch's {plan.model} does not have {found[0]}, which this model has.")
    last = f"dipole_readouts.{plan.n_layers - 1}."
    last_is_lost = plan.n_layers > 1 and "energy" not in plan.outputs
    parts = [weights[last + name] for name in ("gates", "hidden", "weight") if last + name in weights]
    # every activation is zero where its gates are
    if last_is_lost and parts and all(part.any() for part in parts):
        raise UserError(
            "mace-torch's AtomicDipolesMACE does not use its last layer of several, which this model does; train it "
            "for mace-torch with --num_interactions=1 or --model=EnergyDipolesMACE."
        )
    constants: dict[str, Any] = {"dipole_scale": DEBYE_OF_MACE_TORCH}
    if plan.heads:
        constants["heads"] = tuple(head.model_copy(update=_folded(head)) for head in plan.heads)
    else:
        constants |= _folded(plan)
    factors = {"readouts": plan.every_head[0].scale, "dipole_readouts": plan.dipole_scale / DEBYE_OF_MACE_TORCH}
    written = dict(weights)
    for name, values in weights.items():
        part, _, rest = name.partition(".")
        if part in factors and rest.endswith(".weight"):
            written[name] = (values * factors[part]).astype(values.dtype)
    if last_is_lost and not plan.readout_vectors:
        # mace-torch cannot be without a hidden layer: one vector that counts nothing
        dtype = weights["embedding"].dtype
        written |= {last + name: np.zeros((plan.n_channels, 1), dtype) for name in ("gates", "hidden")}
        written[last + "weight"] = np.zeros((1, 1), dtype)
        constants["readout_vectors"] = 1
    return plan.model_copy(update=constants), written


def _folded(head: HeadPlan | ModelPlan) -> dict[str, Any]:
    """Make the shift a part of the reference energies; the scale becomes a part of weights."""
    energies = tuple(energy + head.shift for energy in head.reference_energies)
    return {"reference_energies": energies, "scale": 1.0, "shift": 0.0}
