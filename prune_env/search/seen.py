"""What a search has measured, as arrays, and what rewards are worth to a model of them.

Legend: N rewards, M measured plans, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rules import SLACK, Units, as_kept
from prune_env.search.ledger import Ledger

Floats = NDArray[np.float64]
NEAR, NEAREST = 0.4, 60
"""Share of the measured plans that one budget of several is judged by, and at least how many."""

Scale = Callable[[Floats], Floats]
"""From rewards to worths."""


def compression(reward_M: Floats) -> Scale:
    """Worths with full resolution near the best reward, and logarithms far below it.

    The unit is how far the better half falls behind the best. Pruned networks differ by orders of
    magnitude; what matters is near the top.
    """
    top = float(reward_M.max())
    better = np.sort(top - reward_M)[: max(2, (len(reward_M) + 1) // 2)]
    unit = max(float(np.median(better)), 1e-4 * (abs(top) + 1e-4))

    def worth(reward_N: Floats) -> Floats:
        worths: Floats = np.arcsinh((reward_N - top) / unit)
        return worths

    return worth


@dataclass(frozen=True, eq=False)
class Seen:
    """The M measured plans (M, G), with their costs and rewards, both (M,)."""

    kept_MG: Units
    cost_M: Floats
    reward_M: Floats

    @staticmethod
    def of(ledger: Ledger, looks: bool = False) -> Seen:
        """What a ledger has measured in full, in order; or what it has glimpsed at."""
        seen, task = ledger.looks if looks else ledger.seen, ledger.task
        kept_MG = np.array([outcome.kept for outcome in seen], np.int64).reshape(-1, task.length)
        reward_M = np.array([outcome.reward for outcome in seen])
        return Seen(kept_MG, task.rules.ratio(kept_MG), reward_M)

    def nearest(self, budget: float) -> Seen:
        """The share of them that one budget of several is judged by: those nearest in cost."""
        order_M = np.argsort(np.abs(np.log(self.cost_M / budget)), kind="stable")
        near = np.sort(order_M[: max(NEAREST, int(NEAR * len(order_M)))])
        return Seen(self.kept_MG[near], self.cost_M[near], self.reward_M[near])

    def best(self, budget: float, count: int) -> list[Kept]:
        """The plans within a budget that are paid most, at most `count`."""
        order_M = np.argsort(-self.reward_M, kind="stable")
        within = order_M[self.cost_M[order_M] <= budget + SLACK][:count]
        return [as_kept(row) for row in self.kept_MG[within]]
