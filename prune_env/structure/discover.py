"""What can be removed together: `find_groups`.

A trace (trace.py, ops.py) follows every unit through the network in several scenes (scenes.py);
here its labels become groups, and every group is then verified by running the network with it cut
(verify.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from prune_env.progress import progress
from prune_env.structure.blocks import expert_groups, with_experts
from prune_env.structure.copies import copied, in_plain_order, plain
from prune_env.structure.counts import verify_counted
from prune_env.structure.coverage import not_followed
from prune_env.structure.groups import Axis, PrunableGroup, index_of
from prune_env.structure.inputs import Inputs, map_tensors
from prune_env.structure.labels import Ints
from prune_env.structure.ops import RULES
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.scenes import Scene, scenes_of, undisturbed
from prune_env.structure.trace import Reading, Slot, Trace

READINGS = tuple(
    Reading(grouped, factored)
    for grouped in ("groups", "positions")
    for factored in ("outer", "inner", "middle")
)


def find_groups(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    more_inputs: Sequence[Inputs] = (),
    seed: int = 0,
) -> tuple[PrunableGroup, ...]:
    """Every group of units that can be removed together, in order of execution.

    Any network that runs is accepted; what cannot be pruned comes back frozen, with the reason.
    Every group that is not frozen was verified: masked and compact networks agreed on random
    inputs and keep sets. Every parameter is in some group; those that could not be followed are in
    frozen ones at the end, whose reasons begin with "not followed".

    The network is run in eval and in train mode, and with its decisions about data turned around,
    so that layers which one plain pass does not reach are cut with the others.

    Args:
        model: the dense network; it is not changed.
        example_inputs: one batch: a tensor, a tuple (`model(*inputs)`) or a dict
            (`model(**inputs)`). Two samples are enough.
        more_inputs: further batches; those that run other ops than the ones before are followed
            too.
        seed: of the verification.

    Raises:
        ModelError: the model does not run on the inputs, or cannot be copied.
    """
    dense = plain(copied(model))
    with undisturbed():
        torch.manual_seed(seed)
        batches = [map_tensors(in_plain_order, i) for i in (example_inputs, *more_inputs)]
        return _best(dense, scenes_of(dense, batches), seed)


def _best(dense: nn.Module, scenes: Sequence[Scene], seed: int) -> tuple[PrunableGroup, ...]:
    """The groups of the reading under which most can be pruned."""
    best: tuple[PrunableGroup, ...] = ()
    ambiguous: set[str] = set()
    for reading in READINGS:
        if not reading.differs_in(READINGS[0]) <= ambiguous:
            continue
        trace = Trace(reading, RULES)
        with progress("follow units", len(scenes), "passes", passing=True) as bar:
            for scene in scenes:
                trace.run(dense, scene)
                bar.step(scene.name)
        ambiguous |= trace.ambiguous
        groups = with_experts(groups_of(trace), expert_groups(dense, trace))
        groups += not_followed(dense, groups, trace)
        if best and _prunable(dense, groups) <= _prunable(dense, best):
            continue  # verification can only freeze
        groups = verify_counted(dense, scenes, groups, seed)
        if not best or _prunable(dense, groups) > _prunable(dense, best):
            best = groups
    return best


def _prunable(model: nn.Module, groups: Sequence[PrunableGroup]) -> tuple[int, int]:
    """Elements of the tensors that some group can shrink, then how few groups are frozen: what
    tells two readings apart."""
    live = [axis for group in groups if not group.frozen for axis in group.axes]
    touched = {axis.tensor for axis in live if axis.role in ("in", "out")}
    elements = sum(t.numel() for name, t in tensors_of(model).items() if name in touched)
    return elements, -sum(bool(group.frozen) for group in groups)


def groups_of(trace: Trace) -> tuple[PrunableGroup, ...]:
    """Tied labels as groups: units that live in the same places in the same numbers."""
    roots = trace.book.roots()
    # A single number, such as the scale of CLIP's products, has no dimension for units.
    several = [slot for slot in trace.slots.values() if slot.labels.ndim]
    slots = [_oriented(trace, slot, roots) for slot in several]
    roots = trace.book.roots()
    reasons = trace.book.reasons(roots)
    places: dict[int, dict[int, list[int]]] = {}
    for number, slot in enumerate(slots):
        for index, root in enumerate(roots[slot.labels.numpy()].tolist()):
            if root:
                places.setdefault(root, {}).setdefault(number, []).append(index)
    families: dict[tuple[object, ...], list[int]] = {}
    for root, found in places.items():
        shape = tuple((number, len(found[number])) for number in sorted(found))
        families.setdefault((*shape, reasons.get(root, "")), []).append(root)
    groups = []
    for key, members in families.items():
        units = [places[root] for root in members]
        group = _group(slots, units, str(key[-1]))
        if group is not None:
            groups.append(group)
    order = {slot.tensor: number for number, slot in reversed(list(enumerate(slots)))}
    groups.sort(key=lambda group: order[_maker(group).tensor])
    return _named_apart(groups)


def _oriented(trace: Trace, slot: Slot, roots: Ints) -> Slot:
    """The slot with the one dim its labels vary along, labels (S,)."""
    if slot.dim is not None:
        return slot
    found = roots[slot.labels.numpy()]
    varying = [d for d in range(found.ndim) if (found != found.take([0], axis=d)).any()]
    if len(varying) > 1:
        trace.book.freeze(slot.labels, f"units spread over several dims of '{slot.tensor}'")
    dim = varying[0] if varying else int(np.argmax(found.shape))
    line = slot.labels.movedim(dim, 0).reshape(found.shape[dim], -1)[:, 0]
    return Slot(slot.tensor, dim, slot.role, line.contiguous())


def _group(
    slots: Sequence[Slot], units: list[dict[int, list[int]]], reason: str
) -> PrunableGroup | None:
    numbers = sorted(units[0])
    makers = [n for n in numbers if slots[n].role == "out"]
    if not makers:
        return None
    units.sort(key=lambda unit: unit[makers[0]])
    axes = []
    for number in numbers:
        slot = slots[number]
        assert slot.dim is not None
        index = index_of([unit[number] for unit in units])
        axes.append(Axis(slot.tensor, (slot.dim,), (index,), (len(slot.labels),), slot.role))
    if not reason and len(units) == 1:
        reason = "only one unit"
    if not reason and not any(axis.role == "in" for axis in axes):
        reason = "nothing reads it"
    name = slots[makers[0]].tensor.removesuffix("weight").rstrip("._") or "model"
    return PrunableGroup(name, (len(units),), tuple(axes), frozen=reason)


def _maker(group: PrunableGroup) -> Axis:
    return next(axis for axis in group.axes if axis.role == "out")


def _named_apart(groups: Sequence[PrunableGroup]) -> tuple[PrunableGroup, ...]:
    """Number the groups that share a layer: 'conv', 'conv' become 'conv:0', 'conv:1'."""
    total, seen, result = Counter(group.name for group in groups), Counter[str](), []
    for group in groups:
        name = group.name if total[group.name] == 1 else f"{group.name}:{seen[group.name]}"
        seen[group.name] += 1
        result.append(replace(group, name=name))
    return tuple(result)
