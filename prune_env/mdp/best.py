"""The best finished episode of an environment: what learning leaves behind.

Agents reset an environment as soon as an episode ends (stable-baselines3 does it by itself), so the
last plan is lost to whoever asks afterwards; the best one is kept here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prune_env.errors import PruneEnvError
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.plan.plan import PruningPlan


@dataclass(frozen=True, eq=False, repr=False)
class Best:
    """A finished episode.

    Attributes:
        task: under the budget of the episode.
        outcome: its plan and what that measured.
    """

    task: PruningTask
    outcome: Outcome

    @property
    def plan(self) -> PruningPlan:
        """The plan, to save and apply."""
        return self.task.plan(self.outcome.kept, reward=self.outcome.reward)

    def network(self) -> nn.Module:
        """The pruned and repaired network, a copy.

        Raises:
            PlanError: the task has no network (a toy).
        """
        return self.task.network(self.outcome.kept)

    def __repr__(self) -> str:
        return (
            f"Best(reward={self.outcome.reward:.4g}, {self.task.on} left "
            f"{float(self.task.costs.ratio(self.outcome.kept, self.task.on)):.1%}, "
            f"budget {self.task.budget:.1%})"
        )


def better(best: Best | None, other: Best) -> Best:
    """The one of the higher `Outcome.rank`, the earlier of equals."""
    return other if best is None or other.outcome.rank > best.outcome.rank else best


def found(best: Best | None) -> Best:
    """The best episode, if there is one.

    Raises:
        PruneEnvError: there is none.
    """
    if best is None:
        raise PruneEnvError("there is no best plan before the last step of the first episode.")
    return best
