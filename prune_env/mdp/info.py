"""What environments say beside observations and rewards: the `info` of `reset` and `step`."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import named


class ResetInfo(TypedDict):
    """Of `reset`: the budget of the episode, a fraction of the dense cost."""

    budget: float


class StepInfo(TypedDict):
    """Of every `step`: sparsities, one number or, where a step decides all groups, a list.

    `asked` is the action as a sparsity, `taken` what the budget and the levels made of it.
    """

    asked: float | list[float]
    taken: float | list[float]


class Finished(TypedDict):
    """What the last step of an episode says of its plan.

    `divergence`, `loss` and the objective's figures by name (`accuracy`, and `kl` for the
    divergence, of a classifier) are measured on the reward samples; `flops_ratio` and
    `params_ratio` are what is left of the dense cost; `plan` holds kept units by group,
    `reward_terms` the reward by term.
    """

    budget: float
    divergence: float
    loss: float
    accuracy: NotRequired[float]
    kl: NotRequired[float]
    flops_ratio: float
    params_ratio: float
    plan: dict[str, int]
    reward_terms: dict[str, float]


class FinalInfo(StepInfo, Finished):
    """Of the last `step`."""


def finished_info(task: PruningTask, outcome: Outcome) -> Finished:
    """What there is to say of a finished plan of a task under the budget of its episode."""
    names = (group.name for group in task.groups)
    info = {
        "budget": task.budget,
        **named(task.objective, outcome.metrics),
        "flops_ratio": outcome.flops_ratio,
        "params_ratio": outcome.params_ratio,
        "plan": dict(zip(names, outcome.kept, strict=True)),
        "reward_terms": dict(outcome.terms),
    }
    return cast(Finished, info)  # the figures have names that no type knows
