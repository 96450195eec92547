"""Conditions of models of mace-torch: its joint embedding, and the readout that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from mace.compat.reader import CannotConvert, Reader
from mace.conditions import condition_of_spec
from mace.model.plan import ModelPlan

State = Mapping[str, np.ndarray]

_MIXING = "joint_embedding.project.0.weight"
_READOUT = "embedding_readout.linear.weight"


def recover_conditions(reader: Reader) -> dict[str, Any]:
    """Return the fields of a plan that describe the conditions of a model.

    Raises:
        CannotConvert: If the file does not describe them, or describes what does not exist here.
    """
    if not any(name.startswith("joint_embedding.") for name in reader.state):
        return {}
    has_readout = {"condition_readout": _READOUT in reader.state}
    if reader.tree is None:
        known = reader.known.plan.conditions if reader.known.plan is not None else ()
        if not known:
            raise CannotConvert("a checkpoint does not tell embedding_specs")
        return {"conditions": known, **has_readout}
    specs = reader.attribute("", "embedding_specs")
    if not isinstance(specs, dict) or not specs:
        raise CannotConvert("it has a joint_embedding, but no embedding_specs that describe it")
    found = []
    for name, spec in specs.items():
        try:
            found.append(condition_of_spec(name, spec))
        except ValidationError as error:
            raise CannotConvert(f"its embedding_specs have a '{name}': {error.errors()[0]['msg']}") from error
        except (KeyError, TypeError) as error:
            raise CannotConvert(f"its embedding_specs describe '{name}' in an unknown way") from error
    return {"conditions": tuple(found), **has_readout}


def _pairs(plan: ModelPlan) -> list[tuple[str, str]]:
    """List the weights here and there; theirs are transposed, but for the channels of classes."""
    pairs = []
    for place, condition in enumerate(plan.conditions):
        ours, theirs = f"conditions.parts.{place}.", f"joint_embedding.embedders.{condition.name}."
        if condition.kind == "categorical":
            pairs.append((ours + "table", theirs + "weight"))
            continue
        pairs += [(ours + "first", theirs + "0.weight"), (ours + "second", theirs + "2.weight")]
        if condition.has_biases:
            pairs += [(ours + "first_bias", theirs + "0.bias"), (ours + "second_bias", theirs + "2.bias")]
    return [*pairs, ("conditions.mixing", _MIXING)] if pairs else []


def _turned(ours: str, values: np.ndarray) -> np.ndarray:
    return values if ours.endswith(("table", "bias")) else values.T


def conditions_from_original(state: State, plan: ModelPlan) -> dict[str, np.ndarray]:
    """Rename the weights of the joint embedding, and take its readout apart head by head."""
    weights = {ours: _turned(ours, state[theirs]) for ours, theirs in _pairs(plan)}
    if plan.condition_readout:
        columns = np.split(state[_READOUT].reshape(plan.n_channels, -1), plan.n_readout_heads, axis=1)
        weights |= {start + "weight": rows for start, rows in zip(_readouts(plan), columns, strict=True)}
    return weights


def conditions_to_original(weights: State, plan: ModelPlan) -> dict[str, np.ndarray]:
    """Do the reverse."""
    state = {theirs: _turned(ours, weights[ours]) for ours, theirs in _pairs(plan)}
    if plan.condition_readout:
        columns = [weights[start + "weight"] for start in _readouts(plan)]
        state[_READOUT] = np.concatenate(columns, axis=1).reshape(-1)
    return state


def _readouts(plan: ModelPlan) -> list[str]:
    """Return the start of the names of the weights of the readout, head by head."""
    n_heads = plan.n_readout_heads
    return [f"condition_readout.heads.{i}." for i in range(n_heads)] if n_heads > 1 else ["condition_readout."]
