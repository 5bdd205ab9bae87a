"""Doing what a plan says: `masked` for a look, `compact` for good."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prune_env.structure.blocks import unrouted
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.multihead import free_widths
from prune_env.structure.rewrite import Layout, assign, places_of, tensors_of
from prune_env.surgery.plan import PruningPlan


@contextmanager
def masked(model: nn.Module, plan: PruningPlan) -> Iterator[nn.Module]:
    """Inside the `with` block every removed unit of `model` is zero; shapes stay.

    Units that are chosen, not read (experts), cannot be chosen there.

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
    """A new, smaller network without the removed units; `model` stays as it is.

    Computes what `masked` computes. BatchNorm statistics are those of the dense network: follow
    with `reestimate_batchnorm` or `finetune`.

    Raises:
        PlanError: the plan was made for another model.
    """
    plan.check(model)
    layout, kept = Layout(plan.groups), plan.indices()
    small = free_widths(copy.deepcopy(model))
    with torch.no_grad():
        shrunk = layout.shrink(tensors_of(small), kept)
    assign(small, {name: t.detach() for name, t in shrunk.items()}, layout.sizes(kept))
    return small


class Candidates:
    """Builds one smaller network after another in the same shell.

    Compaction without the copy of the dense network: only tensors that units live in, and buffers
    (which repair may rewrite), are replaced. A network returned by `build` is valid until the next.
    """

    def __init__(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> None:
        self._shell = free_widths(copy.deepcopy(model)).eval()
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
