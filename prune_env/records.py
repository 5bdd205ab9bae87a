"""Typed reading of JSON: a dataclass is the schema of what it was written from."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prune_env.storage import Unreadable

T = TypeVar("T")
Special = Mapping[Any, Callable[[Any, str], Any]]
"""Annotations that JSON holds in a form of their own, each with its reader of (value, place)."""

_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def read_record(kind: type[T], value: Any, place: str = "", special: Special | None = None) -> T:
    """The dataclass `kind` out of parsed JSON.

    Every field has the type of its annotation (numbers, texts, None, unions, tuples, mappings,
    further dataclasses), a field without a default is there, and none is unknown.

    Args:
        kind: the dataclass.
        value: what `json.loads` gave.
        place: where in the file it stood, for the error.
        special: readers of annotations that are written otherwise.

    Raises:
        Unreadable: names the field, what it must be, and what was found.
    """
    return cast(T, _record(kind, value, place, special or {}))


def read_value(kind: Any, value: Any, place: str, special: Special | None = None) -> Any:
    """`value` as the annotation `kind` says; see `read_record`."""
    special = special or {}
    if kind in special:
        return special[kind](value, place)
    if kind is Any:
        return value
    if kind in _PLAIN:
        return _plain(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, place, special)
    return _COMPOUND[get_origin(kind)](get_args(kind), value, place, special)


def _record(kind: Any, value: Any, place: str, special: Special) -> Any:
    _require(isinstance(value, Mapping), "an object with fields", value, place)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = [name for name in value if name not in fields]
    missing = [name for name, field in fields.items() if name not in value and _needed(field)]
    if missing or unknown:
        said = f"lacks '{missing[0]}'" if missing else f"has the unknown field '{unknown[0]}'"
        raise Unreadable(f"{place or 'it'} {said}")
    hints, prefix = _hints(kind), f"{place}." if place else ""
    return kind(**{n: read_value(hints[n], v, prefix + n, special) for n, v in value.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _require(holds: bool, wanted: str, value: Any, place: str) -> None:
    if not holds:
        shown = repr(value)[:40]
        raise Unreadable(f"{place or 'it'} is {shown} ({type(value).__name__}), not {wanted}")


def _plain(kind: Any, value: Any, place: str) -> Any:
    fits = type(value) is kind or (kind is float and type(value) is int)
    _require(fits, _PLAIN[kind], value, place)
    try:
        return float(value) if kind is float else value
    except OverflowError as error:
        raise Unreadable(f"{place} is too large a number") from error


def _union(kinds: tuple[Any, ...], value: Any, place: str, special: Special) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return read_value(kind, value, place, special)
        except Unreadable as error:
            reasons.append(str(error))
    raise Unreadable(", and ".join(dict.fromkeys(reasons)))


def _tuple(kinds: tuple[Any, ...], value: Any, place: str, special: Special) -> tuple[Any, ...]:
    repeated = len(kinds) == 2 and kinds[1] is Ellipsis
    _require(isinstance(value, list | tuple), "a list", value, place)
    if repeated and kinds[0] is int and all(type(entry) is int for entry in value):
        return tuple(value)  # most of a plan: at once
    if not repeated:
        _require(len(value) == len(kinds), f"a list of {len(kinds)}", value, place)
    each = [kinds[0]] * len(value) if repeated else kinds
    entries = enumerate(zip(each, value, strict=True))
    return tuple(read_value(kind, entry, f"{place}[{n}]", special) for n, (kind, entry) in entries)


def _list(kinds: tuple[Any, ...], value: Any, place: str, special: Special) -> list[Any]:
    return list(_tuple((kinds[0], Ellipsis), value, place, special))


def _mapping(kinds: tuple[Any, ...], value: Any, place: str, special: Special) -> dict[str, Any]:
    _require(isinstance(value, Mapping), "an object", value, place)
    return {n: read_value(kinds[1], v, f"{place}['{n}']", special) for n, v in value.items()}


def _literal(kinds: tuple[Any, ...], value: Any, place: str, special: Special) -> Any:
    _require(value in kinds, f"one of {', '.join(map(str, kinds))}", value, place)
    return value


_COMPOUND: dict[Any, Callable[[tuple[Any, ...], Any, str, Special], Any]] = {
    Union: _union,
    types.UnionType: _union,
    tuple: _tuple,
    list: _list,
    dict: _mapping,
    Mapping: _mapping,
    Literal: _literal,
}
"""Origin of an annotation -> its reader."""
