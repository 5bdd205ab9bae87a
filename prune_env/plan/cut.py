"""Doing what a plan says and no more: `masked` for a look, `compact` for good, as they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prune_env.plan.plan import PruningPlan
from prune_env.structure.blocks import unrouted
from prune_env.structure.entry import copy_of
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.multihead import free_widths
from prune_env.structure.rewrite import Layout, assign, places_of, tensors_of


@contextmanager
def masked(model: nn.Module, plan: PruningPlan) -> Iterator[nn.Module]:
    """Removed units of `model` are zero inside the `with` block, and nothing is repaired.

    Shapes stay. Units that are chosen, not read (experts), cannot be chosen there.

    The weights are restored on leaving, also after an error.

    Raises:
        PlanError: the plan was made for another model.
    """
    plan.check(model)
    tensors = tensors_of(model)
    zeroed = Layout(plan.groups).mask(tensors, plan.indices())
    saved = {name: tensors[name].detach().clone() for name in zeroed}
    try:
        _write(tensors, zeroed)
        with unrouted(model, plan.groups, plan.indices()):
            yield model
    finally:
        _write(tensors, saved)


def _write(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def compact(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A new, smaller network without the removed units, of which nothing is repaired.

    Computes what `masked` computes, and is what a search measured only if that repaired nothing
    either: `prune_env.apply` gives the network that was measured. `model` stays as it is.

    Raises:
        PlanError: the plan was made for another model.
    """
    return cut(model, plan, {})


def cut(model: nn.Module, plan: PruningPlan, overlay: Mapping[str, Tensor]) -> nn.Module:
    """`compact` with tensors that take the place of the dense ones before the cut (overlays.py)."""
    plan.check(model)
    layout, kept = Layout(plan.groups), plan.indices()
    small = free_widths(copy_of(model))
    with torch.no_grad():
        shrunk = layout.shrink({**tensors_of(small), **overlay}, kept)
    tensors = {name: t.detach() for name, t in {**overlay, **shrunk}.items()}
    assign(small, tensors, layout.sizes(kept))
    _rest(small, plan)
    return small


def _rest(small: nn.Module, plan: PruningPlan) -> None:
    """What lost its every weight has nothing to train: all zero, it looks like a beginning."""
    parameters = dict(small.named_parameters(remove_duplicate=False))
    for group in plan.groups:
        if not plan.kept[group.name] and not group.pattern.shrinks:
            for axis in group.axes:
                if axis.tensor in parameters:
                    parameters[axis.tensor].requires_grad_(False)


class Candidates:
    """Builds one smaller network after another in the same shell.

    Compaction without the copy of the dense network: only tensors that units live in, and buffers
    (which repair may rewrite), are replaced. A network returned by `build` is valid until the next.
    """

    def __init__(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> None:
        self._shell = free_widths(copy_of(model)).eval()
        self._shell.requires_grad_(False)
        self._dense = {name: t.detach() for name, t in tensors_of(self._shell).items()}
        self._layout = Layout(groups)
        self._places = places_of(self._shell)
        buffers = {name for name, _ in self._shell.named_buffers()}
        self._buffers = {name: t for name, t in self._dense.items() if name in buffers}
        axes = [axis for group in groups for axis in group.axes if axis.role != "count"]
        self._lived = {axis.tensor: self._dense[axis.tensor] for axis in axes}

    def build(
        self, kept: Mapping[str, Tensor], overlay: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """The network with these units; equal to `compact` of the same plan.

        Args:
            kept: units that stay, by group name.
            overlay: tensors that take the place of the dense ones before the cut (see repair.py).
        """
        overlay = overlay or {}
        self._lived |= {name: self._dense[name] for name in overlay}
        tensors = {name: buffer.clone() for name, buffer in self._buffers.items()}
        tensors |= {name: t for name, t in self._lived.items() if name not in tensors}
        tensors |= overlay
        tensors |= self._layout.shrink({**self._dense, **overlay}, kept)
        assign(self._shell, tensors, self._layout.sizes(kept), self._places)
        return self._shell
