"""How statistics are cut to fit the memory: columns into blocks, groups into portions.

Legend: D columns of a flattened weight, U units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prune_env.structure.groups import PrunableGroup

READ = ("in", "weight")
"""Roles of the axes whose tensors read units; see `Axis`."""

LEAST = 64 * 2**20
"""Bytes of covariances that any network is allowed at once."""


def default_memory(model: nn.Module) -> int:
    """Half of what the weights take, so that a deep network never holds all its covariances."""
    weights = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    return max(LEAST, sum(weights.values()) // 2)


def portions(
    groups: Sequence[PrunableGroup],
    costs: Mapping[str, Mapping[int, int]],
    memory: float,
) -> Iterator[tuple[PrunableGroup, ...]]:
    """Runs of groups whose statistics fit `memory` together; a group that never fits is alone.

    Args:
        groups: in order.
        costs: by state_dict key, bytes of each tensor of statistics; the same number of a tensor
            means that it is shared.
        memory: bytes.
    """
    portion: list[PrunableGroup] = []
    held: dict[int, int] = {}
    for group in groups:
        read = [costs.get(axis.tensor, {}) for axis in group.axes if axis.role in READ]
        more = {number: size for cost in read for number, size in cost.items()}
        if portion and sum((held | more).values()) > memory:
            yield tuple(portion)
            portion, held = [], {}
        portion.append(group)
        held |= more
    yield tuple(portion)


def units_of_columns(
    group: PrunableGroup, tensor: str, width: int, kernel: int
) -> tuple[Tensor, int]:
    """For every column of a weight, the unit of the group that it goes with, -1 for none; (D,).

    Where single weights go, units of a row of the grid are meant. Also the columns of a unit.
    """
    unit_D = torch.full((width,), -1, dtype=torch.int64)
    for axis in group.axes:
        if axis.tensor == tensor and axis.role == "weight":
            unit_D = torch.arange(width) // (width // math.prod(group.grid[1:]))
        elif axis.tensor == tensor and axis.role == "in" and axis.dims in ((0,), (1,)):
            owners_D = axis.owners(group.grid)[0].repeat_interleave(kernel)
            unit_D = torch.where(owners_D >= 0, owners_D, unit_D)
    owned = int((unit_D >= 0).sum())
    return unit_D, owned // max(1, int(unit_D.max()) + 1)


def blocks_of(
    groups: Sequence[PrunableGroup], tensor: str, width: int, kernel: int, limit: int
) -> tuple[Tensor, ...]:
    """Columns of a weight in blocks of at most `limit`, whole units in each.

    All of them where that is few enough. Of a unit that is wider itself there are none.
    """
    if width <= limit:
        return (torch.arange(width),)
    free_D, found = torch.ones(width, dtype=torch.bool), []
    for group in groups:
        unit_D, block = units_of_columns(group, tensor, width, kernel)
        unit_D = unit_D.masked_fill(~free_D, -1)
        if not 0 < block <= limit:
            continue
        number_D = unit_D.div(limit // block, rounding_mode="floor")
        for number in range(int(number_D.max()) + 1):
            columns_D = (number_D == number).nonzero().squeeze(1)
            free_D[columns_D] = False
            if len(columns_D):
                found.append(columns_D)
    return tuple(found)
