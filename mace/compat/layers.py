"""Interactions of a model of mace-torch: their kinds, the degrees and channels of messages, their radial networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mace.compat.modules import irreps
from mace.compat.reader import CannotConvert, Reader, exact
from mace.model.plan import InteractionPlan

KINDS_OF_INTERACTIONS = {
    "RealAgnosticInteractionBlock": InteractionPlan(residual=False),
    "RealAgnosticResidualInteractionBlock": InteractionPlan(residual=True),
    "RealAgnosticDensityInteractionBlock": InteractionPlan(residual=False, normalization="density"),
    "RealAgnosticDensityResidualInteractionBlock": InteractionPlan(residual=True, normalization="density"),
    "RealAgnosticAttResidualInteractionBlock": InteractionPlan(residual=True, messages="attention"),
    "RealAgnosticResidualNonLinearInteractionBlock": InteractionPlan(
        residual=True, normalization="density", messages="nonlinear"
    ),
}
"""Interactions by the names of mace-torch and its command line."""

USUAL_RADIAL_MLP = (64, 64, 64)
"""Hidden layers of the radial network, where a model does not tell because attention fixes them."""


def word_of_interaction(kind: InteractionPlan) -> str:
    """Name a kind of interaction as mace-torch does."""
    return next(word for word, known in KINDS_OF_INTERACTIONS.items() if known == kind)


@dataclass(frozen=True)
class Messages:
    """What neighbors send in a layer of the original.

    Attributes:
        degrees: Degrees it has room for; those the layer's input lacks are zero always.
        channels: Channels of each.
    """

    degrees: tuple[int, ...]
    channels: int


def recover_interactions(
    reader: Reader, n_layers: int, n_channels: int, n_elements: int, l_max: int, hidden: tuple[int, ...]
) -> tuple[InteractionPlan, ...]:
    """Return the kind of every layer from its class or, in a checkpoint, from its weights.

    Raises:
        CannotConvert: If it is another one, or weights do not tell.
    """
    if reader.tree is not None:
        modules = [reader.module(f"interactions.{layer}") for layer in range(n_layers)]
        kinds = ["nothing" if module is None else module.kind for module in modules]
        for layer, kind in enumerate(kinds):
            if kind not in KINDS_OF_INTERACTIONS:
                raise CannotConvert(f"its layer {layer} is a {kind}, which does not exist here")
        return tuple(KINDS_OF_INTERACTIONS[kind] for kind in kinds)
    if reader.known.interactions is not None:
        return reader.known.interactions
    plans = []
    for layer in range(n_layers):
        prefix = f"interactions.{layer}."
        if prefix + "alpha" in reader.state:
            plans.append(KINDS_OF_INTERACTIONS["RealAgnosticResidualNonLinearInteractionBlock"])
            continue
        if prefix + "linear_down.weight" in reader.state:
            plans.append(KINDS_OF_INTERACTIONS["RealAgnosticAttResidualInteractionBlock"])
            continue
        n_maps = exact(reader.array(prefix + "skip_tp.weight").size, n_elements * n_channels**2, f"layer {layer}")
        l_in, l_out = hidden if layer else (0,), reader.degrees(layer)
        n_residual, n_plain = len(set(l_in) & set(l_out)), l_max + 1
        if n_residual == n_plain:
            raise CannotConvert(f"a checkpoint does not tell the kind of its layer {layer}")
        density = any(name.startswith(prefix + "density_fn.") for name in reader.state)
        plans.append(InteractionPlan(residual=n_maps == n_residual, normalization="density" if density else "count"))
    return tuple(plans)


def recover_messages(reader: Reader, n_layers: int, n_channels: int, hidden: tuple[int, ...]) -> tuple[Messages, ...]:
    """Return what neighbors send, layer by layer (``edge_irreps`` of the original).

    Raises:
        CannotConvert: If channels of a layer are unequal or degrees are not those of harmonics.
    """
    found = []
    for layer in range(n_layers):
        l_in = hidden if layer else (0,)
        terms = irreps(reader.attribute(f"interactions.{layer}.conv_tp", "irreps_in1"))
        if terms:
            degrees = tuple(degree for _, degree, _ in terms)
            channels = {multiplicity for multiplicity, _, _ in terms}
            natural = all(parity == (-1) ** degree for _, degree, parity in terms)
            if len(channels) != 1 or not natural or list(degrees) != sorted(set(degrees)):
                raise CannotConvert("its edge_irreps have unequal channels, or other parities than harmonics")
            found.append(Messages(degrees, channels.pop()))
        elif reader.known.plan is not None and layer < reader.known.plan.n_layers:
            known = reader.known.plan
            found.append(Messages(known.l_of_messages(layer), known.channels_of_messages(layer)))
        else:
            if reader.array(f"interactions.{layer}.linear_up.weight").size != len(l_in) * n_channels**2:
                raise CannotConvert(f"a checkpoint does not tell what neighbors send in its layer {layer}")
            found.append(Messages(l_in, n_channels))
        if not set(l_in) & set(found[-1].degrees):
            raise CannotConvert(f"neighbors send nothing in its layer {layer}")
    return tuple(found)


def messages_of_plan(messages: tuple[Messages, ...], n_channels: int, hidden: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of a plan that say what neighbors send, leaving out degrees that are zero always.

    Raises:
        CannotConvert: If layers differ.
    """
    channels = tuple(sent.channels for sent in messages)
    degrees = {tuple(l for l in hidden if l in sent.degrees) for sent in messages[1:]} or {hidden}
    if len(degrees) > 1:
        raise CannotConvert("its layers have different edge_irreps")
    sent = degrees.pop()
    return {
        "message_channels": None if set(channels) == {n_channels} else channels,
        "message_l": None if sent == hidden else sent,
    }


def recover_radial_mlp(reader: Reader, interactions: tuple[InteractionPlan, ...]) -> tuple[int, ...]:
    """Return the widths of the hidden layers of the radial networks.

    Raises:
        CannotConvert: If the networks are of an unknown kind.
    """
    for layer, kind in enumerate(interactions):
        prefix = f"interactions.{layer}.conv_tp_weights."
        if kind.messages == "nonlinear":
            names = [name for name in reader.state if name.startswith(prefix + "net.") and name.endswith(".weight")]
            places = sorted(int(name.split(".")[-2]) for name in names if reader.state[name].ndim == 2)
            if len(places) < 2 or places != list(range(0, 3 * len(places), 3)):
                raise CannotConvert("its radial network is of another kind than RadialMLP")
            return tuple(reader.array(f"{prefix}net.{place}.weight").shape[0] for place in places[:-1])
        if kind.messages == "linear":
            n = sum(name.startswith(prefix + "layer") for name in reader.state)
            if n < 1:
                raise CannotConvert("its radial network is of another kind than FullyConnectedNet")
            return tuple(reader.array(f"{prefix}layer{i}.weight").shape[1] for i in range(n - 1))
    widths = reader.attribute("interactions.0", "radial_MLP")
    known = isinstance(widths, list) and widths and all(isinstance(width, int) for width in widths)
    return tuple(widths) if known else USUAL_RADIAL_MLP


def recover_avg_num_neighbors(reader: Reader, n_layers: int, interactions: tuple[InteractionPlan, ...]) -> float:
    """Return what messages are divided by.

    Raises:
        CannotConvert: If layers differ, or weights do not tell.
    """
    found = set()
    for layer in range(n_layers):
        name = f"interactions.{layer}.avg_num_neighbors"
        if name in reader.state:
            found.add(reader.scalar(name))
    if len(found) > 1:
        raise CannotConvert(f"its layers have different numbers of neighbors ({sorted(found)})")
    if found:
        return found.pop()
    if reader.known.avg_num_neighbors is not None:
        return reader.known.avg_num_neighbors
    if all(plan.normalization == "density" for plan in interactions):
        return 1.0  # not used by these layers
    raise CannotConvert("a checkpoint does not tell avg_num_neighbors")
