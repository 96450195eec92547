"""Arguments of the calculator kept for compatibility: accepted if they have no effect, rejected otherwise."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mace.conditions import Condition
from mace.errors import UserError
from mace.model.plan import ModelPlan
from mace.structures.condition_values import check_condition_keys

_KERNELS = "this library is not used, the fastest kernels at hand are taken"
_COMPILED = "models are not compiled as a whole, their kernels are fast as they are"
_NO_CHARGES = "charges of atoms are part of dipoles, which the model does not predict; leave the argument out"

_DISPERSION = "the model alone is computed; mace_mp(model, dispersion=True) adds D3, or the program that calls"

_INERT: dict[str, tuple[Any, str]] = {
    "compile_mode": (None, _COMPILED),
    "dispersion": (False, _DISPERSION),
    "fullgraph": (True, _COMPILED),
    "enable_cueq": (False, _KERNELS),
    "enable_oeq": (False, _KERNELS),
    "pad_num_atoms": (0, _COMPILED),
    "pad_num_edges": (0, _COMPILED),
    "warmup": (False, _COMPILED),
}
"""Arguments without effect here, mostly on the speed of mace-torch: the default of each, and what is done instead."""

DEFAULT_CHARGES_KEY = "Qs"

_MODEL_TYPES = {
    "MACE": ("MACE", "ScaleShiftMACE"),
    "DipoleMACE": ("AtomicDipolesMACE",),
    "EnergyDipoleMACE": ("EnergyDipolesMACE",),
}
"""The kinds of model meant by each ``model_type`` of mace-torch's calculator."""


def check_model_type(model_type: str | None, plan: ModelPlan) -> None:
    """Check that ``model_type`` agrees with the model.

    Raises:
        UserError: If it contradicts the model, or there is no such type here.
    """
    if model_type is None or model_type == plan.model:
        return
    if model_type not in _MODEL_TYPES:
        raise UserError(
            f"MACECalculator: model_type={model_type!r} cannot be used: there are {', '.join(_MODEL_TYPES)} only; "
            "leave the argument out, the model knows what it is."
        )
    if plan.model not in _MODEL_TYPES[model_type]:
        raise UserError(
            f"MACECalculator: model_type={model_type!r} contradicts the model, which is of the kind {plan.model}; "
            "leave the argument out, the model knows what it is."
        )


def check_charges_key(charges_key: str, plan: ModelPlan) -> None:
    """Raise an error if a charges key is set for a model that does not use charges.

    Raises:
        UserError: If the key is not the default and the model has no dipoles.
    """
    if charges_key != DEFAULT_CHARGES_KEY and "dipole" not in plan.outputs:
        raise UserError(f"MACECalculator: charges_key={charges_key!r} cannot be used: {_NO_CHARGES}.")


def condition_keys(
    info_keys: Mapping[str, str] | None, arrays_keys: Mapping[str, str] | None, conditions: Sequence[Condition]
) -> dict[str, str]:
    """Combine the keys under which structures hold the conditions of the models.

    Args:
        info_keys: Keys of conditions of the structure, by name of the condition; None for the usual ones.
        arrays_keys: Keys of conditions of atoms, likewise.
        conditions: Conditions of all models.

    Raises:
        UserError: If a condition is named that no model has.
    """
    given: dict[str, str] = {}
    for argument, keys, place in (("info_keys", info_keys, "structure"), ("arrays_keys", arrays_keys, "atom")):
        check_condition_keys(f"MACECalculator: {argument}", keys or {}, [c for c in conditions if c.per == place])
        given |= keys or {}
    return given


def warn_of_inert(arguments: Mapping[str, Any]) -> None:
    """Warn about arguments that have no effect, and say what is done instead."""
    for name, value in arguments.items():
        default, instead = _INERT[name]
        if value is not None and repr(value) != repr(default):  # values may be of any type
            warnings.warn(f"MACECalculator: {name}={value!r} changes nothing: {instead}.", stacklevel=3)


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise an error for unknown arguments.

    Raises:
        TypeError: If one is unknown; the message suggests the closest known argument.
    """
    known = sorted({*known, *_INERT})
    for name in given:
        if name not in known:
            nearest = [each for each in known if name in each] or difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; it takes {', '.join(known)}."
            raise TypeError(f"MACECalculator has no argument '{name}'{hint}")


def take_other_names(model_paths: Any, kwargs: dict[str, Any]) -> Any:
    """Accept ``model_path`` and ``model`` as other names of ``model_paths``, as scripts use them.

    Raises:
        UserError: If two of them name different models.
    """
    for name in ("model_path", "model"):
        other = kwargs.pop(name, None)
        if model_paths is not None and other is not None and str(other) != str(model_paths):
            raise UserError(f"MACECalculator: {name} is another name of model_paths; give only one of them.")
        model_paths = other if model_paths is None else model_paths
    return model_paths


def check_positive(value: float, name: str) -> float:
    """Return a number, after checking that it is positive and finite.

    Raises:
        UserError: If it is not.
    """
    if not (math.isfinite(value) and value > 0.0):
        raise UserError(f"MACECalculator: {name} is {value}; it must be a finite number larger than zero.")
    return float(value)
