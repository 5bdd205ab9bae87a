"""Units of blocks that no trace of values can see: experts that a router chooses among.

Which experts a token meets depends on the data, so they are recognised by structure: a top-k over
what the rows of a matrix make (the router), beside parameters with one slice per row (the experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune_env.structure.groups import Axis, PrunableGroup, Role, Span
from prune_env.structure.rewrite import Kept, follows, tensors_of
from prune_env.structure.trace import Slot, Trace


def expert_groups(model: nn.Module, trace: Trace) -> tuple[PrunableGroup, ...]:
    """Groups of experts, not yet verified; never fewer kept than the router chooses.

    Their units live in the rows of the router and in dim 0 of the experts' parameters. Zeroing a
    row of a router does not stop it from being chosen: see `unrouted`.

    Args:
        model: the model that was traced.
        trace: its finished trace.
    """
    groups: dict[str, PrunableGroup] = {}
    for labels_E, chosen in trace.chosen:
        rows = [slot for slot in trace.slots.values() if _is(slot, labels_E)]
        router = next((slot.tensor for slot in rows if slot.role == "out"), None)
        if router is not None and router not in groups and chosen < len(labels_E):
            axes = _axes(model, rows, router)
            if axes:
                name = axes[-1].tensor.rpartition(".")[0]
                counts = _counts(model, axes)
                size = (len(labels_E),)
                groups[router] = PrunableGroup(name, size, axes + counts, min_keep=chosen)
    return tuple(groups.values())


def _is(slot: Slot, labels_E: Tensor) -> bool:
    return slot.dim == 0 and torch.equal(slot.labels, labels_E)


def _axes(model: nn.Module, rows: Sequence[Slot], router: str) -> tuple[Axis, ...]:
    """Axes of the router and of every parameter of the experts beside it; none without experts."""
    owner = router.rpartition(".")[0]
    home = owner.rpartition(".")[0]
    units = len(rows[0].labels)
    beside = {
        name: tensor
        for name, tensor in tensors_of(model).items()
        if name.startswith(f"{home}." if home else "") and tensor.shape[:1] == (units,)
    }
    slices = [name for name, tensor in beside.items() if tensor.ndim == 3]
    owners = {name.rpartition(".")[0] for name in slices}
    biases = [n for n, t in beside.items() if t.ndim == 2 and n.rpartition(".")[0] in owners]
    biases = [name for name in biases if name != router]
    made = [_axis(slot.tensor, units, slot.role) for slot in rows]
    made += [_axis(name, units, "shift") for name in biases]
    return tuple(made + [_axis(name, units, "out") for name in slices]) if slices else ()


def _axis(name: str, units: int, role: Role) -> Axis:
    return Axis(name, (0,), (Span(0, 1),), (units,), role)


def _counts(model: nn.Module, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Attributes of the router, the experts and their parents that count experts.

    None where another dim has the same size: then verification must find out which is which.
    """
    tensors, units = tensors_of(model), axes[0].sizes[0]
    if any(units in tensors[axis.tensor].shape[1:] for axis in axes):
        return ()
    owners = [axis.tensor.rpartition(".")[0] for axis in axes]
    found = []
    for path in dict.fromkeys([*owners, *(owner.rpartition(".")[0] for owner in owners)]):
        module = model.get_submodule(path)
        names = () if follows(module) else vars(module).items()
        prefix = f"{path}." if path else ""
        found += [prefix + name for name, value in names if type(value) is int and value == units]
    return tuple(_axis(path, units, "count") for path in found)


def with_experts(
    groups: Sequence[PrunableGroup], experts: Sequence[PrunableGroup]
) -> tuple[PrunableGroup, ...]:
    """`groups`, those of router rows replaced by the groups of the experts they choose."""
    by_router = {group.axes[0].tensor: group for group in experts}
    result = []
    for group in groups:
        made = (axis.tensor for axis in group.axes if axis.role == "out" and axis.dims == (0,))
        result.append(next((by_router[name] for name in made if name in by_router), group))
    return tuple(result)


def unrouted(
    model: nn.Module, groups: Sequence[PrunableGroup], kept: Kept
) -> AbstractContextManager[object]:
    """Inside the `with` block no router of `model` can choose a removed expert.

    Their logits are -inf, so softmax gives them nothing and top-k passes them over: what the
    network without them computes. Tensors alone cannot say this, since a router has no bias.

    Args:
        model: the network whose experts are masked.
        groups: groups of this model; only those of experts matter.
        kept: units that stay, by group name; groups not named stay whole.
    """
    removed: dict[int, Tensor] = {}
    tensors = tensors_of(model)
    for group, router in routers(groups, tensors):
        if group.name in kept and len(kept[group.name]) < group.units:
            gone_E = gone_along(group, router, kept[group.name])
            place = tensors[router].untyped_storage().data_ptr()
            removed[place] = gone_E | removed.get(place, torch.zeros_like(gone_E))
    return _Unrouted(removed) if removed else nullcontext()


def gone_along(group: PrunableGroup, tensor: str, kept_U: Tensor) -> Tensor:
    """Which indices along the first dim of a tensor belong to units that do not stay, bool."""
    (axis,) = (axis for axis in group.axes if axis.tensor == tensor)
    owner_S = axis.owners(group.grid)[0]
    return (owner_S >= 0) & ~torch.isin(owner_S, kept_U)


def routers(
    groups: Sequence[PrunableGroup], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[PrunableGroup, str]]:
    """Groups whose units nothing reads (they are chosen), each with the matrix that chooses."""
    for group in groups:
        roles = {axis.role for axis in group.axes}
        places = [axis.tensor for axis in group.axes if axis.role == "out"]
        matrices = [name for name in places if tensors[name].ndim == 2]
        if group.units > 1 and "in" not in roles and 0 < len(matrices) < len(places):
            yield group, matrices[0]


def choice_biases(group: PrunableGroup, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Vectors with a number per unit that are added before units are chosen."""
    shifts = (axis.tensor for axis in group.axes if axis.role == "shift")
    return tuple(name for name in shifts if tensors[name].ndim == 1)


class _Unrouted(TorchDispatchMode):
    """Puts -inf in the columns that rows of a router make; `removed` by address of its storage."""

    def __init__(self, removed: Mapping[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._removed = removed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "linear"):
            for tensor in tree_leaves(args):
                if isinstance(tensor, Tensor) and tensor.ndim == 2:
                    gone_E = self._removed.get(tensor.untyped_storage().data_ptr())
                    if gone_E is not None:
                        return out.masked_fill(gone_E.to(out.device), float("-inf"))
        return out
