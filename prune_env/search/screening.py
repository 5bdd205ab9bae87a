"""Surrogates without a policy: what agents have to beat to show that they are of use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.losses import expected_worth
from prune_env.mdp.path import Path, greedy_path
from prune_env.mdp.rules import as_kept
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.allocators import PATHS, best_prior, measured_losses, plan_of
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import PARENTS, best_plans, nearby
from prune_env.search.surrogate import Mean

CANDIDATES = 160
"""Plans that are looked at for a few that are measured: as many as an agent's lanes finish."""
SHARE, LEVELS, PART = 0.25, 2, 0.6
"""Of the samples that groups are measured alone on, and that glimpses see; levels of each group
that are worth it, at least; and what may be spent on them of all evaluations."""
LOOKS, FINALISTS = 240, 6
"""Plans glimpsed at, at most, and those measured after tuning that they choose."""
CLIMBS = 8
"""Steps from measured plans to the one of a budget that is expected to be best."""


def screened(ledger: Ledger, seed: int) -> None:
    """Measure what a surrogate finds most promising of plans beside the best measured ones."""
    generator = np.random.default_rng(seed)
    best_prior(ledger)
    _spend(Acquisition(ledger, Choice(), seed), generator)


def surrogate(ledger: Ledger, seed: int) -> None:
    """The same, from what groups lose alone.

    Every group is measured alone on a part of the samples, if so much of the evaluations pays for
    it. The allocation by these losses is measured before the free plans, and their sum is what the
    surrogate expects of a plan it knows nothing of, as far as plans bear it out.

    Where plans are tuned before they are measured, which is dear, many are glimpsed at without
    (`_looked`), and the surrogate of these is the mean of that of tuned ones.
    """
    finalists = int(min(FINALISTS, ledger.limit // 2)) if ledger.task.tunes else 0
    path, mean = _alone(ledger, PART * (ledger.left - finalists))
    alone = [] if path is None else [plan_of(ledger.task, path)]
    if finalists > 1:
        mean = _looked(ledger, seed, alone, finalists, mean)
    else:
        ledger.measure(alone)
        best_prior(ledger)
    acquisition = Acquisition(ledger, Choice(), seed, mean)
    acquisition.fit()
    _spend(acquisition, np.random.default_rng(seed))


def _alone(ledger: Ledger, evaluations: float) -> tuple[Path | None, Mean | None]:
    """The path of what groups lose alone and the sum of it, if so many evaluations pay for it."""
    losses = measured_losses(ledger, evaluations, SHARE, LEVELS)
    if not losses:
        return None, None
    return greedy_path(ledger.task.rules, losses), expected_worth(ledger.task, losses)


def surrogate_front(budgets: Sequence[float], ledger: Ledger, seed: int) -> None:
    """One search of many budgets, the largest of which is the task's; see `learned_front`."""
    learned_front(budgets, ledger, seed)


def learned_front(budgets: Sequence[float], ledger: Ledger, seed: int) -> Acquisition:
    """What a search of many budgets at once has learned, for `plan_expected` at these and others.

    Plans of all budgets are measured in turns, and at last the one of each that is expected to be
    best. A ledger that has measured them already gives the same again.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    path, mean = _alone(ledger, PART * ledger.left)
    paths = [make(task) for make in PATHS.values()] if path is None else [path]
    acquisition = Acquisition(ledger, Choice(), seed, mean)
    with ledger.reserved(len(budgets)):
        ledger.measure(dict.fromkeys(plan_of(task.at(b), p) for p in paths for b in budgets))
        acquisition.fit()
        share = CANDIDATES // len(budgets)
        while True:
            rows = [
                nearby(task.at(budget), _parents(acquisition, budget), share, generator)
                for budget in budgets
            ]
            acquisition.measure(np.concatenate(rows), np.repeat(budgets, share))
    ledger.measure([plan_expected(acquisition, budget, seed) for budget in budgets])
    return acquisition


def plan_expected(acquisition: Acquisition, budget: float, seed: int) -> Kept:
    """The plan of any budget that what was measured promises most of; measures nothing.

    Climbs from the best plans measured within the budget and those of the free paths.
    """
    task, generator = acquisition.ledger.task.at(budget), np.random.default_rng(seed)
    judge = acquisition.judge(acquisition.seen, budget)
    free = (plan_of(task, path(task)) for path in PATHS.values())
    best = list(dict.fromkeys([*_parents(acquisition, budget), *free]))
    if judge is None:
        return best[0]
    for _ in range(CLIMBS):
        plans_NG = np.concatenate([best, nearby(task, best, CANDIDATES, generator)])
        order_N = np.argsort(-judge(plans_NG), kind="stable")
        best = list(dict.fromkeys(map(as_kept, plans_NG[order_N])))[:PARENTS]
    return best[0]


def _parents(acquisition: Acquisition, budget: float) -> list[Kept]:
    """The best plans measured within a budget; without any, the uniform plan of it."""
    task = acquisition.ledger.task.at(budget)
    return acquisition.seen.best(budget, PARENTS) or [task.beside([0.0] * task.length)]


def _looked(
    ledger: Ledger, seed: int, first: Sequence[Kept], finalists: int, mean: Mean | None
) -> Mean | None:
    """Glimpse at plans, measure finalists in full, and return the surrogate of what was glimpsed.

    A glimpse sees fresh samples if the task has any (`fresh_samples`). It tells little of the end,
    so finalists are spread over the list of what is expected to be best, and the uniform plan is
    one of them.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    acquisition = Acquisition(ledger, Choice(share=SHARE), seed, mean)
    with ledger.reserved(finalists):
        free = [plan_of(task, path(task)) for path in PATHS.values()]
        acquisition.ask(list(dict.fromkeys([*first, *free])))
        while len(ledger.looks) < LOOKS:
            plans_NG = nearby(task, _likeliest(acquisition, PARENTS), CANDIDATES, generator)
            acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))
    acquisition.fit()
    likeliest = _likeliest(acquisition, 2**finalists)
    ranks = [likeliest[place] for n in range(finalists) if (place := 2**n - 1) < len(likeliest)]
    ledger.measure(list(dict.fromkeys([*ranks[: finalists - 1], task.reference])))
    return acquisition.surrogate


def _spend(acquisition: Acquisition, generator: np.random.Generator) -> None:
    """Measure the most promising plans beside the best ones, until the ledger ends the search."""
    task, ledger = acquisition.ledger.task, acquisition.ledger
    while True:
        plans_NG = nearby(task, best_plans(ledger.seen), CANDIDATES, generator)
        acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))


def _likeliest(acquisition: Acquisition, count: int) -> list[Kept]:
    """The plans within the budget that are expected to be best, noise aside; the best first."""
    task, seen, expected = acquisition.ledger.task, acquisition.seen, acquisition.surrogate
    worth_M = expected(seen.kept_MG) if expected else seen.reward_M
    order_M = np.argsort(-worth_M, kind="stable")
    plans = dict.fromkeys(map(as_kept, seen.kept_MG[order_M]))
    return [kept for kept in plans if task.within_budget(kept)][:count]
