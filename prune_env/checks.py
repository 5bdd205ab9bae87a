"""What an option may be: small checks, which say what was found and what to give instead.

A class of options has a table, field -> check; `check_fields` runs it when one is made.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Container, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

from prune_env.errors import ConfigError, PruneEnvError, look_up

Check = Callable[[str, Any], None]
"""Raises when the value, the second argument, cannot be what the first is called."""

Fault = type[PruneEnvError]
LARGEST = 2**63 - 1
"""What a counter or a seed of torch can hold."""


def refuse(name: str, value: object, wanted: str, error: Fault = ConfigError) -> NoReturn:
    """Say what was found and what to give instead."""
    raise error(f"{name} is {reprlib.repr(value)}; give {wanted}.")


def is_whole(value: object) -> bool:
    """Whether it is a whole number, numpy's too; True and 2.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a finite real number, numpy's too; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int, most: int = LARGEST, error: Fault = ConfigError) -> Check:
    """A whole number in [least, most]."""
    wanted = f"a whole number, {least} or more"
    if most < LARGEST:
        wanted = f"a whole number from {least} to {most}"

    def check(name: str, value: Any) -> None:
        if not (is_whole(value) and least <= value <= most):
            refuse(name, value, wanted, error)

    return check


def real(
    wanted: str, holds: Callable[[float], bool] = math.isfinite, error: Fault = ConfigError
) -> Check:
    """A number, not NaN, that `holds` accepts; `wanted` says which."""

    def check(name: str, value: Any) -> None:
        plain = isinstance(value, Real) and not isinstance(value, bool)
        if not (plain and not math.isnan(value) and holds(value)):
            refuse(name, value, wanted, error)

    return check


def among(names: Container[str], wanted: str, error: Fault = ConfigError) -> Check:
    """One of a few words."""

    def check(name: str, value: Any) -> None:
        if not (isinstance(value, str) and value in names):
            refuse(name, value, wanted, error)

    return check


def text(wanted: str, error: Fault = ConfigError) -> Check:
    """A text that is not empty."""

    def check(name: str, value: Any) -> None:
        if not (isinstance(value, str) and value.strip()):
            refuse(name, value, wanted, error)

    return check


def named(table: Mapping[str, object], other: Callable[[object], bool], wanted: str) -> Check:
    """A name in a table of ours, or a value of the user's own that `other` accepts."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, str):
            look_up(name, value, table)
        elif not other(value):
            refuse(name, value, wanted)

    return check


def several(one: Check, wanted: str, error: Fault = ConfigError) -> Check:
    """A list or tuple of values that `one` accepts."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            refuse(name, value, wanted, error)
        for number, entry in enumerate(value):
            one(f"{name}[{number}]", entry)

    return check


def text_or_several(one: Check, wanted: str, error: Fault = ConfigError) -> Check:
    """A text, or a list or tuple of them."""
    many = several(one, wanted, error)

    def check(name: str, value: Any) -> None:
        (one if isinstance(value, str) else many)(name, value)

    return check


def one_or_by_name(one: Check, wanted: str, error: Fault = ConfigError) -> Check:
    """A value for everything, or a dict of values by layer name or glob."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            if is_number(value) or isinstance(value, Real):
                return one(name, value)
            refuse(name, value, wanted, error)
        for key, entry in value.items():
            if not isinstance(key, str):
                refuse(f"a key of {name}", key, "a layer name or glob", error)
            one(f"{name}[{key!r}]", entry)

    return check


def check_fields(options: Any, checks: Mapping[str, Check]) -> None:
    """Run the table of checks over the fields of a dataclass.

    Raises:
        PruneEnvError: the first field that cannot be, as its check says it.
    """
    assert set(checks) == {field.name for field in dataclasses.fields(options)}
    for name, check in checks.items():
        check(name, getattr(options, name))
