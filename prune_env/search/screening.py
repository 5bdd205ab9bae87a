"""Surrogates without a policy: what agents have to beat to show that they are of use."""

from __future__ import annotations

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rules import as_kept
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.allocators import PATHS, best_prior, plan_of
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import PARENTS, best_plans, nearby

CANDIDATES = 160
"""Plans that are looked at for a few that are measured: as many as an agent's lanes finish."""
SHARE, LOOKS, FINALISTS = 0.25, 240, 6
"""Of the samples that a glimpse sees; plans glimpsed at; and those measured in full after it."""


def screened(ledger: Ledger, seed: int) -> None:
    """Measure what a surrogate finds most promising of plans beside the best measured ones."""
    generator = np.random.default_rng(seed)
    best_prior(ledger)
    _spend(Acquisition(ledger, Choice(), seed), generator)


def surrogate(ledger: Ledger, seed: int) -> None:
    """The same with many cheap looks in place of few dear ones.

    Plans are glimpsed at on a share of the samples, fresh ones if the task has any
    (`fresh_samples`), until just enough is left to measure a few finalists in full, or so many were
    seen that more would tell little. Finalists are those that the surrogate of looks expects most
    of; they are chosen by samples that they are not measured on. What is left is spent on full
    measurements, by a surrogate of these whose mean is that of looks.

    Where plans are tuned before they are measured in full, a look tells less of the end: finalists
    lie further down the list then, and the uniform plan is one of them.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    finalists = int(min(FINALISTS, ledger.limit // (2 if task.tunes else 8)))
    if finalists < 2:  # nothing to save
        screened(ledger, seed)
    acquisition = Acquisition(ledger, Choice(share=SHARE), seed)
    with ledger.reserved(finalists):
        acquisition.ask(list(dict.fromkeys(plan_of(task, path(task)) for path in PATHS.values())))
        while len(ledger.looks) < LOOKS:
            plans_NG = nearby(task, _likeliest(acquisition, PARENTS), CANDIDATES, generator)
            acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))
    acquisition.fit()
    likeliest = _likeliest(acquisition, 2**finalists if task.tunes else finalists)
    if task.tunes:
        ranks = [likeliest[place] for n in range(finalists) if (place := 2**n - 1) < len(likeliest)]
        likeliest = list(dict.fromkeys([*ranks[: finalists - 1], task.reference]))
    ledger.measure(likeliest)
    decided = Acquisition(ledger, Choice(), seed, mean=acquisition.surrogate)
    decided.fit()
    _spend(decided, generator)


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
