"""Checks of an imported model against what its file says of itself: constants, normalizations, order of paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from mace.compat.modules import instructions, irreps, number
from mace.compat.reader import CannotConvert, Reader
from mace.elements import covalent_radii
from mace.equivariant.activations import SIGMOID_SCALE, SILU_SCALE, activation
from mace.kernels.c_source import radial
from mace.kernels.convolution import convolution_paths
from mace.model.plan import ModelPlan

EXACT = 1e-9
LAYER_NORM_EPSILON = 1e-5
"""What torch adds to a variance."""

Check = tuple[str, bool]


def verify(reader: Reader, plan: ModelPlan, degrees: Sequence[tuple[int, ...]]) -> int:
    """Compare everything a file tells of constants and normalizations with this program.

    Args:
        reader: The file.
        plan: The plan recovered from it.
        degrees: Degrees it has room for in what neighbors send, layer by layer.

    Returns:
        How many comparisons were made.

    Raises:
        CannotConvert: If one fails; the message names it.
    """
    count = 0
    checks = (
        _functions_of_distance(reader, plan),
        _convolutions(reader, plan, degrees),
        _linear_maps(reader),
        _activations(reader, plan),
    )
    for what, holds in chain(*checks):
        if not holds:
            raise CannotConvert(f"{what} differs from what this program computes with")
        count += 1
    return count


def _close(found: np.ndarray, expected: object) -> bool:
    values = np.asarray(expected, dtype=np.float64)
    tolerance = 1e-6 if found.dtype == np.float32 else EXACT
    return found.size == values.size and np.allclose(found.reshape(-1), values.reshape(-1), tolerance, tolerance)


def _functions_of_distance(reader: Reader, plan: ModelPlan) -> Iterator[Check]:
    """Compare the constants of radial basis, cutoff, transform and repulsion."""
    n, r_max = plan.num_radial_basis, plan.r_max
    every_radius = covalent_radii(plan.atomic_numbers)
    constants: dict[str, object] = {
        "radial_embedding.bessel_fn.bessel_weights": np.arange(1, n + 1) * np.pi / r_max,
        "radial_embedding.bessel_fn.prefactor": (2.0 / r_max) ** 0.5,
        "radial_embedding.bessel_fn.gaussian_weights": np.linspace(0.0, r_max, n),
        "radial_embedding.bessel_fn.n": np.arange(1, n + 1),
        "radial_embedding.bessel_fn.r_max": r_max,
        "radial_embedding.cutoff_fn.r_max": r_max,
        "radial_embedding.distance_transform.q": radial.AGNESI_Q,
        "radial_embedding.distance_transform.p": radial.AGNESI_P,
        "radial_embedding.distance_transform.a": radial.AGNESI_A,
        "radial_embedding.distance_transform.alpha": radial.SOFT_STEEPNESS,
        "pair_repulsion_fn.c": radial.ZBL_COEFFICIENTS,
        "pair_repulsion_fn.p": plan.num_cutoff_basis,
    }
    for name, expected in constants.items():
        if name in reader.state:
            yield f"'{name}'", _close(reader.state[name], expected)
    # these two are of single precision in every version
    for name, value in (("a_exp", radial.ZBL_POWER), ("a_prefactor", radial.ZBL_LENGTH)):
        if f"pair_repulsion_fn.{name}" in reader.state:
            found = reader.scalar(f"pair_repulsion_fn.{name}")
            yield f"'pair_repulsion_fn.{name}'", abs(found - value) < 1e-7
    for part in ("radial_embedding.distance_transform", "pair_repulsion_fn"):
        radii = reader.state.get(f"{part}.covalent_radii")
        if radii is not None:
            known = max(plan.atomic_numbers) < radii.size
            yield f"'{part}.covalent_radii'", known and _close(radii[list(plan.atomic_numbers)], every_radius)


def _convolutions(reader: Reader, plan: ModelPlan, degrees: Sequence[tuple[int, ...]]) -> Iterator[Check]:
    """Compare order and weight of the paths of every convolution."""
    for layer in range(plan.n_layers):
        module = reader.module(f"interactions.{layer}.conv_tp")
        found = instructions(module) if module is not None else []
        if module is None or not found:
            continue
        first, second = (irreps(module.attributes.get(name)) for name in ("irreps_in1", "irreps_in2"))
        third = irreps(module.attributes.get("irreps_out"))
        expected = convolution_paths(degrees[layer], plan.l_max)
        order = []
        for i, j, k, *_ in found:
            if not (_inside(i, first) and _inside(j, second) and _inside(k, third)):
                raise CannotConvert(f"a path of the convolution of layer {layer} leads nowhere")
            order.append((first[i][1], second[j][1], third[k][1], k))
        # the radial weights follow the list of paths, the sums over neighbors the list of results
        yield (
            f"the order of paths in layer {layer}",
            [o[:3] for o in sorted(order, key=lambda o: o[3])] == [(path.l1, path.l2, path.l3) for path in expected]
            and [o[3] for o in order] == sorted(o[3] for o in order),
        )
        weights = [number(path[5]) if len(path) > 5 else None for path in found]
        right = all(
            weight is not None and abs(weight - (2 * path[2] + 1) ** 0.5) < EXACT
            for weight, path in zip(weights, order, strict=True)
        )
        yield f"the scale of the paths in layer {layer}", right


def _inside(index: object, terms: list[tuple[int, int, int]]) -> bool:
    return isinstance(index, int) and 0 <= index < len(terms)


def _linear_maps(reader: Reader) -> Iterator[Check]:
    """Compare the factor of every linear map of e3nn: one over the root of the number of its inputs."""
    for path, module in reader.tree.walk() if reader.tree is not None else ():
        if module.kind == "Linear":
            inputs = irreps(module.attributes.get("irreps_in"))
            paths = [p for p in instructions(module) if len(p) == 4 and _inside(p[0], inputs)]
            fan_in: dict[object, int] = {}
            for source, target, *_ in paths:
                fan_in[target] = fan_in.get(target, 0) + inputs[source][0]
            right = all(abs((number(p[3]) or 0.0) - fan_in[p[1]] ** -0.5) < EXACT for p in paths)
            yield f"the scale of '{path}'", right
        if module.kind == "FullyConnectedTensorProduct":  # a matrix for each element
            first, second = (irreps(module.attributes.get(name)) for name in ("irreps_in1", "irreps_in2"))
            products = [p for p in instructions(module) if len(p) > 5]
            right = all(_inside(i, first) and _inside(j, second) for i, j, *_ in products)
            for i, j, _, _, _, factor, *_ in products if right else ():
                expected = ((2 * first[i][1] + 1) / (first[i][0] * second[j][0])) ** 0.5
                right = right and abs((number(factor) or 0.0) - expected) < EXACT
            yield f"the scale of '{path}'", right
        if module.kind == "LayerNorm":
            yield f"the smallest variance of '{path}'", module.attributes.get("eps") == LAYER_NORM_EPSILON


def _activations(reader: Reader, plan: ModelPlan) -> Iterator[Check]:
    """Compare the factors of the activations, in the radial networks and in the last readout."""
    for path, module in reader.tree.walk() if reader.tree is not None else ():
        attributes, found = module.attributes, {}
        if module.kind == "normalize2mom":
            found["scalar"] = attributes.get("cst")
        elif module.kind == "GatedEquivariantBlock":
            words = [word for word in ("scalar", "gate") if attributes.get(f"_act_{word}") is not None]
            found = {word: attributes.get(f"_{word}_cst") for word in words}
        for word, value in found.items():
            if (factor := number(value)) is not None:
                in_readout = path.startswith("readouts.")
                is_gate = word == "gate" or ".act_gates" in path
                expected = activation(plan.gate)[1] if in_readout else SIGMOID_SCALE if is_gate else SILU_SCALE
                yield f"the scale of the activation '{path}'", abs(factor - expected) < 1e-6
