"""Searchers that know nothing of the network: what every other has to beat."""

from __future__ import annotations

import numpy as np

from prune_env.mdp.evaluator import Kept
from prune_env.search.ledger import Ledger

TOGETHER = 8
"""Plans that are measured side by side, if there are workers."""


def uniform(ledger: Ledger, seed: int) -> None:
    """The same sparsity everywhere; one evaluation."""
    ledger.measure([ledger.task.decode([0.0] * ledger.task.length)])


def random(ledger: Ledger, seed: int) -> None:
    """Independent random sparsities around the uniform plan, until all is spent.

    How far they spread is drawn for every plan, from a fortieth of the range to all of it: with
    many groups plans that ignore the uniform one are all bad, with few groups they are the best.
    """
    task, generator = ledger.task, np.random.default_rng(seed)

    def drawn() -> Kept:
        spread = 10.0 ** generator.uniform(-1.6, 0.0)
        offsets = spread * generator.uniform(-1.0, 1.0, task.length)
        asked = np.clip(task.uniform_sparsity + offsets, 0.0, 1.0)
        return task.decode(asked.tolist())

    while True:
        ledger.measure([drawn() for _ in range(TOGETHER)])
