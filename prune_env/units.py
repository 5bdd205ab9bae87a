"""What may be removed from a network, by the name of the kind of unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from prune_env.attention.attach import with_full_attention
from prune_env.attention.checks import sparse_modules
from prune_env.attention.density import density_groups, follow_heads
from prune_env.errors import GroupError
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs
from prune_env.structure.sublayers import sublayer_groups
from prune_env.structure.weights import require_kind, weight_groups

Batches = Sequence[Inputs]
Find = Callable[[nn.Module, Batches, int], Sequence[PrunableGroup]]
"""Groups of a network, found with example batches and a seed."""


def _structured(model: nn.Module, batches: Batches, seed: int) -> Sequence[PrunableGroup]:
    first, *more = batches
    if not sparse_modules(model):
        return find_groups(model, first, more_inputs=more, seed=seed)
    full = with_full_attention(model)
    return follow_heads(model, find_groups(full, first, more_inputs=more, seed=seed))


def _sublayers(model: nn.Module, batches: Batches, seed: int) -> Sequence[PrunableGroup]:
    return sublayer_groups(model, batches[0])


def _density(model: nn.Module, batches: Batches, seed: int) -> Sequence[PrunableGroup]:
    return density_groups(model)


def _weights(kind: str, model: nn.Module, batches: Batches, seed: int) -> Sequence[PrunableGroup]:
    return weight_groups(model, kind)


UNITS: dict[str, Find] = {
    "structured": _structured,
    "sublayers": _sublayers,
    "density": _density,
}
"""Kind of unit -> how its groups are found; every other name is a kind of `weight_groups`."""


def require_kinds(kinds: str) -> None:
    """Refuse names that are no kinds of unit.

    Raises:
        GroupError: says which, and what there is.
    """
    for kind in (part.strip() for part in kinds.split("+")):
        try:
            if kind not in UNITS:
                require_kind(kind)
        except GroupError as error:
            raise GroupError(f"units '{kinds}': {error} Or one of {', '.join(UNITS)}.") from None


def groups_of(
    kinds: str,
    model: nn.Module,
    inputs: Inputs,
    *,
    more_inputs: Sequence[Inputs] = (),
    seed: int = 0,
) -> tuple[PrunableGroup, ...]:
    """The groups of one or several kinds of unit.

    Args:
        kinds: names joined by "+": "structured" (channels, neurons, heads, experts: everything that
            makes tensors smaller), "sublayers" (whole residual branches), "density" (blocks of
            attention, where it is block sparse), "unstructured", "per_row", "n:m", "block:b"
            (single weights). What the latter save of any cost is theoretical: a mask alone saves
            no time and no memory (`CostModel.effective`). Density saves MACs, and no parameters.
        model: the dense network; not changed.
        inputs: an example batch.
        more_inputs: further batches, see `find_groups`.
        seed: of the verification.

    Raises:
        GroupError: an unknown kind, or kinds that cannot be combined: one twice, or single weights
            of tensors that another kind makes smaller.
        ModelError: density is asked of a model without block masks.
    """
    found: list[PrunableGroup] = []
    for kind in kinds.split("+"):
        find = UNITS.get(kind.strip(), partial(_weights, kind.strip()))
        found += find(model, (inputs, *more_inputs), seed)
    names = [group.name for group in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GroupError(
            f"units '{kinds}' name the group '{twice[0]}' twice. Give kinds of unit that do not "
            "overlap, such as 'structured+sublayers'."
        )
    _require_separate(kinds, found)
    return tuple(found)


def _require_separate(kinds: str, groups: Sequence[PrunableGroup]) -> None:
    """Refuse single weights of a tensor that loses rows or columns to other units.

    N:M slots would no longer be neighbours, and how many of the kept weights lie in the kept rows
    nobody knows before the cut, so the cost would be wrong. A branch of one unit goes whole or
    stays whole: there both hold.
    """
    live = [group for group in groups if not group.frozen]
    weights = {
        axis.tensor: group.name for group in live for axis in group.axes if axis.role == "weight"
    }
    for group in live:
        shared = [axis.tensor for axis in group.axes if axis.tensor in weights]
        if shared and group.units > 1 and group.pattern.shrinks:
            raise GroupError(
                f"units '{kinds}' cannot be combined: group '{weights[shared[0]]}' removes single "
                f"weights of '{shared[0]}', and group '{group.name}' whole rows or columns of it, "
                "so that neither pattern nor cost of the former would hold. Prune in two runs: "
                "the structure first, then the weights of the smaller network."
            )
