"""Surrogates without a policy: what agents have to beat to show that they are of use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rules import as_kept
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.allocators import PATHS, best_prior, plan_of
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import beside_best

CANDIDATES = 160
"""Plans that are looked at for a few that are measured: as many as an agent's lanes finish."""
SHARE, FINALISTS = 0.25, 6
"""Of the samples that a glimpse sees; and plans that are measured in full in the end."""


def screened(ledger: Ledger, seed: int) -> None:
    """Measure what a surrogate finds most promising of plans beside the best measured ones."""
    task, generator = ledger.task, np.random.default_rng(seed)
    best_prior(ledger)
    acquisition = Acquisition(ledger, Choice(), seed)
    while True:  # the ledger ends the search when it is spent
        plans_NG = beside_best(task, ledger.seen, CANDIDATES, generator)
        acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))


def surrogate(ledger: Ledger, seed: int) -> None:
    """The same with many cheap looks in place of few dear ones.

    Every plan is glimpsed at on a share of the samples, fresh ones if the task has any
    (`fresh_samples`), until just enough is left to measure a few finalists in full: those that the
    surrogate expects most of. They are chosen by samples that they are not measured on.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    finalists = int(min(FINALISTS, ledger.limit // 8))
    if finalists < 2:  # nothing to save
        screened(ledger, seed)
    acquisition = Acquisition(ledger, Choice(share=SHARE), seed)
    with ledger.reserved(finalists):
        acquisition.ask(list(dict.fromkeys(plan_of(task, path(task)) for path in PATHS.values())))
        while True:
            seen = [replace(o, eligible=task.within_budget(o.kept)) for o in ledger.looks]
            plans_NG = beside_best(task, seen, CANDIDATES, generator)
            acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))
    ledger.measure(_finalists(acquisition, finalists))


def _finalists(acquisition: Acquisition, count: int) -> list[Kept]:
    """The plans within the budget that are expected to be best, noise aside."""
    acquisition.fit()
    task = acquisition.ledger.task
    seen = dict.fromkeys(map(as_kept, acquisition.seen.kept_MG))
    plans, expected = [kept for kept in seen if task.within_budget(kept)], acquisition.surrogate
    worth_N = expected(np.array(plans)) if expected else np.zeros(len(plans))
    return [plans[place] for place in np.argsort(-worth_N, kind="stable")[:count]]
