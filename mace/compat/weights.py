"""Weights of mace-torch models, renamed and reshaped one to one, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from scipy.linalg import block_diag

from mace.compat.couplings import map_to_ours
from mace.compat.interaction_weights import interaction_from_original, interaction_to_original
from mace.compat.joint_embedding import conditions_from_original, conditions_to_original
from mace.equivariant.symmetric_basis import number_of_paths
from mace.model.plan import ModelPlan

State = Mapping[str, np.ndarray]


def weights_from_original(
    state: State,
    plan: ModelPlan,
    degrees: Sequence[tuple[int, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """Rename the weights of a mace-torch model of energies, dipoles or both.

    The last of several layers of its ``AtomicDipolesMACE`` has vectors only, which leaves the gates of its last readout
    without input: they are zero, and so is what the layer adds to the dipole. Here that layer has scalars, with weights
    of zero, so that the model says the same.

    Args:
        state: The original's ``state_dict`` as arrays. Its coupling coefficients, if it has them, are compared with
            those of this program, and the weights of a different basis are carried over; other buffers are ignored.
            Gradients or optimizer moments named in the same way can be passed too.
        plan: The plan of the same model.
        degrees: Degrees it has room for in what neighbors send, layer by layer; None for those of the plan.

    Returns:
        Arrays by the names of `mace.model.mace.MACE` parameters.

    Raises:
        KeyError: If a weight is missing.
        ValueError: If one has another size than the plan says.
        CouplingError: If the coupling coefficients are those of another kind of model.
    """
    n, elements = plan.n_channels, plan.n_elements
    weights: dict[str, np.ndarray] = {"embedding": state["node_embedding.linear.weight"].reshape(elements, n)}
    for layer in range(plan.n_layers):
        sent = plan.l_of_messages(layer) if degrees is None else degrees[layer]
        weights |= interaction_from_original(state, plan, layer, sent, 0 in _original_l_out(plan, layer))
        theirs = _original_l_out(plan, layer)
        linear = state[f"products.{layer}.linear.weight"].reshape(-1, n, n)
        weights[f"products.{layer}.linear"] = np.stack(
            [
                linear[theirs.index(degree)] if degree in theirs else np.zeros_like(linear[0])
                for degree in plan.l_out(layer)
            ]
        )
        for degree, order in product(plan.l_out(layer), range(1, plan.correlation[layer] + 1)):
            n_paths = number_of_paths(plan.l_max, degree, order)
            stored: np.ndarray = np.zeros((elements, n_paths, n), dtype=linear.dtype)
            if n_paths and degree in theirs:
                place = theirs.index(degree)
                stored = state[weight_name(plan, layer, place, order)]
                coupling = f"products.{layer}.symmetric_contractions.contractions.{place}.U_matrix_{order}"
                if coupling in state:
                    stored = map_to_ours(state[coupling], stored, plan.l_max, degree, order)
            if n_paths:
                weights[f"products.{layer}.weights.l{degree}_order{order}"] = stored
    for readout in range(1 if plan.last_readout_only else plan.n_layers):
        weights |= _readout(state, plan, readout)
    return weights | conditions_from_original(state, plan)


def weight_name(plan: ModelPlan, layer: int, place: int, order: int) -> str:
    """Name the original's weights of one order of a symmetric contraction."""
    correlation = plan.correlation[layer]
    # the highest order comes first in the original, the others follow in falling order
    name = "weights_max" if order == correlation else f"weights.{correlation - 1 - order}"
    return f"products.{layer}.symmetric_contractions.contractions.{place}.{name}"


def _original_l_out(plan: ModelPlan, layer: int) -> tuple[int, ...]:
    """Return the degrees that leave a layer of the original."""
    if "dipole" in plan.outputs and plan.n_layers == 1:
        return plan.hidden_l
    return (1,) if layer == plan.n_layers - 1 and "energy" not in plan.outputs else plan.l_out(layer)


def _readout(state: State, plan: ModelPlan, number: int) -> dict[str, np.ndarray]:
    """Take a readout apart: in the original one map yields energy and dipole, its weights for scalars come first."""
    if "dipole" not in plan.outputs:
        return _readout_of_heads(state, plan, number)
    n, scalars, vectors = plan.n_channels, plan.readout_channels, plan.readout_vectors
    theirs, energy, dipole = f"readouts.{number}.", f"readouts.{number}.", f"dipole_readouts.{number}."
    weights = {}
    if f"{theirs}linear.weight" in state:
        rows = state[f"{theirs}linear.weight"].reshape(-1, 1)
        if "energy" in plan.outputs:
            weights[energy + "weight"] = rows[:n]
        return weights | {dipole + "weight": rows[-n:]}
    first, second = state[f"{theirs}linear_1.weight"], state[f"{theirs}linear_2.weight"].reshape(-1, 1)
    gates = np.zeros((n, vectors), dtype=first.dtype)
    if "energy" in plan.outputs:
        of_scalars = first[: n * (scalars + vectors)].reshape(n, scalars + vectors)
        weights |= {energy + "hidden": of_scalars[:, :scalars], energy + "weight": second[:scalars]}
        gates = of_scalars[:, scalars:]
    if vectors:
        hidden = first[len(first) - n * vectors :].reshape(n, vectors)
        weights |= {dipole + "gates": gates, dipole + "hidden": hidden, dipole + "weight": second[-vectors:]}
    return weights


def _readout_of_heads(state: State, plan: ModelPlan, number: int) -> dict[str, np.ndarray]:
    """Take a readout of energies apart: in the original one map yields those of all heads.

    Every head has hidden channels of its own, one after the other. What leads from those of one head to another is
    left out: the original masks it.
    """
    theirs, n_heads = f"readouts.{number}.", plan.n_readout_heads
    n, width = plan.n_channels, plan.readout_channels
    weights = {}
    for head, ours in enumerate(_names_of_heads(plan, number)):
        if f"{theirs}linear.weight" in state:
            weights[ours + "weight"] = state[f"{theirs}linear.weight"].reshape(-1, n_heads)[:n, head : head + 1]
            continue
        rows = slice(head * width, (head + 1) * width)
        last = state[f"{theirs}linear_2.weight"].reshape(n_heads * width, n_heads)
        weights[ours + "hidden"] = state[f"{theirs}linear_1.weight"].reshape(n, n_heads * width)[:, rows]
        weights[ours + "weight"] = last[rows, head : head + 1]
        if plan.readout_biases:
            middle = state[f"{theirs}linear_mid.weight"].reshape(n_heads * width, -1)
            weights[ours + "middle"] = middle[rows, rows]
            weights[ours + "middle_bias"] = state[f"{theirs}linear_mid.bias"][rows]
            weights[ours + "bias"] = state[f"{theirs}linear_2.bias"][head : head + 1]
    return weights


def _names_of_heads(plan: ModelPlan, number: int) -> list[str]:
    """Return the start of the names of the weights of a readout, head by head."""
    n_heads = plan.n_readout_heads
    return [f"readouts.{number}.heads.{head}." for head in range(n_heads)] if n_heads > 1 else [f"readouts.{number}."]


def weights_to_original(weights: State, plan: ModelPlan) -> dict[str, np.ndarray]:
    """Rename our weights to those of a mace-torch model with the full coupling coefficients.

    Args:
        weights: Arrays by the names of `mace.model.mace.MACE` parameters.
        plan: The plan. What the last layer of an ``AtomicDipolesMACE`` of several does with scalars is left out.

    Returns:
        Arrays by the names of the original, flat where it stores them flat. One layer of a model of dipoles is taken to
        have scalars and vectors only.
    """
    state = {"node_embedding.linear.weight": weights["embedding"].reshape(-1)}
    for layer in range(plan.n_layers):
        written = written_degrees(plan, layer)
        state |= interaction_to_original(weights, plan, layer, written)
        linear = weights[f"products.{layer}.linear"][[degree in written for degree in plan.l_out(layer)]]
        state[f"products.{layer}.linear.weight"] = linear.reshape(-1)
        for place, degree in enumerate(written):
            for order in range(1, plan.correlation[layer] + 1):
                if (ours := f"products.{layer}.weights.l{degree}_order{order}") in weights:
                    state[weight_name(plan, layer, place, order)] = weights[ours]
    for readout in range(1 if plan.last_readout_only else plan.n_layers):
        state |= _readout_to_original(weights, plan, readout)
    return state | conditions_to_original(weights, plan)


def written_degrees(plan: ModelPlan, layer: int) -> tuple[int, ...]:
    """Return the degrees that leave a layer of the original that is written."""
    return plan.l_out(layer) if plan.n_layers == 1 else _original_l_out(plan, layer)


def _readout_to_original(weights: State, plan: ModelPlan, number: int) -> dict[str, np.ndarray]:
    """Join the readouts of energy and dipole, the weights for scalars first: those of energies, then those of gates."""
    name, energy, dipole = f"readouts.{number}.", f"readouts.{number}.", f"dipole_readouts.{number}."
    if "dipole" not in plan.outputs:  # what leads from one head to another is zero, and never used
        ours = _names_of_heads(plan, number)
        last = [weights[head + "weight"] for head in ours]
        if ours[0] + "hidden" not in weights:
            return {name + "linear.weight": np.concatenate(last, axis=1).reshape(-1)}
        joined = {
            name + "linear_1.weight": np.concatenate([weights[head + "hidden"] for head in ours], axis=1).reshape(-1),
            name + "linear_2.weight": block_diag(*last).reshape(-1),
        }
        if plan.readout_biases:
            joined |= {
                name + "linear_mid.weight": block_diag(*(weights[head + "middle"] for head in ours)).reshape(-1),
                name + "linear_mid.bias": np.concatenate([weights[head + "middle_bias"] for head in ours]),
                name + "linear_2.bias": np.concatenate([weights[head + "bias"] for head in ours]),
            }
        return joined
    last = [weights[key] for key in (energy + "weight", dipole + "weight") if key in weights]
    if f"{energy}hidden" not in weights and f"{dipole}hidden" not in weights:
        return {name + "linear.weight": np.concatenate(last).reshape(-1)}
    # an AtomicDipolesMACE has no scalars in its last layer, and no weights for gates
    scalars = [
        weights[key] for key in (energy + "hidden", dipole + "gates") if key in weights and "energy" in plan.outputs
    ]
    first = [np.concatenate(scalars, axis=1)] if scalars else []
    first += [weights[dipole + "hidden"]] if dipole + "hidden" in weights else []
    return {
        name + "linear_1.weight": np.concatenate([part.reshape(-1) for part in first]),
        name + "linear_2.weight": np.concatenate(last).reshape(-1),
    }
