"""Two rounds of pruning as one: where the units of a cut network live in the dense one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prune_env.errors import PlanError
from prune_env.structure.groups import Axis, PrunableGroup, Span, Table, index_of
from prune_env.structure.rewrite import Kept, Layout

Staying = Mapping[tuple[str, int], Tensor]
"""By tensor (or path of a count) and dim: which of the dense indices stay, bool."""


def in_dense_terms(
    groups: Sequence[PrunableGroup], kept: Kept, later: Sequence[PrunableGroup]
) -> tuple[PrunableGroup, ...]:
    """Groups of the network that is left when `groups` keep `kept`, as groups of the dense one.

    Their units own what they owned; of what is gone nobody is the owner. So all groups together cut
    the dense network to what two cuts leave.

    Raises:
        PlanError: the later groups are of another network.
    """
    staying = _staying(Layout(groups), kept)
    return tuple(
        dataclasses.replace(group, axes=tuple(_moved(axis, group, staying) for axis in group.axes))
        for group in later
    )


def _staying(layout: Layout, kept: Kept) -> Staying:
    masks = layout.unit_masks(kept)
    owners = {(name, dim): found for name, at in layout.cuts.items() for dim, found in at.items()}
    for path, places in layout.counts.items():
        owners[path, 0] = [(g, axis.owners(layout.groups[g].grid)[0]) for g, axis in places]
    return {
        place: torch.stack([masks[g][owner_S] | (owner_S < 0) for g, owner_S in found]).all(0)
        for place, found in owners.items()
    }


def _moved(axis: Axis, group: PrunableGroup, staying: Staying) -> Axis:
    index, sizes = list(axis.index), list(axis.sizes)
    for number, dim in enumerate(axis.dims):
        stay_S = staying.get((axis.tensor, dim))
        if stay_S is None:
            continue
        if int(stay_S.sum()) != sizes[number]:
            raise PlanError(
                f"group '{group.name}' of the second plan expects {sizes[number]} along dim {dim} "
                f"of '{axis.tensor}', the first plan leaves {int(stay_S.sum())}. The second plan "
                "must be made on the network that the first one cuts."
            )
        index[number] = _lifted(index[number], group.grid[number], stay_S)
        sizes[number] = len(stay_S)
    return dataclasses.replace(axis, index=tuple(index), sizes=tuple(sizes))


def _lifted(index: Span | Table, units: int, stay_S: Tensor) -> Span | Table:
    """Indices among those that stay, as dense ones."""
    if bool(stay_S.all()) or not index.width:
        return index
    owners_S = index.owners_S(units, int(stay_S.sum()))
    rows_UW = owners_S.argsort(stable=True)[int((owners_S < 0).sum()) :].reshape(units, -1)
    return index_of(stay_S.nonzero().squeeze(1)[rows_UW].tolist())
