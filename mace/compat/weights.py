"""Weights of mace-torch models, renamed and reshaped one to one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mace.kernels.convolution import convolution_paths
from mace.model.plan import ModelPlan


def weights_from_original(state: Mapping[str, np.ndarray], plan: ModelPlan) -> dict[str, np.ndarray]:
    """Rename the weights of a mace-torch energy model.

    Args:
        state: The original's ``state_dict`` as arrays; buffers are ignored. Gradients or optimizer moments named in
            the same way can be passed too.
        plan: The plan of the same model.

    Returns:
        Arrays by the names of `mace.model.mace.MACE` parameters.

    Raises:
        KeyError: If a weight is missing.
    """
    n, elements = plan.n_channels, plan.n_elements
    weights = {"embedding": state["node_embedding.linear.weight"].reshape(elements, n)}
    for layer in range(plan.n_layers):
        weights |= _interaction(state, plan, layer)
        weights |= _product(state, plan, layer)
        weights |= _readout(state, plan, layer)
    return weights


def _interaction(state: Mapping[str, np.ndarray], plan: ModelPlan, layer: int) -> dict[str, np.ndarray]:
    n, elements, l_in = plan.n_channels, plan.n_elements, plan.l_in(layer)
    theirs, ours = f"interactions.{layer}.", f"interactions.{layer}."
    weights = {ours + "linear_up": state[theirs + "linear_up.weight"].reshape(len(l_in), n, n)}
    for i in range(len(plan.radial_mlp) + 1):
        weights[f"{ours}radial.weights.{i}"] = state[f"{theirs}conv_tp_weights.layer{i}.weight"]
    paths = convolution_paths(l_in, plan.l_max)
    linear = state[theirs + "linear.weight"].reshape(len(paths), n, n)
    for degree in range(plan.l_max + 1):
        weights[f"{ours}linear.{degree}"] = linear[[i for i, path in enumerate(paths) if path.l3 == degree]]
    # the original orders [input channel, element, output channel]
    skip = state[theirs + "skip_tp.weight"].reshape(-1, n, elements, n)
    weights[ours + "skip"] = skip.transpose(0, 2, 1, 3)
    if plan.interactions[layer].normalization == "density":
        weights[ours + "density"] = state[theirs + "density_fn.layer0.weight"]
    return weights


def _product(state: Mapping[str, np.ndarray], plan: ModelPlan, layer: int) -> dict[str, np.ndarray]:
    n, l_out, correlation = plan.n_channels, plan.l_out(layer), plan.correlation[layer]
    weights = {f"products.{layer}.linear": state[f"products.{layer}.linear.weight"].reshape(len(l_out), n, n)}
    for place, degree in enumerate(l_out):
        prefix = f"products.{layer}.symmetric_contractions.contractions.{place}."
        for order in range(1, correlation + 1):
            # the highest order comes first in the original, the others follow in falling order
            name = "weights_max" if order == correlation else f"weights.{correlation - 1 - order}"
            weights[f"products.{layer}.weights.l{degree}_order{order}"] = state[prefix + name]
    return weights


def _readout(state: Mapping[str, np.ndarray], plan: ModelPlan, layer: int) -> dict[str, np.ndarray]:
    theirs, ours = f"readouts.{layer}.", f"readouts.{layer}."
    if f"{theirs}linear.weight" in state:
        return {ours + "weight": state[f"{theirs}linear.weight"].reshape(-1, 1)[: plan.n_channels]}
    return {
        ours + "hidden": state[f"{theirs}linear_1.weight"].reshape(plan.n_channels, plan.readout_channels),
        ours + "weight": state[f"{theirs}linear_2.weight"].reshape(plan.readout_channels, 1),
    }
