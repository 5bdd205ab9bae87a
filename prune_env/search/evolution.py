"""Evolution on levels, as in EvoPress (Sieberling et al. 2024): the strongest model-free search.

A child trades levels between groups at constant cost; it replaces its parent unless it ranks below.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rules import as_kept
from prune_env.mdp.task import PruningTask
from prune_env.search.allocators import best_prior, plan_of
from prune_env.search.ledger import Ledger

SWITCHES = 3
"""Trades between parent and child, at most; few are likelier, as in EvoPress."""
STRIDE = 0.12
"""Mean length of a trade, as a fraction of a group's levels."""
TRIES = 20
"""Draws of a pair of groups before a trade is given up."""


def evolution(ledger: Ledger, seed: int) -> None:
    """From the best plan that costs no search: uniform, predicted sensitivity, global or OWL."""
    evolve(ledger, seed, plan_of(ledger.task, best_prior(ledger)))


def evolution_uniform(ledger: Ledger, seed: int) -> None:
    """From the uniform plan."""
    evolve(ledger, seed, ledger.task.decode([0.0] * ledger.task.length))


def evolve(ledger: Ledger, seed: int, start: Kept) -> None:
    """Measure children of the best plan until all is spent; each generation is one child.

    With the few hundred evaluations of a search, a child that is kept at once is worth more than
    larger generations. A task with `stages` gives hopeless children up early.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    parent = ledger.measure(start)
    while True:
        child = ledger.measure(mutated(task, parent.kept, generator))
        if child.rank >= parent.rank:
            parent = child


def mutated(task: PruningTask, kept: Kept, generator: np.random.Generator) -> Kept:
    """A plan some trades away, within the budget and with nothing left of it."""
    return all_mutated(task, [kept], generator)[0]


def all_mutated(
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
