"""Scores of units by name: elementwise criteria, eliminations on the statistics, experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prune_env.calibration.statistics import Calibration
from prune_env.criteria.elementwise import CRITERIA, Criterion, score_units
from prune_env.criteria.experts import EXPERT_CRITERIA, ExpertCriterion, score_experts
from prune_env.criteria.obs import score_by_obs
from prune_env.errors import look_up
from prune_env.quality.batches import Batch
from prune_env.structure.groups import PrunableGroup


@dataclass(frozen=True, eq=False)
class Evidence:
    """What scores may be made from beside the weights.

    Attributes:
        calibration: statistics of the consumers of the groups.
        gradients: makes the gradients of the loss by state_dict key; only called when needed.
        seed: of random scores.
        batches: calibration data, for scores that must watch the network run.
    """

    calibration: Calibration
    gradients: Callable[[], Mapping[str, Tensor]]
    seed: int = 0
    batches: Sequence[Batch] = ()


Scorer = Callable[[nn.Module, Sequence[PrunableGroup], Evidence], dict[str, Tensor]]
"""Scores by group name, in the shape of the grid; higher is more important."""


def elementwise(criterion: Criterion) -> Scorer:
    """The scorer that pools a criterion's saliency (see `score_units`)."""

    def score(
        model: nn.Module, groups: Sequence[PrunableGroup], evidence: Evidence
    ) -> dict[str, Tensor]:
        return score_units(
            model,
            groups,
            criterion,
            gradients=evidence.gradients() if criterion.gradients else None,
            statistics=evidence.calibration,
            seed=evidence.seed,
        )

    return score


def obs(model: nn.Module, groups: Sequence[PrunableGroup], evidence: Evidence) -> dict[str, Tensor]:
    """See `score_by_obs`."""
    return score_by_obs(model, groups, evidence.calibration)


def of_experts(criterion: ExpertCriterion) -> Scorer:
    """The scorer of experts by a criterion, and of all other groups by OBS."""

    def score(
        model: nn.Module, groups: Sequence[PrunableGroup], evidence: Evidence
    ) -> dict[str, Tensor]:
        experts = score_experts(model, groups, evidence.batches, criterion)
        others = obs(model, [g for g in groups if g.name not in experts], evidence)
        return {group.name: {**others, **experts}[group.name] for group in groups}

    return score


SCORERS: dict[str, Scorer] = {
    **{name: elementwise(criterion) for name, criterion in CRITERIA.items()},
    "obs": obs,
    **{name: of_experts(criterion) for name, criterion in EXPERT_CRITERIA.items()},
}


def score_groups(
    criterion: str | Criterion,
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    evidence: Evidence,
) -> dict[str, Tensor]:
    """Scores of every unit of every group, by group name, in the shape of the grid.

    Args:
        criterion: a name in `SCORERS`, or a criterion of your own.
        model: the dense network.
        groups: groups of this network.
        evidence: what the scores may be made from.

    Raises:
        ConfigError: there is no such scorer.
        GroupError, ModelError: see `score_units`.
    """
    if isinstance(criterion, Criterion):
        return elementwise(criterion)(model, groups, evidence)
    return look_up("criterion", criterion, SCORERS)(model, groups, evidence)
