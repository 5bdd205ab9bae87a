"""What may be removed from a network, by the name of the kind of unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from prune_env.attention.density import density_groups
from prune_env.errors import GroupError
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs
from prune_env.structure.sublayers import sublayer_groups
from prune_env.structure.weights import weight_groups

Find = Callable[[nn.Module, Inputs, int], Sequence[PrunableGroup]]
"""Groups of a network, found with an example input and a seed."""


def _structured(model: nn.Module, inputs: Inputs, seed: int) -> Sequence[PrunableGroup]:
    return find_groups(model, inputs, seed=seed)


def _sublayers(model: nn.Module, inputs: Inputs, seed: int) -> Sequence[PrunableGroup]:
    return sublayer_groups(model, inputs)


def _density(model: nn.Module, inputs: Inputs, seed: int) -> Sequence[PrunableGroup]:
    return density_groups(model)


def _weights(kind: str, model: nn.Module, inputs: Inputs, seed: int) -> Sequence[PrunableGroup]:
    return weight_groups(model, kind)


UNITS: dict[str, Find] = {
    "structured": _structured,
    "sublayers": _sublayers,
    "density": _density,
}
"""Kind of unit -> how its groups are found; every other name is a kind of `weight_groups`."""


def groups_of(
    kinds: str, model: nn.Module, inputs: Inputs, *, seed: int = 0
) -> tuple[PrunableGroup, ...]:
    """The groups of one or several kinds of unit.

    Args:
        kinds: names joined by "+": "structured" (channels, neurons, heads, experts: everything that
            makes tensors smaller), "sublayers" (whole residual branches), "density" (blocks of
            attention), "unstructured", "per_row", "n:m", "block:b" (single weights).
        model: the dense network; not changed.
        inputs: an example batch.
        seed: of the verification.

    Raises:
        GroupError: an unknown kind, or one whose groups overlap with those of another.
    """
    found: list[PrunableGroup] = []
    for kind in kinds.split("+"):
        find = UNITS.get(kind.strip(), partial(_weights, kind.strip()))
        found += find(model, inputs, seed)
    names = [group.name for group in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GroupError(
            f"units '{kinds}' name the group '{twice[0]}' twice. Give kinds of unit that do not "
            "overlap, such as 'structured+sublayers'."
        )
    return tuple(found)
