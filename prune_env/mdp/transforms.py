"""What helps any agent, as functions of arrays: standardised observations and credit for steps.

Legend: N episodes, G groups, F features.

Both kinds of wrappers and our own agents use these; offsets from the prior are `Episodes.beside`.
None of them moves the optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.lockstep import Array, Walk
from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.task import PruningTask

LIMIT = 5.0
"""Standardised observations are cut here."""
LEAST_SPREAD = 0.02
"""Features that vary by less are not blown up."""
BUDGET_SPREAD = 0.2
"""Of budgets, where they are all that is seen."""

Potential = Callable[[Units], Floats]
"""What whole plans (N, G) are worth before they are measured, (N,)."""
Standing = Callable[[Floats], Floats]
"""What N episodes are paid at their end, from the worths of the plans that they finished."""


@dataclass(frozen=True, eq=False)
class Standard:
    """Observations less their mean, in units of their spread, in [-LIMIT, LIMIT].

    Attributes:
        mean_F, spread_F: of every feature. They are not learned while an agent learns, so a policy
            sees the same from its first step on, and on another network what corresponds.
    """

    mean_F: Floats
    spread_F: Floats

    def __call__(self, seen: NDArray[Any]) -> Array:
        """The standardised observations, (F,) or (N, F)."""
        scaled = (seen - self.mean_F) / self.spread_F
        return np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)


def along_the_prior(task: PruningTask) -> Standard:
    """By what is seen along the prior's plan: groups differ by little in most features."""
    walk, seen = Walk(task, np.array([task.budget])), []
    while not walk.finished:
        seen.append(walk.observation_NF[0])
        walk.advance(walk.prior_NA)
    features_GF = np.stack(seen).astype(np.float64)
    return Standard(features_GF.mean(0), np.maximum(features_GF.std(0), LEAST_SPREAD))


def around_the_budget(task: PruningTask) -> Standard:
    """By how far a budget is from the task's."""
    # As it is seen, in single precision: the task's own budget is exactly 0.
    return Standard(np.array([np.float32(task.budget)], float), np.array([BUDGET_SPREAD]))


def absolute(worth_N: Floats) -> Floats:
    """The worth itself."""
    return worth_N


def group_relative(worth_N: Floats) -> Floats:
    """Worth beyond the mean of the group (as in GRPO, Shao et al. 2024): plans are ranked."""
    relative: Floats = worth_N - worth_N.mean()
    return relative


@dataclass(frozen=True, eq=False)
class Credit:
    """What N episodes under way were paid in advance.

    Potential-based shaping (Ng, Harada, Russell 1999) with gamma 1 and a terminal potential of 0:
    a step is paid what it changes about the potential of the plan that the prior would complete;
    the last one corrects by what the plan turned out to be worth. The pay of an episode sums to the
    standing of its plan's worth beyond the potential at the start.

    Attributes:
        start_N: the potential of the prior's own plans.
        now_N: that of the plans as the prior would complete them now.
    """

    start_N: Floats
    now_N: Floats

    @staticmethod
    def begin(potential_N: Floats) -> Credit:
        """Nothing is decided."""
        return Credit(potential_N, potential_N)

    def step(self, potential_N: Floats) -> tuple[Floats, Credit]:
        """What a step is paid, (N,), and what there is to remember of it."""
        return potential_N - self.now_N, Credit(self.start_N, potential_N)

    def end(self, worth_N: Floats, standing: Standing = absolute) -> Floats:
        """What the last step is paid, (N,)."""
        paid: Floats = standing(worth_N - self.start_N) - (self.now_N - self.start_N)
        return paid
