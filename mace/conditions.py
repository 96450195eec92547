"""Conditions: what an energy depends on besides the atoms, such as the total charge, the spin or a temperature."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEFAULTS = {"total_charge": 0.0, "total_spin": 1.0, "elec_temp": 0.0}
"""What a structure has that does not say it, as in mace-torch; a condition that is not here must be given."""

OTHER_KEYS = {"total_charge": ("charge",), "total_spin": ("spin",)}
"""Keys under which a condition is looked for besides its own name, as mace-torch's calculator does."""

CONDITION_KEYS = frozenset({*DEFAULTS, *(key for keys in OTHER_KEYS.values() for key in keys)})
"""Keys of structures that mean conditions in any file; a charge is not the charges of the atoms."""

SETTABLE = tuple(DEFAULTS)
"""Conditions whose key has a setting of its own, ``<name>_key``."""

_LARGEST = 1_000_000
_PLACES = {"graph": "structure", "structure": "structure", "atom": "atom"}
_WORDS = ("type", "per", "num_classes", "offset", "in_dim", "emb_dim", "use_bias", "key")
"""What mace-torch's ``embedding_specs`` says of a condition."""

_NO_EFFECT = {"categorical": ("in_dim", "use_bias"), "continuous": ("num_classes", "offset")}
"""Which of these words mean nothing for a kind of values, in mace-torch as here."""


class Condition(BaseModel):
    """One condition, and how a model turns it into channels.

    Attributes:
        name: What it is called.
        kind: ``categorical`` for whole numbers, each a class with channels of its own; ``continuous`` for any numbers.
        per: Whether a structure has one value, or every atom its own.
        width: Channels it is turned into.
        n_classes: Number of classes; 0 if it is continuous.
        offset: What is added to a value to get its class, counted from zero.
        n_values: Numbers per atom; one for a structure and for classes.
        has_biases: Whether the network that turns numbers into channels has biases.
        key: Under which key files have it; None for its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    kind: Literal["categorical", "continuous"]
    per: Literal["structure", "atom"]
    width: int = Field(ge=1, le=_LARGEST)
    n_classes: int = Field(default=0, ge=0, le=_LARGEST)
    offset: int = Field(default=0, ge=-_LARGEST, le=_LARGEST)
    n_values: int = Field(default=1, ge=1, le=_LARGEST)
    has_biases: bool = True
    key: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Condition:
        if self.kind == "categorical" and not self.n_classes:
            raise ValueError("classes need a number of classes")
        if self.kind == "categorical" and (self.n_values > 1 or not self.has_biases):
            raise ValueError("classes have one value and no biases to leave out")
        if self.kind == "continuous" and (self.n_classes or self.offset):
            raise ValueError("continuous values have no classes and no offset")
        if self.per == "structure" and self.n_values > 1:
            raise ValueError("a structure has one value of a condition; give each number a name of its own")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Where to look for its value, the preferred key first.

        >>> Condition(name="total_spin", kind="categorical", per="structure", width=4, n_classes=9).keys
        ('total_spin', 'spin')
        """
        own = () if self.key is None else (self.key,)
        return tuple(dict.fromkeys((*own, self.name, *OTHER_KEYS.get(self.name, ()))))

    @property
    def default(self) -> float | None:
        """The value where none is given; None if one has to be given."""
        return DEFAULTS.get(self.name) if self.per == "structure" else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value.

        >>> Condition(name="q", kind="categorical", per="atom", width=4, n_classes=5, offset=2).bounds
        (-2, 2)
        """
        infinite = float("inf")
        if self.kind == "continuous":
            return -infinite, infinite
        return -self.offset, self.n_classes - 1 - self.offset

    @property
    def text(self) -> str:
        """What it is, in words.

        >>> Condition(name="total_charge", kind="categorical", per="structure", width=4, n_classes=5, offset=2).text
        "total_charge of the structure, from -2 to 2 (key 'total_charge' or 'charge'; 0 if there is none)"
        """
        low, high = self.bounds
        values = "any number" if self.kind == "continuous" else f"from {low:g} to {high:g}"
        many = f", {self.n_values} values" if self.n_values > 1 else ""
        keys = " or ".join(f"'{key}'" for key in self.keys)
        absent = "must be given" if self.default is None else f"{self.default:g} if there is none"
        place = "the structure" if self.per == "structure" else "every atom"
        return f"{self.name} of {place}{many}, {values} (key {keys}; {absent})"


def read_specs(specs: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Understand ``embedding_specs`` as mace-torch writes them.

    Args:
        specs: By name of the condition, a dictionary with ``type`` (categorical or continuous), ``per`` (graph or
            atom), ``emb_dim``, and ``num_classes`` with ``offset``, or ``in_dim`` with ``use_bias``; ``key`` if files
            have it under another name.

    Returns:
        The conditions, in the given order.

    Raises:
        ValueError: If something is missing, unknown or contradictory; the message is a sentence without its subject.

    >>> read_specs({"total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 8}})[0].width
    8
    """
    conditions = tuple(_read_spec(str(name), spec) for name, spec in specs.items())
    if not conditions:
        raise ValueError("names no condition; describe one, or leave it out.")
    return conditions


def _read_spec(name: str, spec: Any) -> Condition:
    if not isinstance(spec, Mapping):
        raise ValueError(f"has '{name}', which is not described by a dictionary with {', '.join(_WORDS)}.")
    for word in spec:
        if word not in _WORDS:
            near = difflib.get_close_matches(str(word), _WORDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_WORDS)}."
            raise ValueError(f"has the unknown word '{word}' for '{name}'; {hint}")
    missing = [word for word in ("type", "per", "emb_dim") if word not in spec]
    if missing:
        raise ValueError(f"does not say the {' and '.join(missing)} of '{name}'; add what is missing.")
    if str(spec["per"]) not in _PLACES:
        raise ValueError(f"has '{name}' per '{spec['per']}'; there are graph and atom.")
    if spec["type"] == "categorical" and "num_classes" not in spec:
        raise ValueError(f"does not say num_classes of '{name}'; add it.")
    try:
        return condition_of_spec(name, spec)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f" of {part}" for part in first["loc"])
        raise ValueError(f"cannot have '{name}' as it is described: {first['msg']}{place}.") from error


def words_without_effect(specs: Mapping[str, Any]) -> list[str]:
    """List the words of conditions that mean nothing for their kind of values, as in ``in_dim of 'total_charge'``."""
    return [
        f"{word} of '{name}'" for name, spec in specs.items() for word in _NO_EFFECT[str(spec["type"])] if word in spec
    ]


def condition_of_spec(name: str, spec: Mapping[str, Any]) -> Condition:
    """Translate one entry of ``embedding_specs``, leaving out what mace-torch does not look at.

    Raises:
        KeyError: If something is missing.
        ValueError: If it is not possible.
    """
    described = {"name": name, "kind": spec["type"], "per": _PLACES[spec["per"]], "width": spec["emb_dim"]}
    if spec["type"] == "categorical":
        described |= {"n_classes": spec["num_classes"], "offset": spec.get("offset", 0)}
    else:
        described |= {"n_values": spec.get("in_dim", 1), "has_biases": spec.get("use_bias", True)}
    return Condition.model_validate(described | {"key": spec.get("key")})


def spec_of_condition(condition: Condition) -> dict[str, Any]:
    """Describe a condition in the words of ``embedding_specs``; `condition_of_spec` reads them back."""
    spec: dict[str, Any] = {
        "type": condition.kind,
        "per": "graph" if condition.per == "structure" else "atom",
        "emb_dim": condition.width,
    }
    if condition.kind == "categorical":
        spec |= {"num_classes": condition.n_classes, "offset": condition.offset}
    else:
        spec |= {"in_dim": condition.n_values, "use_bias": condition.has_biases}
    return spec if condition.key is None else spec | {"key": condition.key}


def joined(several: Iterable[tuple[Condition, ...]]) -> tuple[Condition, ...]:
    """Collect the conditions of several models; the same one occurs as often as models differ in it."""
    return tuple(dict.fromkeys(condition for conditions in several for condition in conditions))
