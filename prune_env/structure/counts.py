"""Integer attributes that count units (`num_heads`, `split_size`) must follow the tensors.

No list of names could be complete, so attributes are proposed by their value and believed only when
the compact network then computes what the masked one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice

import torch
from torch import nn

from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.structure.rewrite import follows
from prune_env.structure.scenes import Scene
from prune_env.structure.verify import Probe, verify

TRIES = 64
"""Sets of attributes tried per kind of group, smallest first."""


def verify_counted(
    model: nn.Module, scenes: Sequence[Scene], groups: Sequence[PrunableGroup], seed: int = 0
) -> tuple[PrunableGroup, ...]:
    """`verify`; a group that fails is tried again with attributes of its modules as `count` axes.

    The attributes are those of the modules that hold the group's tensors, and of their parents,
    whose value is the number of units or the size of a dim that the units live along. The smallest
    set that works is taken, found once per kind of group.

    Args:
        model: the dense network in eval mode; it is copied.
        scenes: ways to run it, a plain one first.
        groups: groups of this model; frozen ones pass through.
        seed: of the random weights, inputs and keep sets.
    """
    judged = verify(model, scenes, groups, seed)
    failed = [g for g, now in zip(groups, judged, strict=True) if now.frozen and not g.frozen]
    if not failed:
        return judged
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = _counted(Probe(model, scenes[0]), failed)
    if not found:
        return judged
    return verify(model, scenes, [found.get(group.name, group) for group in judged], seed)


def _counted(probe: Probe, groups: Sequence[PrunableGroup]) -> dict[str, PrunableGroup]:
    """By name, the groups that some set of counts repairs; groups of one kind need the same set."""
    chosen: dict[object, tuple[int, ...]] = {}
    found = {}
    for group in groups:
        counts = _candidates(probe.model, group)
        kind = tuple(_kind(probe.model, axis) for axis in counts)
        if kind not in chosen:
            chosen[kind] = _smallest(probe, group, counts)
        if chosen[kind]:
            axes = tuple(counts[number] for number in chosen[kind])
            found[group.name] = replace(group, axes=group.axes + axes)
    return found


def _smallest(probe: Probe, group: PrunableGroup, counts: Sequence[Axis]) -> tuple[int, ...]:
    numbers = range(len(counts))
    subsets = (chosen for size in numbers for chosen in combinations(numbers, size + 1))
    for chosen in islice(subsets, TRIES):
        axes = tuple(counts[number] for number in chosen)
        if len({axis.tensor for axis in axes}) == len(axes) and not probe.fault(
            [replace(group, axes=group.axes + axes)]
        ):
            return chosen
    return ()


def _kind(model: nn.Module, axis: Axis) -> tuple[object, ...]:
    path, _, attribute = axis.tensor.rpartition(".")
    return (type(model.get_submodule(path)), attribute, axis.width, axis.sizes)


def _candidates(model: nn.Module, group: PrunableGroup) -> list[Axis]:
    """Count axes for every attribute whose value could count the group's units."""
    known = {axis.tensor for axis in group.axes}
    places = {axis.sizes: axis.index for axis in group.axes if len(axis.dims) == 1}
    places.setdefault((group.units,), (Span(0, 1),))
    counts = []
    for path, value in _integers(model, group):
        if path not in known and (value,) in places:
            counts.append(Axis(path, (0,), places[(value,)], (value,), "count"))
    return counts


def _integers(model: nn.Module, group: PrunableGroup) -> Iterator[tuple[str, int]]:
    owners = [axis.tensor.rpartition(".")[0] for axis in group.axes if axis.role != "count"]
    parents = [owner.rpartition(".")[0] for owner in owners]
    for path in dict.fromkeys([*owners, *parents]):
        module = model.get_submodule(path)
        if not follows(module):
            for attribute, value in vars(module).items():
                if type(value) is int:
                    yield f"{path}.{attribute}" if path else attribute, value
