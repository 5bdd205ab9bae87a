"""What a user may ask of groups before the search: leave out, bound, round."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar

from prune_env.errors import GroupError
from prune_env.structure.groups import PrunableGroup

T = TypeVar("T", int, float)
PerGroup: TypeAlias = T | Mapping[str, T]
"""One value for all groups, or values by layer name or glob (the first match wins)."""


def layers_of(group: PrunableGroup) -> tuple[str, ...]:
    """Names of the group and of the layers that make its units, in order of execution."""
    roles = ("out", "weight")
    makers = (axis.tensor.rpartition(".")[0] for axis in group.axes if axis.role in roles)
    return tuple(dict.fromkeys((group.name, *makers)))


def touched_by(group: PrunableGroup) -> tuple[str, ...]:
    """Names of the group and of all layers that hold a piece of its units: makers and readers."""
    holders = (axis.tensor.rpartition(".")[0] for axis in group.axes)
    return tuple(dict.fromkeys((group.name, *holders)))


def constrain(
    groups: Sequence[PrunableGroup],
    *,
    ignore: Iterable[str] = (),
    min_sparsity: PerGroup[float] = 0.0,
    max_sparsity: PerGroup[float] = 1.0,
    multiple_of: PerGroup[int] = 1,
) -> tuple[PrunableGroup, ...]:
    """Groups with the user's wishes written into them.

    Args:
        groups: what `find_groups` returned.
        ignore: layer names or globs. Such a layer keeps every row and column: groups that make
            units in it are frozen, and those whose units it reads. To keep what a layer makes and
            no more, give it a `max_sparsity` of 0.
        min_sparsity, max_sparsity: bounds on the fraction of units removed; rounded for a group
            that goes as a whole or not at all.
        multiple_of: kept units are a multiple of this; a group with fewer units is frozen.

    Raises:
        GroupError: a name or glob matches nothing, or a bound is out of range.
    """
    names = {name for group in groups for name in layers_of(group)}
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    for pattern in ignore:
        _require_match(pattern, {name for group in groups for name in touched_by(group)})
    for value in (min_sparsity, max_sparsity, multiple_of):
        for pattern in value if isinstance(value, Mapping) else ():
            _require_match(pattern, names)
    result = []
    for group in groups:
        held = touched_by(group)
        ignored = next((p for p in ignore if any(fnmatchcase(n, p) for n in held)), None)
        if ignored is not None and not group.frozen:
            group = replace(group, frozen=f"ignored by '{ignored}'")
        low, high = _value(min_sparsity, group, 0.0), _value(max_sparsity, group, 1.0)
        result.append(_bound(group, low, high, _value(multiple_of, group, 1)))
    return tuple(result)


def _bound(group: PrunableGroup, low: float, high: float, multiple: int) -> PrunableGroup:
    if not 0.0 <= low <= high <= 1.0:
        raise GroupError(
            f"sparsity bounds of group '{group.name}' are [{low}, {high}]. "
            "Give 0 <= min_sparsity <= max_sparsity <= 1."
        )
    if multiple < 1:
        raise GroupError(f"multiple_of is {multiple} for group '{group.name}'. Give 1 or more.")
    if group.frozen:
        return group
    if multiple > group.units:
        return replace(group, frozen=f"{group.units} units, fewer than multiple_of={multiple}")
    least, most = _range(group, low, high)
    min_keep = max(group.min_keep, least)
    max_keep = most if low > 0 else group.max_keep
    bounded = replace(group, min_keep=min_keep, max_keep=max_keep, multiple_of=multiple)
    bounded.levels  # noqa: B018 - raises GroupError when nothing is left
    return bounded


def _range(group: PrunableGroup, low: float, high: float) -> tuple[int, int]:
    """Fewest and most units kept with sparsity in [low, high]; all or nothing rounds the bounds."""
    units = group.units
    if units == 1 and group.min_keep == 0:  # or 90 % at most would mean that it stays
        return round(1.0 - high), round(1.0 - low)
    # The small slack keeps 1 - 0.3 of 10 units at 7, not at 8, in floating point.
    return math.ceil((1.0 - high) * units - 1e-9), math.floor((1.0 - low) * units + 1e-9)


def _matches(pattern: str, group: PrunableGroup) -> bool:
    return any(fnmatchcase(name, pattern) for name in layers_of(group))


def _value(value: PerGroup[T], group: PrunableGroup, default: T) -> T:
    if not isinstance(value, Mapping):
        return value
    return next((v for pattern, v in value.items() if _matches(pattern, group)), default)


def _require_match(pattern: str, names: set[str]) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or sorted(names)[:3]
    raise GroupError(
        f"layer pattern '{pattern}' matches none of the {len(names)} layers with units. "
        f"Nearest: {', '.join(near)}. `print(format_groups(groups))` lists them."
    )
