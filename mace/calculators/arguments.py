"""Arguments of the calculator that exist for compatibility: harmless at their defaults, refused otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mace.errors import UserError


@dataclass(frozen=True)
class _Inactive:
    """Values at which an argument changes nothing, and why any other is refused."""

    values: tuple[Any, ...]
    reason: str


_KERNELS = "this kernel library is not used here; leave the argument out"
_COMPILED = "compiled models are not available yet; leave the argument out"
_PADDING = "padding serves compiled models only, which are not available yet; leave the argument out"
_INPUTS = "the models of this release see elements, positions and cell only; leave the argument out"

_INACTIVE = {
    "model_type": _Inactive(("MACE",), "models of dipoles, polarizabilities and charges are not available yet"),
    "compile_mode": _Inactive((None,), _COMPILED),
    "fullgraph": _Inactive((True,), _COMPILED),
    "enable_cueq": _Inactive((False,), _KERNELS),
    "enable_oeq": _Inactive((False,), _KERNELS),
    "pad_num_atoms": _Inactive((0,), _PADDING),
    "pad_num_edges": _Inactive((0,), _PADDING),
    "warmup": _Inactive((False,), _COMPILED),
    "info_keys": _Inactive((None,), _INPUTS),
    "arrays_keys": _Inactive((None,), _INPUTS),
    "charges_key": _Inactive(("Qs",), _INPUTS),
    "head": _Inactive((None, "Default", "default"), "models with several heads are not available yet"),
    "compute_atomic_stresses": _Inactive((False,), "stresses of single atoms are not available yet"),
}


def check_inactive(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments whose feature does not exist yet.

    Raises:
        UserError: If one has a value that would change something.
    """
    for name, value in arguments.items():
        if not any(_same(value, harmless) for harmless in _INACTIVE[name].values):
            raise UserError(f"MACECalculator: {name}={value!r} cannot be used: {_INACTIVE[name].reason}.")


def _same(value: Any, harmless: Any) -> bool:
    """Compare values of one type only: ``0 == False``, and arrays do not compare to a truth value."""
    return value is harmless or (type(value) is type(harmless) and bool(value == harmless))


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse misspelled arguments.

    Raises:
        TypeError: If one is not known; the message names the nearest that is.
    """
    known = sorted({*known, *_INACTIVE})
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; it takes {', '.join(known)}."
            raise TypeError(f"MACECalculator has no argument '{name}'{hint}")
