"""Dataclasses as documents that JSON can hold, and back."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def to_document(value: Any) -> Any:
    """Turn dataclasses, tuples, mappings from texts, numbers and texts into what JSON can hold.

    Attributes that have their default are left out.

    Raises:
        TypeError: If there is anything else in it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            name: to_document(each) for name, each in given.items() if each != _defaults(type(value)).get(name, ...)
        }
    if isinstance(value, Mapping):
        return {key: to_document(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [to_document(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def from_document(kind: Any, document: Any) -> Any:
    """Build from a document what `to_document` made it of.

    Args:
        kind: Its type, as annotations say it: a dataclass, ``tuple[float, ...]``, ``dict[str, int]``, ``str | None``.
        document: The document.

    Raises:
        TypeError: If the document does not have this form.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: from_document(hints[name], each) for name, each in _mapping(document).items()})
    if origin in (Union, types.UnionType):
        if document is None:
            return None
        (inner_kind,) = (each for each in inner if each is not type(None))
        return from_document(inner_kind, document)
    if origin is tuple:
        kinds = [inner[0]] * len(document) if inner[-1] is ... else inner
        return tuple(from_document(each, value) for each, value in zip(kinds, document, strict=True))
    if origin is list:
        if not isinstance(document, list):
            raise TypeError(f"{document!r} is no list")
        return [from_document(inner[0], each) for each in document]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: from_document(inner[1], each) for key, each in _mapping(document).items()}
    if kind is float and isinstance(document, int):
        return float(document)
    if kind is not Any and not isinstance(document, kind):
        raise TypeError(f"{document!r} is no {kind.__name__}")
    return document


def _mapping(document: Any) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise TypeError(f"{document!r} is no mapping")
    return document


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _defaults(kind: Any) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
