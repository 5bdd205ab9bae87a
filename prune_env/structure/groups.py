"""Everything prunable is a grid of units and the places where those units live.

Legend: U units of a grid, S indices along one dim of a tensor.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from prune_env.errors import GroupError
from prune_env.structure.patterns import Pattern, TopK

Role = Literal["out", "in", "weight", "scale", "shift", "stat", "count"]
"""What a tensor does with the units on one axis.

`out` rows make their values, `in` columns read them, a `weight` is a unit of its own (or part of a
block of them: dims (outputs, inputs, ...)), `scale`, `shift` and `stat` are per-unit
vectors (normalisation, bias, running statistics), `count` is no tensor but an integer attribute
that counts units (`conv.groups`, a number of heads); masks and costs pass over it.
"""


@dataclass(frozen=True)
class Span:
    """Regular ownership: unit u owns the `width` indices from `start + u * width` on."""

    start: int
    width: int

    def owners_S(self, units: int, size: int) -> Tensor:
        """The unit that owns each of `size` indices, -1 where none does; shape (S,), int64."""
        owners_S = torch.full((size,), -1, dtype=torch.int64)
        stop = self.start + units * self.width
        owners_S[self.start : stop] = torch.arange(units).repeat_interleave(self.width)
        return owners_S


@dataclass(frozen=True)
class Table:
    """Irregular ownership (channel shuffle, interleaved concatenation): row u lists u's indices."""

    rows: tuple[tuple[int, ...], ...]

    def owners_S(self, units: int, size: int) -> Tensor:
        """The unit that owns each of `size` indices, -1 where none does; shape (S,), int64."""
        owners_S = torch.full((size,), -1, dtype=torch.int64)
        owners_S[torch.tensor(self.rows, dtype=torch.int64).reshape(-1)] = torch.arange(
            units
        ).repeat_interleave(self.width)
        return owners_S

    @property
    def width(self) -> int:
        """Indices owned by each unit (the same number for all)."""
        return len(self.rows[0])


def index_of(rows: Sequence[Sequence[int]]) -> Span | Table:
    """The shortest description of `rows[u]`, the indices owned by unit u."""
    width = len(rows[0])
    flat = [index for row in rows for index in row]
    if flat == list(range(flat[0], flat[0] + len(flat))):
        return Span(flat[0], width)
    return Table(tuple(tuple(row) for row in rows))


@dataclass(frozen=True)
class Axis:
    """Where the units of a grid live in one named tensor.

    Attributes:
        tensor: state_dict key (for the role `count`: dotted path of an integer attribute).
        dims: tensor dims the grid runs over, one per grid dim.
        index: which indices along each of `dims` a grid coordinate owns.
        sizes: length of the dense tensor along each of `dims`.
        role: what the tensor does with the units.
    """

    tensor: str
    dims: tuple[int, ...]
    index: tuple[Span | Table, ...]
    sizes: tuple[int, ...]
    role: Role = "out"

    @property
    def width(self) -> int:
        """Indices (of the joint dims) owned by each unit."""
        return math.prod(index.width for index in self.index)

    def owners(self, grid: Sequence[int]) -> tuple[Tensor, ...]:
        """For each dim, the grid coordinate that owns each index, -1 where none does."""
        places = zip(self.index, grid, self.sizes, strict=True)
        return tuple(index.owners_S(units, size) for index, units, size in places)


@dataclass(frozen=True)
class PrunableGroup:
    """Units that are removed together, as pure data: no model inside, no method that prunes.

    Attributes:
        name: name of the layer that makes the units, unique in a model.
        grid: shape of the grid of units.
        axes: every place where the units live.
        pattern: which units may stay together (order of removal, step of the levels).
        min_keep, max_keep: bounds on the kept units (`max_keep` None: all of them).
        multiple_of: kept units are a multiple of this (all units kept is always allowed).
        absent: units of the grid that the network lacks already, the last in the pattern's order.
        frozen: why the group cannot be pruned; empty when it can.
        verified: masked was seen equal to compact on random inputs and keep sets.
    """

    name: str
    grid: tuple[int, ...]
    axes: tuple[Axis, ...]
    pattern: Pattern = field(default_factory=TopK)
    min_keep: int = 1
    max_keep: int | None = None
    multiple_of: int = 1
    absent: int = 0
    frozen: str = ""
    verified: bool = False

    @property
    def units(self) -> int:
        """Number of units that the dense network has."""
        return self.cells - self.absent

    @property
    def cells(self) -> int:
        """Number of places in the grid: the units, and those that are absent."""
        return math.prod(self.grid)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Allowed numbers of kept units, ascending.

        Raises:
            GroupError: the bounds and the step leave no level at all.
        """
        top = self.units if self.max_keep is None else self.max_keep
        step = math.lcm(self.multiple_of, self.pattern.step(self.grid))
        first = math.ceil(self.min_keep / step) * step
        levels = list(range(first, top + 1, step))
        if top == self.units and (not levels or levels[-1] != self.units):
            levels.append(self.units)
        if not levels:
            raise GroupError(
                f"group '{self.name}' ({self.units} units) has no level from {self.min_keep} to "
                f"{top} kept units in steps of {step}. Widen min/max sparsity or lower multiple_of."
            )
        return tuple(levels)

    def nearest_level(self, kept: float) -> int:
        """The level closest to `kept` units; ties go to the larger."""
        above = bisect_left(self.levels, kept)
        around = self.levels[max(0, above - 1) : above + 1]
        return min(around, key=lambda level: (abs(level - kept), -level))


def expand(axis: Axis, units_U: Tensor, shape: Sequence[int]) -> Tensor:
    """Spread a value per unit over a tensor; elements that no unit owns get 0.

    Linear in `units_U`. A mask that keeps unowned elements is `1 - expand(axis, 1 - mask_U, ...)`.

    Args:
        axis: where the units live.
        units_U: one value per unit, in the shape of the grid.
        shape: shape of the tensor named by `axis`.

    Returns:
        A tensor of `shape` (a broadcast view: do not write to it).
    """
    values = units_U
    for dim, owners_S in enumerate(axis.owners(units_U.shape)):
        taken = values.index_select(dim, owners_S.clamp(min=0).to(values.device))
        gate = (
            (owners_S >= 0).to(values).reshape([-1 if d == dim else 1 for d in range(taken.ndim)])
        )
        values = taken * gate
    return _lift(values, axis.dims, len(shape)).expand(tuple(shape))


def pool(axis: Axis, elements: Tensor, grid: Sequence[int]) -> Tensor:
    """Sum elementwise values into one value per unit: the transpose of `expand`.

    Args:
        axis: where the units live.
        elements: values in the shape of the tensor named by `axis`.
        grid: shape of the grid of units.

    Returns:
        A tensor of shape `grid`.
    """
    rest = [dim for dim in range(elements.ndim) if dim not in axis.dims]
    values = elements.sum(dim=rest) if rest else elements
    remaining = sorted(axis.dims)
    values = values.permute([remaining.index(dim) for dim in axis.dims])
    for dim, (owners_S, units) in enumerate(zip(axis.owners(grid), grid, strict=True)):
        owned = (owners_S >= 0).nonzero().squeeze(1).to(values.device)
        target = list(values.shape)
        target[dim] = units
        source = values.index_select(dim, owned)
        values = values.new_zeros(target).index_add(dim, owners_S.to(values.device)[owned], source)
    return values


def _lift(values: Tensor, dims: tuple[int, ...], ndim: int) -> Tensor:
    """Place the dims of `values` at `dims` of an `ndim`-dimensional tensor, size 1 elsewhere."""
    order = sorted(range(len(dims)), key=lambda k: dims[k])
    shape = [1] * ndim
    for k in order:
        shape[dims[k]] = values.shape[k]
    return values.permute(order).reshape(shape)
