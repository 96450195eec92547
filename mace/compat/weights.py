"""Weights of mace-torch models, renamed and reshaped one to one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mace.equivariant.symmetric_basis import symmetric_basis
from mace.kernels.convolution import convolution_paths
from mace.model.plan import ModelPlan


def weights_from_original(state: Mapping[str, np.ndarray], plan: ModelPlan) -> dict[str, np.ndarray]:
    """Rename the weights of a mace-torch model of energies, dipoles or both.

    The last of several layers of its ``AtomicDipolesMACE`` has vectors only, which leaves the gates of its last readout
    without input: they are zero, and so is what the layer adds to the dipole. Here that layer has scalars, with weights
    of zero, so that the model says the same.

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
    kind = plan.interactions[layer]
    for degree in range(plan.l_max + 1):
        weights[f"{ours}linear.{degree}"] = linear[[i for i, path in enumerate(paths) if path.l3 == degree]]
    # the original orders [input channel, element, output channel]
    skip = state[theirs + "skip_tp.weight"].reshape(-1, n, elements, n).transpose(0, 2, 1, 3)
    if kind.residual and 0 not in _original_l_out(plan, layer):
        skip = np.concatenate([np.zeros_like(skip), skip])
    weights[ours + "skip"] = skip
    if kind.normalization == "density":
        weights[ours + "density"] = state[theirs + "density_fn.layer0.weight"]
    return weights


def _original_l_out(plan: ModelPlan, layer: int) -> tuple[int, ...]:
    """Return the degrees that leave a layer of the original."""
    if plan.predicts_dipole and plan.n_layers == 1:
        return plan.hidden_l
    return (1,) if layer == plan.n_layers - 1 and not plan.predicts_energy else plan.l_out(layer)


def _product(state: Mapping[str, np.ndarray], plan: ModelPlan, layer: int) -> dict[str, np.ndarray]:
    n, correlation, theirs = plan.n_channels, plan.correlation[layer], _original_l_out(plan, layer)
    linear = state[f"products.{layer}.linear.weight"].reshape(len(theirs), n, n)
    nothing = np.zeros_like(linear[0])
    weights = {
        f"products.{layer}.linear": np.stack(
            [linear[theirs.index(degree)] if degree in theirs else nothing for degree in plan.l_out(layer)]
        )
    }
    for degree in plan.l_out(layer):
        for order in range(1, correlation + 1):
            ours = f"products.{layer}.weights.l{degree}_order{order}"
            if degree not in theirs:
                n_paths = symmetric_basis(plan.l_max, degree, order).n_paths
                weights[ours] = np.zeros((plan.n_elements, n_paths, n), dtype=linear.dtype)
                continue
            prefix = f"products.{layer}.symmetric_contractions.contractions.{theirs.index(degree)}."
            # the highest order comes first in the original, the others follow in falling order
            name = "weights_max" if order == correlation else f"weights.{correlation - 1 - order}"
            weights[ours] = state[prefix + name]
    return weights


def _readout(state: Mapping[str, np.ndarray], plan: ModelPlan, layer: int) -> dict[str, np.ndarray]:
    """Take a readout apart: in the original one map yields energy and dipole, its weights for scalars come first."""
    n, scalars, vectors = plan.n_channels, plan.readout_channels, plan.readout_vectors
    theirs, energy, dipole = f"readouts.{layer}.", f"readouts.{layer}.", f"dipole_readouts.{layer}."
    weights = {}
    if f"{theirs}linear.weight" in state:
        rows = state[f"{theirs}linear.weight"].reshape(-1, 1)
        if plan.predicts_energy:
            weights[energy + "weight"] = rows[:n]
        if plan.predicts_dipole:
            weights[dipole + "weight"] = rows[-n:]
        return weights
    first, second = state[f"{theirs}linear_1.weight"], state[f"{theirs}linear_2.weight"].reshape(-1, 1)
    gates = np.zeros((n, vectors), dtype=first.dtype)
    if plan.predicts_energy:
        of_scalars = first[: n * (scalars + vectors)].reshape(n, scalars + vectors)
        weights |= {energy + "hidden": of_scalars[:, :scalars], energy + "weight": second[:scalars]}
        gates = of_scalars[:, scalars:]
    if vectors:
        hidden = first[len(first) - n * vectors :].reshape(n, vectors)
        weights |= {dipole + "gates": gates, dipole + "hidden": hidden, dipole + "weight": second[-vectors:]}
    return weights
