"""What users hand to a task: plans, sparsities, budgets. Checked here once, trusted behind.

Legend: G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prune_env.checks import refuse
from prune_env.errors import PlanError
from prune_env.mdp.rules import Floats
from prune_env.structure.groups import PrunableGroup

Sets = Sequence[frozenset[int]]
"""The levels of every group, for quick look-ups."""


def levels_of(kept: Any, groups: Sequence[PrunableGroup], sets: Sets) -> tuple[int, ...]:
    """Kept units, one level for each of the first `len(kept)` groups.

    Raises:
        PlanError: they are no whole numbers, or one is no level of its group.
    """
    row = tuple(_array(kept, "kept units", "iu").tolist())
    if len(row) > len(groups):
        raise PlanError(f"{len(row)} numbers of kept units for {len(groups)} groups.")
    for group, level, known in zip(groups, row, sets, strict=False):
        if level not in known:
            raise PlanError(
                f"{level} kept units is not a level of group '{group.name}' ({group.units} "
                f"units, levels {group.levels[0]} to {group.levels[-1]}). Use task.decode(...)."
            )
    return row


def values_of(values: Any, count: int, name: str, low: float, high: float) -> Floats:
    """`count` numbers in [low, high].

    Raises:
        PlanError: there are more or fewer, or one is no number or out of range.
    """
    array_G: Floats = _array(values, name, "iuf").astype(np.float64)
    if len(array_G) != count:
        raise PlanError(f"{len(array_G)} {name} for {count} groups.")
    if not ((array_G >= low) & (array_G <= high)).all():  # NaN fails both
        refuse(name, array_G.tolist(), f"numbers in [{low:g}, {high:g}], one per group", PlanError)
    return array_G


def value_of(value: Any, name: str, low: float, high: float) -> float:
    """A number in [low, high].

    Raises:
        PlanError: it is none.
    """
    return float(values_of([value], 1, name, low, high)[0])


def _array(values: Any, name: str, kinds: str) -> Any:
    """A vector of numbers; an empty one fits every kind."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # ragged; a tensor with gradients
        array = np.array(None)
    if array.ndim != 1 or (array.dtype.kind not in kinds and array.size):
        wanted = "whole numbers" if "f" not in kinds else "numbers"
        refuse(name, values, f"{wanted} in a list, one per group", PlanError)
    return array if array.size else array.astype(np.int64)
