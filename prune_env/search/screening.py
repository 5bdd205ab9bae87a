"""The surrogate without a policy: what agents have to beat to show that they are of use.

Legend: N plans looked at, G groups.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.path import beside
from prune_env.mdp.rules import Units
from prune_env.search.account import LANES, PARENTS, PRACTICE, SPREAD, Account, Practised
from prune_env.search.allocators import best_prior
from prune_env.search.evolution import all_mutated
from prune_env.search.ledger import Ledger

Floats = NDArray[np.float64]


def screened(ledger: Ledger, seed: int) -> None:
    """Measure what a surrogate finds most promising of plans beside the best measured ones.

    It looks at as many plans for every measured one as an agent's lanes would have finished.
    """
    account, generator = Account(ledger), np.random.default_rng(seed)
    best_prior(ledger)
    payment = Practised(account, replace(PRACTICE, rehearsals=0), seed)
    count = LANES * (PRACTICE.rehearsals + 1)
    while True:  # the ledger ends the search when it is spent
        plans_NG = beside_best(account, count, generator)
        payment(plans_NG, np.full(count, ledger.task.budget))


def beside_best(account: Account, count: int, generator: np.random.Generator) -> Units:
    """Plans (N, G) beside the best measured ones.

    Half of them are some trades away, the others at offsets of any size in all groups.
    """
    task, eligible = account.ledger.task, [o for o in account.seen if o.eligible]
    best = sorted(eligible, key=lambda outcome: outcome.rank, reverse=True)[:PARENTS]
    parents = [best[number % len(best)].kept for number in range(count)]
    traded = all_mutated(task, parents[: count // 2], generator)
    kept_NG, rules = np.array(parents[count // 2 :]), task.rules
    size_N = generator.random((len(kept_NG), 1))
    want_NG = beside(rules.sparsity(kept_NG), size_N * generator.normal(0, SPREAD, kept_NG.shape))

    def shifted(shift_N: Floats) -> Floats:
        return np.clip(want_NG + shift_N[:, None] - 1.0, 0.0, 1.0)

    budget_N = np.full(len(want_NG), task.budget)
    asked_NG = shifted(rules.decode(shifted, 2.0, budget_N))
    moved_NG = task.leftover(rules, rules.snap(asked_NG), asked_NG, budget_N)
    return np.concatenate([traded, moved_NG])
