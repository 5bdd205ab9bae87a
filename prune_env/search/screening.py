"""The surrogate without a policy: what agents have to beat to show that they are of use."""

from __future__ import annotations

import numpy as np

from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.allocators import best_prior
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import beside_best

CANDIDATES = 160
"""Plans that are looked at for a few that are measured: as many as an agent's lanes finish."""


def screened(ledger: Ledger, seed: int) -> None:
    """Measure what a surrogate finds most promising of plans beside the best measured ones."""
    task, generator = ledger.task, np.random.default_rng(seed)
    best_prior(ledger)
    acquisition = Acquisition(ledger, Choice(), seed)
    while True:  # the ledger ends the search when it is spent
        plans_NG = beside_best(task, ledger.seen, CANDIDATES, generator)
        acquisition.measure(plans_NG, np.full(CANDIDATES, task.budget))
