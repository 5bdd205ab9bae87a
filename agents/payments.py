"""What finished plans are paid: the reward model of our agents.

Legend: N plans that lanes finished together, G groups.

A payment turns N finished plans into N worths. `Measured` measures them all. `Practised` lets a
surrogate answer and measures a few that look best; every measured plan refits the surrogate. Only
measured plans are charged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.rules import Units, as_kept
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.ledger import Ledger
from prune_env.search.surrogate import Surrogate

Floats = NDArray[np.float64]


class Measured:
    """Every finished plan is measured.

    Worths are in units of what the first plan of the ledger lost, so that they stay what they were.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._dense = ledger, ledger.task.dense_reward
        self._unit = max(abs(ledger.history[0].reward - self._dense), 1e-3)

    def __call__(self, kept_NG: Units, budget_N: Floats) -> Floats:
        """The worths of N plans, N charged evaluations.

        Raises:
            Exhausted: nothing is left to spend.
        """
        outcomes = self._ledger.measure(map(as_kept, kept_NG))
        reward_N = np.array([outcome.reward for outcome in outcomes])
        worths: Floats = np.arcsinh((reward_N - self._dense) / self._unit)
        return worths

    def potential(self, kept_NG: Units) -> Floats:
        """Nothing is known before plans are measured."""
        return np.zeros(len(kept_NG))


@dataclass(frozen=True)
class Practice(Choice):
    """How an agent practises.

    Attributes:
        rehearsals: groups of plans that are paid by the surrogate alone, for each of which some are
            measured.
    """

    rehearsals: int = 4


PRACTICE = Practice()


class Practised:
    """Finished plans are paid by a surrogate; the most promising ones are measured now and then."""

    def __init__(self, ledger: Ledger, practice: Practice, seed: int) -> None:
        self._ledger, self._groups, self._every = ledger, 0, practice.rehearsals + 1
        self._acquisition = Acquisition(ledger, practice, seed)

    @property
    def surrogate(self) -> Surrogate | None:
        """Of what was measured; None while that is too little."""
        return self._acquisition.surrogate

    def __call__(self, kept_NG: Units, budget_N: Floats) -> Floats:
        """The worths of N plans; charges those that were measured.

        Raises:
            Exhausted: nothing is left to spend.
        """
        self._groups += 1
        if self.surrogate is None or self._groups % self._every == 0:
            self._acquisition.measure(kept_NG, budget_N)
        if self.surrogate is None:
            return np.zeros(len(kept_NG))
        known = {outcome.kept: outcome.reward for outcome in self._ledger.seen}
        worth_N = self.surrogate(kept_NG)
        for row, kept in enumerate(map(as_kept, kept_NG)):
            if kept in known:
                worth_N[row] = self._acquisition.scale(np.array([known[kept]]))[0]
        return worth_N

    def potential(self, kept_NG: Units) -> Floats:
        """What plans are worth as far as groups act alone, (N,): a table, so that it is cheap."""
        return np.zeros(len(kept_NG)) if self.surrogate is None else self.surrogate.alone(kept_NG)


Payment = Measured | Practised
