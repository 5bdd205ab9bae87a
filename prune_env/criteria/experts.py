"""Scores of experts: what a router sends to them and what they make of it.

To add one, write a function of `Routing` and put it into `EXPERT_CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from prune_env.calibration.routing import Routing, measure_routing
from prune_env.errors import ModelError
from prune_env.quality.batches import Batch
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import require_tensors, tensors_of

ExpertCriterion = Callable[[Routing], Tensor]
"""Saliency of each expert, (U,); higher is more important."""


def reap(routing: Routing) -> Tensor:
    """Mean of gate value times output norm over the tokens routed to an expert.

    Lasby et al. 2025, REAP the Experts, eq. 9. An expert that no token was routed to has 0.
    """
    return routing.weighted_U / routing.chosen_U.clamp(min=1)


def frequency(routing: Routing) -> Tensor:
    """Share of the tokens that are routed to an expert (the baseline of the same paper)."""
    return routing.chosen_U / routing.tokens


EXPERT_CRITERIA: dict[str, ExpertCriterion] = {"reap": reap, "frequency": frequency}


def experts_of(model: nn.Module, groups: Sequence[PrunableGroup]) -> dict[str, str]:
    """Which groups are of experts, each with the path of the module that holds their parameters.

    Experts are units that nothing reads, since they are chosen, with a slice of a stack of matrices
    each.
    """
    tensors = tensors_of(model)
    found = {}
    for group in groups:
        if any(axis.role in ("in", "weight") for axis in group.axes):
            continue
        made = [axis.tensor for axis in group.axes if axis.role == "out" and axis.dims == (0,)]
        stacks = [name for name in made if tensors[name].ndim == 3]
        routers = [name for name in made if tensors[name].ndim == 2]
        if stacks and routers:
            found[group.name] = stacks[-1].rpartition(".")[0]
    return found


def score_experts(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    batches: Sequence[Batch],
    criterion: ExpertCriterion,
) -> dict[str, Tensor]:
    """Scores of the experts of those `groups` that are of experts, by group name.

    Args:
        model: the dense network.
        groups: groups of this network.
        batches: calibration data; not looked at where there are no experts.
        criterion: a value of `EXPERT_CRITERIA`, or your own.

    Raises:
        GroupError: the groups are of another model.
        ModelError: there are experts but no batches, or see `measure_routing`.
    """
    require_tensors(model, groups)
    paths = experts_of(model, groups)
    if not paths:
        return {}
    if not batches:
        raise ModelError(
            f"experts ('{next(iter(paths))}') are scored by what is routed to them, and there is "
            "no data. Pass `batches` to `Evidence`, or use criterion 'l2'."
        )
    units: Mapping[str, int] = {group.name: group.units for group in groups}
    found = measure_routing(model, batches, {path: units[name] for name, path in paths.items()})
    return {name: criterion(found[path]) for name, path in paths.items()}
