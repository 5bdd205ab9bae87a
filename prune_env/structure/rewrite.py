"""Cutting tensors down to the kept units and putting them back into a network.

This is the table that makes attributes (`out_channels`, `num_features`) follow the tensors. Above
it, nothing knows what kind of module a unit lives in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import GroupError
from prune_env.structure.entry import require_network
from prune_env.structure.groups import Axis, PrunableGroup, expand
from prune_env.structure.skip import BRANCHES, OUTPUTS, switch

Kept = Mapping[str, Tensor]
"""Kept units per group name: flat unit indices, int64, ascending."""


class Layout:
    """Where groups live, turned around: for every tensor, which indices survive a set of units."""

    def __init__(self, groups: Iterable[PrunableGroup]) -> None:
        self.groups = {group.name: group for group in groups}
        self.cuts: dict[str, dict[int, list[tuple[str, Tensor]]]] = {}
        self.counts: dict[str, list[tuple[str, Axis]]] = {}
        for group in self.groups.values():
            for axis in group.axes:
                if axis.role == "count":
                    self.counts.setdefault(axis.tensor, []).append((group.name, axis))
                elif group.pattern.shrinks:
                    owners_S = axis.owners(group.grid)[0]
                    places = self.cuts.setdefault(axis.tensor, {})
                    places.setdefault(axis.dims[0], []).append((group.name, owners_S))

    def unit_masks(self, kept: Kept) -> dict[str, Tensor]:
        """Boolean mask per group, flat over its grid; groups not in `kept` stay whole."""
        masks = {}
        for name, group in self.groups.items():
            masks[name] = torch.ones(group.cells, dtype=torch.bool)
            if name in kept:
                masks[name].zero_()
                masks[name][kept[name]] = True
        return masks

    def shrink(self, tensors: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
        """The tensors that lose units, cut to what remains (copies, never views).

        Groups whose pattern does not shrink tensors are set to zero instead.
        """
        masks = self.unit_masks(kept)
        changed = {name for name, mask in masks.items() if not bool(mask.all())}
        result = self.mask(tensors, kept, lambda group: not group.pattern.shrinks)
        for name, places in self.cuts.items():
            tensor = whole = result.get(name, tensors[name])
            for dim, owners in places.items():
                if any(group in changed for group, _ in owners):
                    index = _staying(owners, masks).nonzero().squeeze(1).to(tensor.device)
                    tensor = tensor.index_select(dim, index)
            if tensor is not whole:
                result[name] = tensor
        return result

    def mask(
        self,
        tensors: Mapping[str, Tensor],
        kept: Kept,
        select: Callable[[PrunableGroup], bool] = lambda group: True,
    ) -> dict[str, Tensor]:
        """The tensors that units of selected groups live in, the removed ones zero (copies)."""
        masks = self.unit_masks(kept)
        result: dict[str, Tensor] = {}
        for name, group in self.groups.items():
            if bool(masks[name].all()) or not select(group):
                continue
            removed = (~masks[name]).reshape(group.grid).float()
            for axis in group.axes:
                if axis.role not in ("count", "stat"):  # statistics of a zero channel stay finite
                    tensor = result.get(axis.tensor, tensors[axis.tensor])
                    gone = expand(axis, removed, tensor.shape).to(tensor.device)
                    result[axis.tensor] = torch.where(gone > 0, torch.zeros_like(tensor), tensor)
        return result

    def lengths(self, kept: Kept) -> dict[tuple[str, int], int]:
        """What remains of every (tensor, dim) that units live along."""
        masks = self.unit_masks(kept)
        axes = [axis for group in self.groups.values() for axis in group.axes]
        whole = {
            (axis.tensor, dim): size
            for axis in axes
            if axis.role != "count"
            for dim, size in zip(axis.dims, axis.sizes, strict=True)
        }
        return whole | {
            (name, dim): int(_staying(owners, masks).sum())
            for name, places in self.cuts.items()
            for dim, owners in places.items()
        }

    def sizes(self, kept: Kept) -> dict[str, int]:
        """Integer attributes that count units, by dotted path."""
        masks = self.unit_masks(kept)
        result = {}
        for path, places in self.counts.items():
            owners = [(group, axis.owners(self.groups[group].grid)[0]) for group, axis in places]
            result[path] = int(_staying(owners, masks).sum())
        return result


def _staying(owners: Sequence[tuple[str, Tensor]], masks: Mapping[str, Tensor]) -> Tensor:
    """Which indices along a dim no group removes, from the unit of each group that owns them."""
    stay_S = torch.ones_like(owners[0][1], dtype=torch.bool)
    for group, owners_S in owners:
        stay_S &= masks[group][owners_S] | (owners_S < 0)
    return stay_S


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by state_dict key, tied ones under every key."""
    held = {id(tensor) for module in model.modules() for tensor in _own(module).values()}
    # A state_dict may also hold extra state of any type, and tensors that a hook made up.
    return {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) in held}


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the module itself, by attribute."""
    both = {**module._parameters, **module._buffers}
    return {leaf: tensor for leaf, tensor in both.items() if tensor is not None}


def require_tensors(model: nn.Module, groups: Sequence[PrunableGroup]) -> None:
    """Check that every axis of every group fits `model`.

    Raises:
        GroupError: names the first tensor that is missing or of another shape.
        ModelError: it is no network, or of a kind that cannot be cut.
    """
    require_network(model)
    tensors = tensors_of(model)
    for group in groups:
        for axis in group.axes:
            if axis.role == "count":
                _require_count(model, group, axis)
                continue
            found = tensors.get(axis.tensor)
            if found is None:
                raise GroupError(
                    f"group '{group.name}' lives in '{axis.tensor}', which this model does not "
                    f"have. {_why_missing(axis.tensor, tensors)}"
                )
            sizes = tuple(found.shape[d] if d < found.ndim else 0 for d in axis.dims)
            if sizes != axis.sizes:
                raise GroupError(
                    f"group '{group.name}' expects {axis.sizes} along dims {axis.dims} of "
                    f"'{axis.tensor}', this model has {sizes} (shape {tuple(found.shape)}). Was it "
                    "pruned already, or built for another width? Use the original dense model."
                )


def _why_missing(name: str, tensors: Iterable[str]) -> str:
    inside = next((other for other in tensors if other.endswith(f".{name}")), None)
    if inside is None:
        return "Were the groups found on another model? Run find_groups on this one."
    return f"It has '{inside}': give the module inside the wrapper (.module, ._orig_mod)."


def _require_count(model: nn.Module, group: PrunableGroup, axis: Axis) -> None:
    path, _, attribute = axis.tensor.rpartition(".")
    unset = axis.sizes[0] if attribute in (BRANCHES, OUTPUTS) else None  # set by the first cut
    try:
        found = getattr(model.get_submodule(path), attribute, unset)
    except AttributeError:
        found = None
    if type(found) is not int or found != axis.sizes[0]:
        raise GroupError(
            f"group '{group.name}' is counted by '{axis.tensor}', which is {axis.sizes[0]} in its "
            f"network and {found!r} in this model. Was it pruned already, or built for another "
            "width? Use the original dense model."
        )


Places = Mapping[str, "list[tuple[nn.Module, str]]"]
"""For every state_dict key, each (module, attribute) that holds the tensor."""


def places_of(model: nn.Module) -> Places:
    """Where each tensor hangs; tied tensors have several places. Stays true after `assign`."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, tensor in _own(module).items():
            holders.setdefault(id(tensor), []).append((module, leaf))
    return {name: holders[id(tensor)] for name, tensor in tensors_of(model).items()}


def assign(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    places: Places | None = None,
) -> None:
    """Put tensors and counts into `model` in place and let module attributes follow.

    Tied parameters stay tied: every place of a replaced tensor gets the new one.
    """
    places = places_of(model) if places is None else places
    touched: dict[int, nn.Module] = {}
    for path, count in sizes.items():
        module_path, _, attribute = path.rpartition(".")
        module = model.get_submodule(module_path)
        setattr(module, attribute, count)
        touched[id(module)] = module
    for name, tensor in tensors.items():
        new: Tensor | None = None
        for module, leaf in places[name]:
            old = module._parameters.get(leaf)
            if old is None:
                module._buffers[leaf] = tensor
            else:
                new = nn.Parameter(tensor, old.requires_grad) if new is None else new
                module._parameters[leaf] = new  # type: ignore[assignment]
            touched[id(module)] = module
    for module in touched.values():
        refresh(module)
        switch(module)


def _conv(module: Any) -> None:
    wide, narrow = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = wide, narrow * module.groups
    else:
        module.out_channels, module.in_channels = wide, narrow * module.groups


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _norm(module: Any) -> None:
    vector = module.weight if module.weight is not None else module.running_mean
    module.num_features = len(vector)


def _prelu(module: Any) -> None:
    module.num_parameters = module.weight.numel()


def _attention(module: Any) -> None:
    rows = module.out_proj.weight.shape[1]
    module.num_heads = rows // module.head_dim


ATTRIBUTES: dict[type, Callable[[Any], None]] = {
    nn.modules.conv._ConvNd: _conv,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _norm,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: _attention,
}
"""How the attributes of a module kind follow from its tensors; the most specific entry wins."""


def follows(module: nn.Module) -> bool:
    """Whether `refresh` knows how the attributes of the module follow from its tensors."""
    return any(kind in ATTRIBUTES for kind in type(module).__mro__)


def refresh(module: nn.Module) -> None:
    """Set the width attributes of one module from the shapes of its tensors."""
    for kind in type(module).__mro__:
        if kind in ATTRIBUTES:
            ATTRIBUTES[kind](module)
            return
