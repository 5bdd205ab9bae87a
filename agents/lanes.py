"""The environment as an agent sees it: N episodes in lockstep, as a vector environment of SB3.

Three things are done for the agent, none of which moves the optimum. Actions are offsets from the
prior's sparsity, so an untrained policy is as good as the allocator behind it. Observations are
standardised by their mean and spread along the prior's plan: groups differ by little in most
features. Every step is paid what it changes about the worth of the plan that the prior would
complete (potential-based shaping, Ng et al. 1999, with gamma 1); the last one corrects by what the
plan turned out to be worth.

Legend: N lanes, G groups, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from prune_env import PruningTask
from prune_env.mdp.lockstep import Walk, plans_beside
from prune_env.mdp.rules import Units
from prune_env.search.account import Payment

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Step = tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]

LIMIT = 5.0
"""Standardised observations are cut here."""
LEAST_SPREAD = 0.02
"""Features that vary by less are not blown up."""

Budgets = Callable[[int], Floats]
"""Draws the budgets of N episodes."""
Standing = Callable[[Floats], Floats]
"""What N lanes are paid, from the worths of the plans that they finished together."""
Credit = Callable[[Payment, Units], Floats]
"""The potential of plans (N, G), by which steps are paid when they are taken."""


def group_relative(worth_N: Floats) -> Floats:
    """Worth beyond the mean of the group (as in GRPO, Shao et al. 2024): plans are ranked."""
    relative: Floats = worth_N - worth_N.mean()
    return relative


def absolute(worth_N: Floats) -> Floats:
    """The worth itself."""
    return worth_N


def by_effects(payment: Payment, kept_NG: Units) -> Floats:
    """What the payment expects of the plans, group by group."""
    return payment.potential(kept_NG)


def at_the_end(payment: Payment, kept_NG: Units) -> Floats:
    """Nothing: only the finished plan is paid."""
    return np.zeros(len(kept_NG))


@dataclass(frozen=True)
class Help:
    """How lanes pay.

    Attributes:
        credit: potential of a plan under way.
        standing: of finished plans among their group.
    """

    credit: Credit = by_effects
    standing: Standing = group_relative


HELP = Help()


class Lanes(VecEnv):
    """What both shapes of the task share.

    Args:
        task: with the prior that offsets start from.
        payment: pays finished plans; replaceable, so a trained policy can be run by another.
        lanes: episodes at a time, N.
        help: how they are paid.
        budgets: of the episodes; all the task's by default.
    """

    def __init__(
        self,
        task: PruningTask,
        payment: Payment,
        lanes: int,
        help: Help,
        budgets: Budgets | None,
        spaces: tuple[Box, Box],
    ) -> None:
        super().__init__(lanes, *spaces)
        self.task, self.payment, self.help = task, payment, help
        self._budgets = budgets or (lambda count: np.full(count, task.budget))
        self._actions = np.zeros((lanes, *spaces[1].shape), np.float32)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Note the actions, (N, A)."""
        self._actions = np.clip(actions, -1.0, 1.0)

    def plans(self, act: Callable[[Array], Floats], budget_N: Floats) -> Units:
        """Whole plans (N, G) as `act` decides them from observations; nothing is paid."""
        raise NotImplementedError

    def _over(self, last_NF: Array, first_NF: Array, paid_N: Floats) -> Step:
        infos = [{"terminal_observation": row, "TimeLimit.truncated": False} for row in last_NF]
        return first_NF, paid_N.astype(np.float32), np.ones(self.num_envs, bool), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, the same for every lane."""
        return [getattr(self, attr_name, None)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all lanes."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        """Lanes have no methods of their own."""
        return [None] * len(self._indices(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No lane is wrapped."""
        return [False] * len(self._indices(indices))

    def _indices(self, indices: Any) -> Sequence[int]:
        return range(self.num_envs) if indices is None else list(np.atleast_1d(indices))


class Walks(Lanes):
    """Group by group: action (1,), the offset of the group at hand."""

    def __init__(
        self,
        task: PruningTask,
        payment: Payment,
        lanes: int,
        help: Help = Help(),
        budgets: Budgets | None = None,
    ) -> None:
        self._mean_F, self._spread_F = statistics(task)
        seen = Box(-LIMIT, LIMIT, self._mean_F.shape, np.float32)
        super().__init__(
            task, payment, lanes, help, budgets, (seen, Box(-1.0, 1.0, (1,), np.float32))
        )
        self._begin()

    def _begin(self) -> None:
        self._walk = Walk(self.task, self._budgets(self.num_envs))
        self._start_N = self._potential_N = self._potential()

    def _potential(self) -> Floats:
        return self.help.credit(self.payment, self._walk.completed_NG)

    def reset(self) -> Array:
        """Begin N episodes."""
        self._begin()
        return self.observed(self._walk)

    def step_wait(self) -> Step:
        """Decide a group in every lane."""
        walk, before_N = self._walk, self._potential_N
        walk.advance(walk.beside(self._actions.astype(np.float64)))
        if walk.finished:
            last = self.observed(self._walk)
            worth_N = self.payment(walk.kept_NG, walk.budget_N) - self._start_N
            paid_N = self.help.standing(worth_N) - (before_N - self._start_N)
            self._begin()
            return self._over(last, self.observed(self._walk), paid_N)
        self._potential_N = self._potential()
        paid_N = self._potential_N - before_N
        none = np.zeros(self.num_envs, bool)
        return (
            self.observed(self._walk),
            paid_N.astype(np.float32),
            none,
            [{} for _ in range(self.num_envs)],
        )

    def plans(self, act: Callable[[Array], Floats], budget_N: Floats) -> Units:
        """Walks of their own."""
        walk = Walk(self.task, budget_N)
        while not walk.finished:
            walk.advance(walk.beside(act(self.observed(walk))))
        return walk.kept_NG

    def observed(self, walk: Walk) -> Array:
        """What the policy sees of any walk through this task, (N, F)."""
        scaled = (walk.observation_NF - self._mean_F) / self._spread_F
        return np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)


class Plans(Lanes):
    """All groups at once: action (G,), offsets; the observation is the budget, from the task's."""

    def __init__(
        self,
        task: PruningTask,
        payment: Payment,
        lanes: int,
        help: Help = Help(),
        budgets: Budgets | None = None,
    ) -> None:
        seen = Box(-LIMIT, LIMIT, (1,), np.float32)
        acted = Box(-1.0, 1.0, (task.length,), np.float32)
        super().__init__(task, payment, lanes, help, budgets, (seen, acted))
        self._budget_N = self._budgets(lanes)

    def reset(self) -> Array:
        """Draw the budgets."""
        self._budget_N = self._budgets(self.num_envs)
        return self.observed(self._budget_N)

    def step_wait(self) -> Step:
        """Decide everything."""
        last = self.observed(self._budget_N)
        kept_NG = plans_beside(self.task, self._actions.astype(np.float64), self._budget_N)
        middle_NG = plans_beside(self.task, np.zeros(kept_NG.shape), self._budget_N)
        start_N = self.help.credit(self.payment, middle_NG)
        paid_N = self.help.standing(self.payment(kept_NG, self._budget_N) - start_N)
        return self._over(last, self.reset(), paid_N)

    def plans(self, act: Callable[[Array], Floats], budget_N: Floats) -> Units:
        """Decided at once."""
        return plans_beside(self.task, act(self.observed(budget_N)), budget_N)

    def observed(self, budget_N: Floats) -> Array:
        """What the policy sees under these budgets, (N, 1)."""
        away = 5.0 * (budget_N[:, None] - self.task.budget)
        return np.clip(away, -LIMIT, LIMIT).astype(np.float32)


def statistics(task: PruningTask) -> tuple[Floats, Floats]:
    """Mean and spread of every feature along the prior's plan, each of shape (F,)."""
    walk, seen = Walk(task, np.array([task.budget])), []
    while not walk.finished:
        seen.append(walk.observation_NF[0])
        walk.advance(walk.prior_NA)
    features_GF = np.stack(seen).astype(np.float64)
    return features_GF.mean(0), np.maximum(features_GF.std(0), LEAST_SPREAD)
