"""Weights of the interactions of mace-torch, renamed and reshaped one to one, in both directions.

Only degrees that a layer's input lacks are left out: what neighbors would send of them is zero always. The maps behind
are divided by the root of the number of their inputs, so that what is left is rescaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mace.kernels.convolution import ConvolutionPath, convolution_paths
from mace.model.plan import ModelPlan

State = Mapping[str, np.ndarray]
Weights = dict[str, np.ndarray]

_PARTS_OF_LAYER = 3
"""Modules of each hidden layer of a network with biases: the map, the normalization and the activation."""


def interaction_from_original(
    state: State, plan: ModelPlan, layer: int, degrees: tuple[int, ...], has_scalars: bool
) -> Weights:
    """Rename the weights of a layer's interaction.

    Args:
        state: The original's weights.
        plan: The plan.
        layer: Which layer.
        degrees: What the original has room for in what neighbors send.
        has_scalars: Whether scalars leave the layer in the original.

    Returns:
        Arrays by our names.
    """
    n, elements, l_sent = plan.n_channels, plan.n_elements, plan.l_of_messages(layer)
    theirs, ours, n_sent = f"interactions.{layer}.", f"interactions.{layer}.", plan.channels_of_messages(layer)
    paths = convolution_paths(degrees, plan.l_max)
    used = [i for i, path in enumerate(paths) if path.l1 in l_sent]
    up = state[theirs + "linear_up.weight"].reshape(len(l_sent), n, n_sent)
    weights: Weights = {ours + "linear_up": up}
    kind = plan.interactions[layer]
    if kind.messages == "nonlinear":
        return weights | _nonlinear_from_original(state, plan, layer, degrees, used, has_scalars)
    last = _n_hidden(plan, layer)
    for i in range(last + 1):
        weights[f"{ours}radial.weights.{i}"] = state[f"{theirs}conv_tp_weights.layer{i}.weight"]
    weights[f"{ours}radial.weights.{last}"] = _paths_of(weights[f"{ours}radial.weights.{last}"], used, len(paths))
    mixing = _mixing(state[theirs + "linear.weight"], paths, used, n_sent, [n] * (plan.l_max + 1))
    weights |= {f"{ours}linear.{degree}": values for degree, values in mixing.items()}
    if kind.messages == "attention":
        weights[ours + "linear_down"] = state[theirs + "linear_down.weight"].reshape(n, -1)
        skip = _with_scalars(state[theirs + "skip_linear.weight"].reshape(-1, n, n), has_scalars)
        return weights | {ours + "skip_linear": skip[: len(skip_degrees(plan, layer))]}
    # the original orders [input channel, element, output channel]; degrees the last layer drops are not needed
    skip = state[theirs + "skip_tp.weight"].reshape(-1, n, elements, n).transpose(0, 2, 1, 3)
    if kind.residual:
        skip = _with_scalars(skip, has_scalars)
    weights[ours + "skip"] = skip[: len(skip_degrees(plan, layer))]
    if kind.normalization == "density":
        weights[ours + "density"] = state[theirs + "density_fn.layer0.weight"]
    return weights


def skip_degrees(plan: ModelPlan, layer: int) -> tuple[int, ...]:
    """Return the degrees a layer's skip connection, or the map of its messages, acts on."""
    if not plan.interactions[layer].residual:
        return tuple(range(plan.l_max + 1))
    return tuple(l for l in plan.l_in(layer) if l in plan.l_out(layer))


def _with_scalars(skip: np.ndarray, has_scalars: bool) -> np.ndarray:
    """Put zeros in front where the original has no map of scalars."""
    return skip if has_scalars else np.concatenate([np.zeros_like(skip[:1]), skip])


def _n_hidden(plan: ModelPlan, layer: int) -> int:
    """Return the number of hidden layers of a radial network; with attention the original fixes it."""
    return 3 if plan.interactions[layer].messages == "attention" else len(plan.radial_mlp)


def _paths_of(last: np.ndarray, used: Sequence[int], n_paths: int) -> np.ndarray:
    """Select the columns, or entries, of some paths."""
    return last.reshape(*last.shape[:-1], n_paths, -1)[..., used, :].reshape(*last.shape[:-1], -1)


def _mixing(
    flat: np.ndarray, paths: Sequence[ConvolutionPath], used: Sequence[int], n_sent: int, widths: Sequence[int]
) -> dict[int, np.ndarray]:
    """Take the map of the sums apart, by degree ``[paths, channels of messages, outputs]``; paths come by degree."""
    result, start = {}, 0
    for degree, width in enumerate(widths):
        numbers = [i for i, path in enumerate(paths) if path.l3 == degree]
        size = len(numbers) * n_sent * width
        block = flat[start : start + size].reshape(len(numbers), n_sent, width)
        start += size
        kept = [place for place, i in enumerate(numbers) if i in used]
        result[degree] = block[kept] * (len(kept) / len(numbers)) ** 0.5 if len(kept) < len(numbers) else block
    if start != flat.size:
        raise ValueError(f"{flat.size} weights of a map of {start}")
    return result


def _nonlinear_from_original(
    state: State, plan: ModelPlan, layer: int, degrees: tuple[int, ...], used: Sequence[int], has_scalars: bool
) -> Weights:
    """Rename the weights of a non-linear interaction, the first map excepted."""
    n, n_sent = plan.n_channels, plan.channels_of_messages(layer)
    theirs, ours = f"interactions.{layer}.", f"interactions.{layer}."
    weights = {
        f"{ours}{name}": state[f"{theirs}{name}.weight"].reshape(plan.n_elements, n)
        for name in ("source_embedding", "target_embedding")
    }
    paths, last = convolution_paths(degrees, plan.l_max), len(plan.radial_mlp)
    weights |= {name: state[original].T for original, name in _networks(plan, layer)}
    for kind in ("weights", "biases"):
        name = f"{ours}radial.{kind}.{last}"
        weights[name] = _paths_of(weights[name], used, len(paths))
    widths = [n * (plan.l_max + 1), *[n] * plan.l_max]
    mixing = _mixing(state[theirs + "linear_1.weight"], paths, used, n_sent, widths)
    weights |= {f"{ours}mixing.linear_1.{degree}": values for degree, values in mixing.items()}
    own, start, place = state[theirs + "linear_res.weight"], 0, 0
    for degree in [l for l in degrees if l <= plan.l_max]:
        size = n_sent * widths[degree]
        if degree in plan.l_of_messages(layer):
            weights[f"{ours}mixing.linear_own.{place}"] = own[start : start + size].reshape(n_sent, widths[degree])
            place += 1
        start += size
    skip = _with_scalars(state[theirs + "skip_tp.weight"].reshape(-1, n, n), has_scalars)
    return weights | {
        ours + "mixing.linear_2": state[theirs + "linear_2.weight"].reshape(-1, n, n),
        ours + "mixing.residual": skip[: len(skip_degrees(plan, layer))],
        ours + "mixing.alpha": state[theirs + "alpha"],
        ours + "mixing.beta": state[theirs + "beta"],
    }


def _networks(plan: ModelPlan, layer: int) -> Iterator[tuple[str, str]]:
    """List what the weights of the networks of a non-linear interaction are called there and here."""
    name = f"interactions.{layer}."
    for theirs, ours, n_hidden in (
        (f"{name}conv_tp_weights.net.", f"{name}radial.", len(plan.radial_mlp)),
        (f"{name}density_fn.net.", f"{name}mixing.density.", 1),
    ):
        for i in range(n_hidden + 1):
            place = _PARTS_OF_LAYER * i
            yield f"{theirs}{place}.weight", f"{ours}weights.{i}"
            yield f"{theirs}{place}.bias", f"{ours}biases.{i}"
            if i < n_hidden:
                yield f"{theirs}{place + 1}.weight", f"{ours}factors.{i}"
                yield f"{theirs}{place + 1}.bias", f"{ours}offsets.{i}"


def interaction_to_original(weights: State, plan: ModelPlan, layer: int, written: tuple[int, ...]) -> Weights:
    """Rename our weights of a layer's interaction to those of the original.

    Args:
        weights: Arrays by our names.
        plan: The plan.
        layer: Which layer.
        written: Degrees that leave the layer of the original.

    Returns:
        Arrays by the original's names.
    """
    name = f"interactions.{layer}."
    kept = [degree in written for degree in skip_degrees(plan, layer)]
    state = {name + "linear_up.weight": weights[name + "linear_up"].reshape(-1)}
    kind = plan.interactions[layer]
    if kind.messages == "nonlinear":
        n_own = sum(degree <= plan.l_max for degree in plan.l_of_messages(layer))
        return state | {
            name + "source_embedding.weight": weights[name + "source_embedding"].reshape(-1),
            name + "target_embedding.weight": weights[name + "target_embedding"].reshape(-1),
            # torch stores the matrices of networks as [outputs, inputs]
            **{theirs: np.ascontiguousarray(weights[ours].T) for theirs, ours in _networks(plan, layer)},
            name + "linear_1.weight": _flat(weights, name + "mixing.linear_1.", plan.l_max + 1),
            name + "linear_res.weight": _flat(weights, name + "mixing.linear_own.", n_own),
            name + "linear_2.weight": weights[name + "mixing.linear_2"].reshape(-1),
            name + "skip_tp.weight": weights[name + "mixing.residual"][kept].reshape(-1),
            name + "alpha": weights[name + "mixing.alpha"],
            name + "beta": weights[name + "mixing.beta"],
        }
    for i in range(_n_hidden(plan, layer) + 1):
        state[f"{name}conv_tp_weights.layer{i}.weight"] = weights[f"{name}radial.weights.{i}"]
    state[name + "linear.weight"] = _flat(weights, name + "linear.", plan.l_max + 1)
    if kind.messages == "attention":
        state[name + "linear_down.weight"] = weights[name + "linear_down"].reshape(-1)
        return state | {name + "skip_linear.weight": weights[name + "skip_linear"][kept].reshape(-1)}
    skip = weights[name + "skip"]
    if kind.residual:
        skip = skip[kept]
    state[name + "skip_tp.weight"] = skip.transpose(0, 2, 1, 3).reshape(-1)
    if kind.normalization == "density":
        state[name + "density_fn.layer0.weight"] = weights[name + "density"]
    return state


def _flat(weights: State, prefix: str, count: int) -> np.ndarray:
    """Put the maps of all degrees one after the other; paths are ordered by the degree they lead to."""
    return np.concatenate([weights[f"{prefix}{place}"].reshape(-1) for place in range(count)])
