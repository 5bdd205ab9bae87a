"""Groups and kept units as JSON has them, and back: checked before anything is made of them.

No file takes more memory than its own length: a unit of a large grid has a bit in it, and sizes are
only numbers until they are held against a model.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prune_env.records import read_record, read_value
from prune_env.storage import Unreadable
from prune_env.structure.groups import Axis, PrunableGroup, Span, Table
from prune_env.structure.patterns import PATTERNS, Pattern

LISTED = 4096
"""A grid of more units is written as a bit per unit, not as a list of the kept."""


@dataclass(frozen=True)
class _Bits:
    bits: str


@dataclass(frozen=True)
class _Rows:
    rows: tuple[tuple[int, ...], ...]


def kept_content(units: Sequence[int], count: int) -> Any:
    """Kept units as JSON has them: a list, or base64 of a bit for each of `count` units."""
    if count <= LISTED:
        return list(units)
    mask = np.zeros(count, dtype=bool)
    mask[list(units)] = True
    return {"bits": base64.b64encode(np.packbits(mask).tobytes()).decode()}


def read_kept(value: Any, count: int, place: str) -> tuple[int, ...]:
    """What `kept_content` made of `count` units.

    Raises:
        Unreadable: it is something else.
    """
    found = read_value(tuple[int, ...] | _Bits, value, place)
    if not isinstance(found, _Bits):
        _require(count <= LISTED, f"{place} is a list; {count} units are written as bits")
        return tuple(found)
    try:
        packed = np.frombuffer(base64.b64decode(found.bits, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise Unreadable(f"{place} is no base64: {error}") from error
    _require(len(packed) == (count + 7) // 8, f"{place} has {8 * len(packed)} bits for {count}")
    return tuple(np.unpackbits(packed).nonzero()[0].tolist())


def group_content(group: PrunableGroup) -> dict[str, Any]:
    """A group as JSON has it."""
    pattern = {"kind": type(group.pattern).__name__, **dataclasses.asdict(group.pattern)}  # type: ignore[call-overload]
    axes = [_axis_content(axis) for axis in group.axes]
    return {**dataclasses.asdict(group), "pattern": pattern, "axes": axes}


def _axis_content(axis: Axis) -> dict[str, Any]:
    index = [
        [i.start, i.width] if isinstance(i, Span) else {"rows": [list(row) for row in i.rows]}
        for i in axis.index
    ]
    return {**dataclasses.asdict(axis), "index": index}


def read_group(value: Any, place: str) -> PrunableGroup:
    """What `group_content` wrote.

    Raises:
        Unreadable: names the field that is missing, of another kind, or fits no group.
    """
    group = read_record(PrunableGroup, value, place, {Pattern: _pattern, Span | Table: _index})
    _require(bool(group.grid) and min(group.grid) >= 1, f"{place}.grid has no units")
    counts = (group.min_keep, group.absent, group.multiple_of - 1, group.max_keep or 0)
    _require(min(counts) >= 0, f"{place} has a bound below zero, or multiples of nothing")
    _require(group.units >= 1, f"{place} has no units")
    _require(any(a.role != "count" for a in group.axes), f"{place} lives in no tensor")
    for number, axis in enumerate(group.axes):
        _check_axis(axis, group.grid, f"{place}.axes[{number}]")
    try:
        step = group.pattern.step(group.grid)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise Unreadable(f"{place}.pattern does not fit the grid: {error}") from error
    _require(step >= 1, f"{place}.pattern has steps of {step} units")
    return group


def _check_axis(axis: Axis, grid: tuple[int, ...], place: str) -> None:
    """Whether every index of an axis is there, once, by arithmetic alone."""
    lengths = {len(axis.dims), len(axis.index), len(axis.sizes), len(grid)}
    _require(len(lengths) == 1, f"{place} has another number of dims than its grid")
    distinct = len(set(axis.dims)) == len(axis.dims)
    _require(distinct and min(axis.dims) >= 0, f"{place}.dims are {list(axis.dims)}")
    for index, units, size in zip(axis.index, grid, axis.sizes, strict=True):
        if isinstance(index, Span):
            least = 0 if axis.role == "count" else 1  # an attribute may only lie beside the units
            fits = index.start >= 0 and index.width >= least
            fits = fits and index.start + units * index.width <= size
        else:
            flat = [entry for row in index.rows for entry in row]
            fits = len(index.rows) == units and {len(row) for row in index.rows} == {index.width}
            fits = fits and len(set(flat)) == len(flat) >= 1
            fits = fits and min(flat) >= 0 and max(flat) < size
        _require(fits, f"{place}.index does not fit {units} units along {size}")


def _pattern(value: Any, place: str) -> Pattern:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    _require(isinstance(kind, str) and kind in PATTERNS, f"{place} is unknown")
    fields = {name: entry for name, entry in value.items() if name != "kind"}
    return read_record(PATTERNS[str(kind)], fields, place)


def _index(value: Any, place: str) -> Span | Table:
    found = read_value(tuple[int, int] | _Rows, value, place)
    return Table(found.rows) if isinstance(found, _Rows) else Span(*found)


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise Unreadable(said)
