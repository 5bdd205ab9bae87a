"""The density of block-sparse attention as groups: which blocks may go, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prune_env.attention.checks import BUFFER, sparse_modules
from prune_env.errors import GroupError, ModelError
from prune_env.structure.groups import Axis, PrunableGroup, Span


def density_groups(model: nn.Module) -> tuple[PrunableGroup, ...]:
    """The attention blocks of every layer as units, in order of execution.

    The grid is (N, N) where heads share their blocks, else (heads, N, N). Blocks that are removed
    already, or that causality forbids, come last in the order and are `absent`: the blocks of the
    given model are its dense ones. The diagonal is `min_keep`. Removed units are False in the
    buffer: no tensor shrinks. Costs are exact for sequences as long as the masks cover: sparsify
    with the `length` that the model will read.

    Raises:
        ModelError: the model has no block masks.
        GroupError: a mask is not a beginning of its layout's order, so that levels would not nest.
    """
    modules = sparse_modules(model)
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has no block masks. Make them with sparsify_attention."
        )
    return tuple(_group(name, module) for name, module in modules.items())


def _group(name: str, module: Any) -> PrunableGroup:
    mask_HNN, layout = module.get_buffer(BUFFER).cpu(), module.block_layout
    heads, blocks = mask_HNN.shape[:2]
    shared = not layout.per_head
    units = mask_HNN[0] if shared else mask_HNN
    kept = int(units.sum())
    again = torch.zeros(units.numel(), dtype=torch.bool)
    again[layout.order(units)[:kept]] = True
    if not torch.equal(again.reshape(units.shape).expand_as(mask_HNN), mask_HNN):
        raise GroupError(
            f"the block mask of '{name}' is not what its layout keeps first ({layout}). Prune the "
            "masks that sparsify_attention made, by levels of their groups."
        )
    grid = tuple(units.shape)
    dims = (1, 2) if shared else (0, 1, 2)
    tensor = f"{name}.{BUFFER}" if name else BUFFER
    axis = Axis(tensor, dims, tuple(Span(0, 1) for _ in grid), grid)
    least = blocks if shared else heads * blocks
    gone = units.numel() - kept
    return PrunableGroup(f"{name}.blocks", grid, (axis,), layout, least, absent=gone)


def follow_heads(model: nn.Module, groups: Sequence[PrunableGroup]) -> tuple[PrunableGroup, ...]:
    """Groups of heads, found on the dense model, whose removal also cuts the block masks.

    A group makes heads of a module with a block mask when it makes values inside of it and its
    units divide the heads. Masked, its heads still read their blocks; their values are zero.

    Args:
        model: the sparse copy.
        groups: what `find_groups` found on the dense model.
    """
    modules = sparse_modules(model)
    return tuple(_following(group, modules) for group in groups)


def _following(group: PrunableGroup, modules: Mapping[str, Any]) -> PrunableGroup:
    makers = [axis.tensor for axis in group.axes if axis.role == "out" and len(axis.dims) == 1]
    axes = list(group.axes)
    for name, module in modules.items():
        heads = module.get_buffer(BUFFER).shape[0]
        inside = any(tensor.startswith(f"{name}.") for tensor in makers)
        if inside and len(group.grid) == 1 and heads % group.units == 0:
            index = (Span(0, heads // group.units),)
            # A mask has no value to set to zero: a statistic is cut, and left alone by masking.
            axes.append(Axis(f"{name}.{BUFFER}", (0,), index, (heads,), "stat"))
    return replace(group, axes=tuple(axes))


def block_macs(model: nn.Module) -> dict[str, int]:
    """MACs per sequence of one element of every block mask, by name of the buffer."""
    return {
        f"{name}.{BUFFER}": module.mask_macs[BUFFER].per_block
        for name, module in sparse_modules(model).items()
    }
