"""From a model of mace-torch to a plan: every number is read from shapes, buffers and attributes of the file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mace.compat.joint_embedding import recover_conditions
from mace.compat.layers import (
    messages_of_plan,
    recover_avg_num_neighbors,
    recover_interactions,
    recover_messages,
    recover_radial_mlp,
)
from mace.compat.reader import CannotConvert, Reader, exact
from mace.files.pickles import Name, Record
from mace.model.plan import MAX_L, MOST_HEADS, OUTPUTS, HeadPlan, ModelPlan
from mace.structures.configuration import DEFAULT_HEAD
from mace.units import DEBYE_OF_MACE_TORCH

_LOGGER = logging.getLogger(__name__)

KINDS = tuple(OUTPUTS)
_OTHER_KINDS = {
    "AtomicDielectricMACE": "models of polarizabilities do not exist here",
    "BOTNet": "BOTNet models do not exist here",
    "ScaleShiftBOTNet": "BOTNet models do not exist here",
    "PolarMACE": "models with long-range electrostatics do not exist here",
    "MACELES": "models with latent Ewald summation do not exist here",
    "LAMMPS_MACE": "this is a copy for LAMMPS; name the model it was made from",
}
_NEEDED_PARTS = {"node_embedding", "radial_embedding", "atomic_energies_fn", "interactions", "products", "readouts"}
_KNOWN_PARTS = _NEEDED_PARTS | {
    "spherical_harmonics", "scale_shift", "pair_repulsion_fn", "joint_embedding", "embedding_readout",
}  # fmt: skip
"""Parts by which a model of energies is known, whatever a fork calls its class."""
_GATES = {"silu": "silu", "tanh": "tanh", "abs": "abs", "absolute": "abs"}
_RADIAL_TYPES = {"bessel_weights": "bessel", "gaussian_weights": "gaussian", "n": "chebyshev"}
_ENERGIES = "atomic_energies_fn.atomic_energies"
_USUAL_WIDTH = 16
"""Width of the hidden layer that a model of one layer does not have."""
_PRECISIONS = {np.dtype("<f4"): "float32", np.dtype("<f8"): "float64"}


def heads_of(reader: Reader) -> tuple[str, ...]:
    """Return the names of the heads, numbers where the file has no names.

    Raises:
        CannotConvert: If it has more than any model would have.
    """
    n = 1 if dipole_kind(reader) == "AtomicDipolesMACE" else len(np.atleast_2d(reader.array(_ENERGIES)))
    if n > MOST_HEADS:
        raise CannotConvert(f"it has {n} heads, more than {MOST_HEADS}")
    names = reader.known.heads or (reader.tree.attributes.get("heads") if reader.tree is not None else None)
    if n == 1 and not names:
        return (DEFAULT_HEAD,)
    if not isinstance(names, (list, tuple)) or len(names) != n or not all(isinstance(name, str) for name in names):
        return tuple(str(i) for i in range(n))
    return tuple(names)


def precision_of(state: Mapping[str, np.ndarray]) -> str:
    """Return the precision of the weights.

    Raises:
        CannotConvert: If it is neither float32 nor float64.
    """
    dtype = state["node_embedding.linear.weight"].dtype if "node_embedding.linear.weight" in state else None
    if dtype not in _PRECISIONS:
        raise CannotConvert(f"its weights are {dtype or 'missing'}, neither float32 nor float64")
    return _PRECISIONS[dtype]


def recover_plan(reader: Reader) -> tuple[ModelPlan, list[tuple[int, ...]]]:
    """Recover the plan of a model, with all its heads.

    Args:
        reader: The file.

    Returns:
        The plan, and the degrees the original has room for in what neighbors send, layer by layer.

    Raises:
        CannotConvert: If something is missing or does not exist here.
        ValidationError: If the plan is not possible.
    """
    kind = dipole_kind(reader)
    numbers = [int(z) for z in reader.array("atomic_numbers").reshape(-1)]
    heads = _heads(reader, kind, len(numbers))
    n_layers = reader.count("interactions.")
    if n_layers < 1:
        raise CannotConvert("it has no interactions")
    n_channels = exact(reader.array("node_embedding.linear.weight").size, len(numbers), "node_embedding")
    n_harmonics = reader.array(reader.contraction(0, 0) + "U_matrix_1").shape[-2]
    hidden, l_max = reader.degrees(0), math.isqrt(n_harmonics) - 1
    if (l_max + 1) ** 2 != n_harmonics or not 0 <= l_max <= MAX_L:
        raise CannotConvert(
            f"its {n_harmonics} spherical harmonics are no complete set up to a degree of at most {MAX_L}"
        )
    if n_layers == 1:
        hidden = (0,) if kind is None else (0, 1)
    interactions = recover_interactions(reader, n_layers, n_channels, len(numbers), l_max, hidden)
    messages = recover_messages(reader, n_layers, n_channels, hidden)
    contractions = [name for name in reader.state if name.startswith("products.") and name.endswith("weights_max")]
    shared = {reader.state[name].shape[0] == 1 for name in contractions if reader.state[name].ndim == 3}
    if len(numbers) == 1:
        shared = {reader.attribute("products.0", "use_agnostic_product") is True}
    readout = _last_readout(reader, n_layers, n_channels, len(heads), kind)
    unshifted = all(head.shift == 0.0 for head in heads)
    word = kind or ("MACE" if not interactions[0].residual and unshifted else "ScaleShiftMACE")
    plan = ModelPlan.model_validate(
        {
            "model": word,
            "r_max": reader.scalar("r_max"),
            "l_max": l_max,
            "n_channels": n_channels,
            "hidden_l": hidden,
            "interactions": interactions,
            "correlation": tuple(_correlation(reader, layer, l_max) for layer in range(n_layers)),
            "product_of_all_elements": shared == {True},
            "radial_mlp": recover_radial_mlp(reader, interactions),
            "avg_num_neighbors": recover_avg_num_neighbors(reader, n_layers, interactions),
            "atomic_numbers": tuple(numbers),
            **(
                heads[0].model_dump(exclude={"name"}) if len(heads) == 1 else {"reference_energies": (), "heads": heads}
            ),
            "dipole_scale": 1.0 if kind is None else DEBYE_OF_MACE_TORCH,
            **messages_of_plan(messages, n_channels, hidden),
            **readout,
            **_radial(reader),
            **recover_conditions(reader),
        }
    )
    return plan, [sent.degrees for sent in messages]


def dipole_kind(reader: Reader) -> str | None:
    """Return the class of a model of dipoles, None for one of energies.

    A checkpoint and a class that is not known tell it by their shapes.

    Raises:
        CannotConvert: If it is a model of dipoles whose last layer has no vectors.
    """
    last = reader.count("products.") - 1
    if reader.tree is not None and reader.tree.kind in KINDS:
        kind = reader.tree.kind if "dipole" in OUTPUTS[reader.tree.kind] else None
    elif _ENERGIES not in reader.state:
        kind = "AtomicDipolesMACE"
    elif last > 0:
        kind = "EnergyDipolesMACE" if 1 in reader.degrees(last) else None
    else:
        # one layer may have vectors that nothing reads; a map to energy and dipole has twice the weights
        n_heads, numbers = len(np.atleast_2d(reader.array(_ENERGIES))), reader.array("atomic_numbers")
        per_channel = reader.array("readouts.0.linear.weight").size * numbers.size
        both = per_channel == 2 * reader.array("node_embedding.linear.weight").size
        kind = "EnergyDipolesMACE" if both and n_heads == 1 else None
    if kind is not None and 1 not in reader.degrees(last):
        raise CannotConvert("its last layer has no vectors")
    return kind


def _heads(reader: Reader, kind: str | None, n_elements: int) -> tuple[HeadPlan, ...]:
    """Return the heads; one without reference energies where no energy is predicted."""
    energies = np.zeros((1, 0))
    if kind is None or "energy" in OUTPUTS[kind]:
        energies = np.atleast_2d(reader.array(_ENERGIES))
        if energies.shape[1] != n_elements:
            raise CannotConvert(f"it has {energies.shape[1]} reference energies for {n_elements} elements")
    heads = []
    for place, (name, row) in enumerate(zip(heads_of(reader), energies, strict=True)):
        constants = {}
        for constant, neutral in (("scale", 1.0), ("shift", 0.0)):
            buffer, stored = f"scale_shift.{constant}", np.array([neutral])
            if buffer in reader.state or reader.module("scale_shift") is not None:
                stored = reader.array(buffer).reshape(-1)
            constants[constant] = float(stored[place if len(stored) > 1 else 0])
        heads.append(HeadPlan(name=name, reference_energies=tuple(map(float, row)), **constants))
    return tuple(heads)


def check_kind(reader: Reader) -> None:
    """Refuse what does not exist here by its name; a class that somebody else wrote is judged by its parts.

    Raises:
        CannotConvert: If it is such a model.
    """
    tree = reader.tree
    if tree is not None and tree.kind not in KINDS:
        alike = _NEEDED_PARTS <= tree.parts.keys() <= _KNOWN_PARTS and not tree.package.startswith("mace.modules")
        if tree.kind in _OTHER_KINDS or not alike:
            why = _OTHER_KINDS.get(tree.kind, "this class of models is not known")
            raise CannotConvert(f"its kind is {tree.kind}: {why}")
        _LOGGER.warning(
            "%s: the class %s.%s is not one of mace-torch; it has the parts of a %s and is read as one: what else it "
            "may compute is missing here",
            reader.original.path,
            tree.package,
            tree.kind,
            dipole_kind(reader) or ("ScaleShiftMACE" if "scale_shift" in tree.parts else "MACE"),
        )
    if tree is not None and tree.attributes.get("use_so3") is True:
        raise CannotConvert("it was made with use_so3=True: its energies may differ between mirror images")
    if any(name.startswith("les.") for name in reader.state):
        raise CannotConvert("it has a les, which does not exist here")


def _correlation(reader: Reader, layer: int, l_max: int) -> int:
    """Return the factors of a layer's contraction, after making sure that all coefficients have the shape for it.

    Large coefficients are thus paid for with a large file: nothing is computed for a false claim.
    """
    prefix = reader.contraction(layer, 0) + "U_matrix_"
    correlation = sum(name.startswith(prefix) for name in reader.state)
    for place, degree in enumerate(reader.degrees(layer)):
        for order in range(1, correlation + 1):
            name = f"{reader.contraction(layer, place)}U_matrix_{order}"
            shape = reader.array(name).shape
            start = (2 * degree + 1,) if degree else ()
            if order > MAX_L or shape[:-1] != (*start, *([(l_max + 1) ** 2] * order)):
                raise CannotConvert(f"'{name}' has the shape {list(shape)}")
    return correlation


def _last_readout(
    reader: Reader, n_layers: int, n_channels: int, n_heads: int, kind: str | None
) -> dict[str, int | str | bool]:
    """Return widths and activation of the last readout, and whether it is the only one."""
    n_readouts = reader.count("readouts.")
    said = reader.attribute("", "use_last_readout_only")
    only_last = n_readouts == 1 and n_layers > 1 and kind is None
    if n_readouts != n_layers and not only_last or isinstance(said, bool) and said is not only_last:
        raise CannotConvert(f"it has {n_readouts} readouts for {n_layers} layers")
    path = f"readouts.{n_readouts - 1}"
    if n_layers == 1:
        return {"readout_channels": 0 if kind == "AtomicDipolesMACE" else _USUAL_WIDTH}
    if f"{path}.linear_1.weight" not in reader.state:
        module = reader.module(path)
        raise CannotConvert(f"its last readout is {module.kind if module else 'of another kind'}")
    total = reader.array(f"{path}.linear_1.weight").size
    if kind is None:
        return {
            "readout_channels": exact(total, n_channels * n_heads, "the last readout"),
            "readout_biases": _has_biases(reader, path),
            "last_readout_only": only_last,
            "gate": _gate(reader, path),
        }
    # every vector of the hidden layer has a gate besides, where scalars reach the layer
    width, outputs = exact(total, n_channels, "the last readout"), reader.array(f"{path}.linear_2.weight").size
    vectors = width if kind == "AtomicDipolesMACE" else width - outputs
    return {"readout_channels": outputs - vectors, "readout_vectors": vectors, "gate": _gate(reader, path)}


def _has_biases(reader: Reader, path: str) -> bool:
    """Tell whether the last readout is the one with a second hidden layer and biases.

    Raises:
        CannotConvert: If it has biases in other places.
    """
    found = {name for name, array in reader.state.items() if name.startswith("readouts.") and array.size}
    biases = {name for name in found if name.endswith(".bias")}
    expected = {f"{path}.linear_mid.bias", f"{path}.linear_2.bias"}
    if f"{path}.linear_mid.weight" not in found and not biases:
        return False
    if biases != expected or f"{path}.equivariant_nonlin" in {name.rpartition(".")[0] for name in reader.state}:
        raise CannotConvert("its readouts have biases in places that are not known")
    module = reader.module(path)
    if module is not None and module.kind != "NonLinearBiasReadoutBlock":
        raise CannotConvert(f"its last readout is a {module.kind}, which does not exist here")
    return True


def _gate(reader: Reader, path: str) -> str:
    """Return the activation of a readout."""
    if reader.tree is None:
        if reader.known.gate is None:
            raise CannotConvert("a checkpoint does not tell the activation of its last readout (gate)")
        return reader.known.gate
    functions = []
    for place in ("non_linearity", "equivariant_nonlin.act_scalars", "equivariant_nonlin.act_gates"):
        functions += [reader.attribute(f"{path}.{place}.acts.0", "f"), reader.attribute(f"{path}.{place}", "f")]
    functions += [reader.attribute(f"{path}.equivariant_nonlin", name) for name in ("_act_scalar", "_act_gate")]
    names: set[str] = set()
    for function in functions:
        if isinstance(function, Record) and function.name is not None and function.name.name == "getattr":
            # those of torch's compiled part are written as an attribute of something
            names.add(str(function.arguments[-1]) if function.arguments else "getattr")
        elif function is not None:
            names.add(function.name if isinstance(function, Name) else "of an unknown kind")
    for name in sorted(names):
        if name not in _GATES:
            raise CannotConvert(f"the activation {name} of its last readout does not exist here")
    if len(names) > 1:
        raise CannotConvert(f"its last readout has several activations ({', '.join(sorted(names))})")
    return _GATES[names.pop()] if names else "None"


def _radial(reader: Reader) -> dict[str, Any]:
    """Return what decides the functions of the distance.

    Raises:
        CannotConvert: If it does not exist here, a file contradicts itself, or a checkpoint does not tell.
    """
    prefix = "radial_embedding.bessel_fn."
    kinds = [word for name, word in _RADIAL_TYPES.items() if prefix + name in reader.state]
    if len(kinds) != 1:
        raise CannotConvert("its radial basis is of an unknown kind")
    stored = next(reader.state[prefix + name] for name in _RADIAL_TYPES if prefix + name in reader.state)
    transform = "None"
    names = {
        name.rpartition(".")[2] for name in reader.state if name.startswith("radial_embedding.distance_transform.")
    }
    if names:
        transform = "Agnesi" if {"a", "q", "p"} <= names else "Soft" if "alpha" in names else "unknown"
    if {"a", "b"} <= names:
        raise CannotConvert("its Soft transform is the one mace-torch had before 0.3.10, which had another formula")
    if transform == "unknown":
        raise CannotConvert("its distance transform is of an unknown kind")
    # whether radial weights are multiplied by the envelope; files older than the choice multiply the basis
    if reader.tree is not None:
        said = {reader.attribute(path, "apply_cutoff") for path in ("", "radial_embedding")} & {True, False}
        if len(said) > 1:
            raise CannotConvert("it says of itself that apply_cutoff is both True and False")
        after_network = said == {False}
    elif reader.known.plan is not None:
        after_network = reader.known.plan.cutoff_after_network
    elif any(name.endswith((".alpha", ".linear_down.weight")) for name in reader.state):
        raise CannotConvert("a checkpoint does not tell apply_cutoff")  # both are usual with such interactions
    else:
        after_network = False
    return {
        "radial_type": kinds[0],
        "num_radial_basis": stored.size,
        "num_cutoff_basis": int(reader.scalar("radial_embedding.cutoff_fn.p")),
        "cutoff_after_network": after_network,
        "distance_transform": transform,
        "pair_repulsion": any(name.startswith("pair_repulsion_fn.") for name in reader.state),
    }
