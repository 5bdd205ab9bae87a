"""The environment as an agent sees it: charged, and in units that suit small networks.

Three changes, none of which moves the optimum. Observations are standardised with the mean and
spread along the uniform plan: groups differ by little in most features, and without it a policy of
a few hundred episodes hardly tells them apart. The reward is counted from that of the uniform
plan, in units of what uniform pruning costs, and compressed for very bad plans. Actions are
centred on the uniform sparsity.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor

from prune_env import Ledger, PruneEnv, PruningTask
from prune_env.mdp.env import CenteredAction, PlanEnv
from prune_env.mdp.ledger import Exhausted
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import Kept, State

Array = NDArray[np.float32]
LIMIT = 5.0
"""Standardised observations are cut here."""
LEAST_SPREAD = 0.02
"""Features that vary by less are not blown up."""


class Account:
    """What measuring costs an agent, and what a reward is worth to it; uniform is charged first.

    Attributes:
        task: the task.
        reserve: evaluations that are not to be spent yet.
    """

    def __init__(self, ledger: Ledger, reserve: int) -> None:
        self.task, self.reserve, self._ledger = ledger.task, reserve, ledger
        uniform = ledger.measure(ledger.task.decode([0.0] * ledger.task.length))
        self._origin, self._unit = uniform.reward, reward_unit(ledger.task, uniform)

    @property
    def left(self) -> float:
        """Evaluations that may be spent now."""
        return self._ledger.left - self.reserve

    def measure(self, kept: Kept) -> Outcome:
        """One charged evaluation.

        Raises:
            Exhausted: nothing but the reserve is left.
        """
        if self.left <= 0:
            raise Exhausted
        return self._ledger.measure(kept)

    def worth(self, reward: float) -> float:
        """A reward counted from uniform's, compressed."""
        return math.asinh((reward - self._origin) / self._unit)


class Walk(PruneEnv):
    """`PruneEnv` with every finished plan charged, and standardised observations."""

    def __init__(self, account: Account) -> None:
        super().__init__(account.task)
        self._account = account
        self._mean_F, self._spread_F = _statistics(account.task)
        self.observation_space = Box(-LIMIT, LIMIT, self._mean_F.shape, np.float32)

    def measure(self, kept: Kept) -> Outcome:
        """One charged evaluation."""
        return self._account.measure(kept)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode."""
        observation, info = super().reset(seed=seed, options=options)
        return self._standardised(observation), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide the next group."""
        observation, reward, done, cut, info = super().step(action)
        paid = self._account.worth(reward) if done else reward
        return self._standardised(observation), paid, done, cut, info

    def _standardised(self, observation: Array) -> Array:
        scaled = (observation - self._mean_F) / self._spread_F
        return np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)


class Whole(PlanEnv):
    """`PlanEnv` with every plan charged."""

    def __init__(self, account: Account) -> None:
        super().__init__(account.task)
        self._account = account

    def measure(self, kept: Kept) -> Outcome:
        """One charged evaluation."""
        return self._account.measure(kept)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide everything."""
        observation, reward, done, cut, info = super().step(action)
        return observation, self._account.worth(reward), done, cut, info


def make_view(view: type[Walk] | type[Whole], account: Account) -> Monitor:
    """A view of an account's task in the wrapped form that SB3 gets."""
    return Monitor(CenteredAction(view(account), account.task.uniform_sparsity))


def reward_unit(task: PruningTask, uniform: Outcome) -> float:
    """What uniform pruning changes about the reward, term by term so that nothing cancels."""
    terms = dict.fromkeys(uniform.terms, 0.0)
    if task.dense is not None:
        flops = uniform.flops / uniform.flops_ratio
        whole = tuple(group.units for group in task.groups)
        dense = replace(uniform, kept=whole, metrics=task.dense, flops=flops, flops_ratio=1.0,
                        params_ratio=1.0)  # fmt: skip
        terms = task.reward(dense)
    change = math.fsum(abs(terms[name] - value) for name, value in uniform.terms.items())
    return max(change, 1e-3)


def _statistics(task: PruningTask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of every feature along the uniform plan, each of shape (F,)."""
    state, seen = State(), []
    for _ in range(task.length):
        seen.append(task.observe(state))
        state = task.advance(state, task.uniform_sparsity)
    observations_GF = np.stack(seen).astype(np.float64)
    return observations_GF.mean(0), np.maximum(observations_GF.std(0), LEAST_SPREAD)
