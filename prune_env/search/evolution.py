"""Evolution on levels, as in EvoPress (Sieberling et al. 2024): the strongest model-free search.

A child trades levels between groups at constant cost; it replaces its parent unless it ranks below.
"""

from __future__ import annotations

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rewards import best_of
from prune_env.search.allocators import best_prior, plan_of
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import mutated


def evolution(ledger: Ledger, seed: int) -> None:
    """From the best plan that costs no search: uniform, predicted sensitivity, global or OWL."""
    evolve(ledger, seed, plan_of(ledger.task, best_prior(ledger)))


def evolution_uniform(ledger: Ledger, seed: int) -> None:
    """From the uniform plan."""
    evolve(ledger, seed, ledger.task.decode([0.0] * ledger.task.length))


def evolve(ledger: Ledger, seed: int, start: Kept, children: int = 1) -> None:
    """Measure children of the best plan until all is spent.

    With the few hundred evaluations of a search, a child that is kept at once is worth more than
    larger generations, which workers measure side by side. A task with `stages` gives hopeless
    children up early.

    Args:
        ledger, seed: as of every searcher.
        start: the first parent.
        children: of a generation; the best one replaces the parent unless it ranks below.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    (parent,) = ledger.measure([start])
    while True:
        child = best_of(ledger.measure(mutated(task, [parent.kept] * children, generator)))
        if child.rank >= parent.rank:
            parent = child
