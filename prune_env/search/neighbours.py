"""Plans beside a plan: what evolution breeds, and what a surrogate chooses from.

Legend: N plans, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.path import beside
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Units, as_kept
from prune_env.mdp.task import PruningTask

Floats = NDArray[np.float64]

SWITCHES = 3
"""Trades between parent and child, at most; few are likelier, as in EvoPress."""
STRIDE = 0.12
"""Mean length of a trade, as a fraction of a group's levels."""
TRIES = 20
"""Draws of a pair of groups before a trade is given up."""
SPREAD = 0.14
"""Standard deviation of an offset; it changes what a group keeps by a factor of 1.3."""
PARENTS = 3
"""Best plans whose neighbours are looked at."""


def mutated(
    task: PruningTask, parents: Sequence[Kept], generator: np.random.Generator
) -> list[Kept]:
    """A child of every parent; what their trades leave of the budget is given back at once."""
    plans_NG = np.array([_switched(task, kept, generator) for kept in parents])
    asked_NG = 1.0 - plans_NG / task.rules.units_G
    budget_N = np.full(len(plans_NG), task.budget)
    return [as_kept(row) for row in task.leftover(task.rules, plans_NG, asked_NG, budget_N)]


def _switched(task: PruningTask, kept: Kept, generator: np.random.Generator) -> list[int]:
    plan = list(kept)
    for _ in range(int(min(generator.integers(1, SWITCHES + 1, 2)))):
        for _ in range(TRIES):
            traded = _traded(task, plan, generator)
            if traded is not None:
                plan = traded
                break
    return plan


def _traded(task: PruningTask, plan: list[int], generator: np.random.Generator) -> list[int] | None:
    """One group falls by some levels, another rises by what that pays for; None if it cannot."""
    if task.length < 2:
        return None
    giver, taker = generator.choice(task.length, 2, replace=False)
    down, up = task.groups[giver].levels, task.groups[taker].levels
    stride = max(1, round(generator.exponential(STRIDE * len(down))))
    place = down.index(plan[giver]) - stride
    if place < 0:
        return None
    trial = [*plan]
    trial[giver] = down[place]
    first = up.index(plan[taker]) + 1
    raised = np.tile(trial, (len(up) - first, 1))
    raised[:, taker] = up[first:]
    fits = task.costs.ratio(raised, task.on) <= task.budget + 1e-12 if len(raised) else raised
    if not np.any(fits):
        return None
    trial[taker] = up[first + int(np.flatnonzero(fits)[-1])]
    return trial


def best_plans(seen: Sequence[Outcome], count: int = PARENTS) -> list[Kept]:
    """Those of highest rank among the plans that may be the result; the best first."""
    eligible = [outcome for outcome in seen if outcome.eligible]
    ranked = sorted(eligible, key=lambda outcome: outcome.rank, reverse=True)
    return [outcome.kept for outcome in ranked[:count]]


def nearby(
    task: PruningTask, best: Sequence[Kept], count: int, generator: np.random.Generator
) -> Units:
    """Plans (N, G) beside given ones, in turns.

    Half of them are some trades away, the others at offsets of any size in all groups.
    """
    parents = [best[number % len(best)] for number in range(count)]
    traded = mutated(task, parents[: count // 2], generator)
    kept_NG, rules = np.array(parents[count // 2 :]), task.rules
    size_N = generator.random((len(kept_NG), 1))
    want_NG = beside(rules.sparsity(kept_NG), size_N * generator.normal(0, SPREAD, kept_NG.shape))

    def shifted(shift_N: Floats) -> Floats:
        return np.clip(want_NG + shift_N[:, None] - 1.0, 0.0, 1.0)

    budget_N = np.full(len(want_NG), task.budget)
    asked_NG = shifted(rules.decode(shifted, 2.0, budget_N))
    moved_NG = task.leftover(rules, rules.snap(asked_NG), asked_NG, budget_N)
    return np.concatenate([traded, moved_NG])
