"""What plans are worth to an agent, and who pays for measuring them.

Legend: N plans that lanes finished together, G groups, B plans measured of them, L levels.

A payment turns N finished plans into N worths. `Measured` measures them all. `Practice` lets a
surrogate answer and measures a few that look best; every measured plan refits the surrogate. Only
measured plans are charged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evolution import mutated
from agents.settings import crowd
from agents.surrogate import Strengths, Surrogate
from prune_env import Ledger
from prune_env.mdp.ledger import Exhausted
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import SLACK, Units, as_kept
from prune_env.mdp.task import Kept

Floats = NDArray[np.float64]
FEWEST = 6
"""Measured plans before a surrogate is trusted."""
PARENTS, LEAST = 3, 12
"""Plans of a budget whose neighbours are looked at, and how many of these at least."""
REFIT = 1.3
"""Growth of the measured plans after which a surrogate's strengths are chosen anew."""


class Account:
    """Evaluations of a ledger, but for a reserve.

    Attributes:
        reserve: evaluations that are not to be spent yet.
    """

    def __init__(self, ledger: Ledger, reserve: float = 0.0) -> None:
        self.ledger, self.reserve = ledger, reserve

    @property
    def left(self) -> float:
        """Evaluations that may be spent now."""
        return self.ledger.left - self.reserve

    def measure(self, kept: Sequence[int]) -> Outcome:
        """One charged evaluation.

        Raises:
            Exhausted: nothing but the reserve is left.
        """
        if self.left <= 0:
            raise Exhausted
        return self.ledger.measure(as_kept(kept))

    def quality(self, outcome: Outcome) -> float:
        """The reward without what it pays for cost: 0 is the dense network's quality."""
        return -self.ledger.task.damage(outcome)

    @property
    def seen(self) -> list[Outcome]:
        """What was measured in full, probes included."""
        return [outcome for outcome in self.ledger.history if outcome.metrics.share == 1]


Scale = Callable[[Floats], Floats]
"""From qualities to worths."""


def compression(quality_M: Floats) -> Scale:
    """Worths with full resolution near the best quality, and logarithms far below it.

    The unit is how far the better half falls behind the best. Pruned networks differ by orders of
    magnitude; what matters is near the top.
    """
    top = float(quality_M.max())
    better = np.sort(top - quality_M)[: max(2, (len(quality_M) + 1) // 2)]
    unit = max(float(np.median(better)), 1e-4 * (abs(top) + 1e-4))

    def worth(quality_N: Floats) -> Floats:
        worths: Floats = np.arcsinh((quality_N - top) / unit)
        return worths

    return worth


class Measured:
    """Every finished plan is measured.

    Worths are in units of what the first plan of the ledger lost, so that they stay what they were.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._unit = max(abs(account.quality(account.ledger.history[0])), 1e-3)

    def __call__(self, kept_NG: Units, budget_N: Floats) -> Floats:
        """The worths of N plans, N charged evaluations.

        Raises:
            Exhausted: nothing but the reserve is left.
        """
        found = [self._account.quality(self._account.measure(kept)) for kept in kept_NG]
        return np.arcsinh(np.array(found) / self._unit)

    def potential(self, kept_NG: Units) -> Floats:
        """Nothing is known before plans are measured."""
        return np.zeros(len(kept_NG))


@dataclass(frozen=True)
class Practice:
    """How an agent practises.

    Attributes:
        measured: plans measured of one group of finished ones.
        rehearsals: groups that are paid by the surrogate alone, for each that is measured.
        optimism: standard deviations added to the expected worth when plans are chosen to be
            measured; one of the plans is chosen without.
        neighbours: plans beside the best measured ones that may join those of the policy, of all
            budgets together (of each at least `LEAST`); 0: none ever do.
    """

    measured: int = 4
    rehearsals: int = 4
    optimism: float = 1.0
    neighbours: int = 48


PRACTICE = Practice()


class Practised:
    """Finished plans are paid by a surrogate; the most promising ones are measured now and then."""

    def __init__(self, account: Account, practice: Practice, seed: int) -> None:
        self._account, self._practice = account, practice
        self._generator = np.random.default_rng(seed)
        self._strengths: Strengths | None = None
        self._chosen_at, self._groups, self._measurements = 0, 0, 0
        self.surrogate: Surrogate | None = None
        self._scale: Scale = lambda reward_N: reward_N

    def __call__(self, kept_NG: Units, budget_N: Floats) -> Floats:
        """The worths of N plans; charges those that were measured.

        Raises:
            Exhausted: nothing but the reserve is left.
        """
        self._groups += 1
        if self.surrogate is None or self._groups % (self._practice.rehearsals + 1) == 0:
            self._measure(kept_NG, budget_N)
        if self.surrogate is None:
            return np.zeros(len(kept_NG))
        known = {o.kept: self._account.quality(o) for o in self._account.seen}
        worth_N = self.surrogate(kept_NG)
        for row, kept in enumerate(map(as_kept, kept_NG)):
            if kept in known:
                worth_N[row] = self._scale(np.array([known[kept]]))[0]
        return worth_N

    def potential(self, kept_NG: Units) -> Floats:
        """What plans are worth as far as groups act alone, (N,): a table, so that it is cheap."""
        return np.zeros(len(kept_NG)) if self.surrogate is None else self.surrogate.alone(kept_NG)

    def _measure(self, kept_NG: Units, budget_N: Floats) -> None:
        self._measurements += 1
        for kept in self._promising(kept_NG, budget_N):
            self._account.measure(kept)
        seen = self._account.seen
        if len(seen) < FEWEST:
            return
        quality_M = np.array([self._account.quality(outcome) for outcome in seen])
        self._scale = compression(quality_M)
        if len(seen) >= REFIT * self._chosen_at:
            self._strengths, self._chosen_at = None, len(seen)
        rules = self._account.ledger.task.rules
        kept_MG = np.array([outcome.kept for outcome in seen])
        self.surrogate = Surrogate.fit(rules, kept_MG, self._scale(quality_M), self._strengths)
        self._strengths = self.surrogate.strengths

    def _promising(self, kept_NG: Units, budget_N: Floats) -> list[Kept]:
        """New plans, the most promising first; before there is a surrogate the first ones.

        Promising is what may beat the best plan that is known at its budget.
        """
        fresh, wanted = self._candidates(kept_NG, budget_N), self._practice.measured
        found, budgets = list(fresh), np.array([*fresh.values()])
        if self.surrogate is None or not found:  # a search must go on, even if it repeats itself
            return (found or [as_kept(kept_NG[0])])[:wanted]
        plans = np.array(found)
        gain = self.surrogate(plans) - self._front(budgets)
        hope = gain + self._practice.optimism * self.surrogate.spread(plans)
        if np.ptp(budgets) > 0.0:
            return [found[place] for place in self._of_each_stratum(budgets, gain, hope)]
        order = np.concatenate([[gain.argmax()], np.argsort(-hope, kind="stable")])
        return [found[place] for place in dict.fromkeys(order.tolist())][:wanted]

    def _candidates(self, kept_NG: Units, budget_N: Floats) -> dict[Kept, float]:
        """Plans that were not measured, and the budgets they are for.

        Plans a trade away from the best measured ones join in where the policy has settled and
        brings too few, where groups are many (plans that stray in all of them at once are too
        coarse a choice), and where budgets are (each has few of the lanes).
        """
        known = {outcome.kept for outcome in self._account.seen}
        pairs = zip(map(as_kept, kept_NG), budget_N, strict=True)
        fresh = {kept: float(budget) for kept, budget in pairs if kept not in known}
        crowded = crowd(self._account.ledger.task.length) > 1.0 or np.ptp(budget_N) > 0.0
        if self.surrogate is not None and (crowded or len(fresh) < self._practice.measured):
            for kept, budget in self._neighbours(budget_N):
                if kept not in known:
                    fresh.setdefault(kept, budget)
        return fresh

    def _of_each_stratum(self, budget_N: Floats, gain_N: Floats, hope_N: Floats) -> list[int]:
        """Places of the most promising plans, one of each of as many ranges of budgets.

        Gains of small budgets are larger and would take all. One range, in turn, goes without
        optimism.
        """
        wanted = self._practice.measured
        order, turn = np.argsort(budget_N, kind="stable"), self._measurements % wanted
        strata = [stratum for stratum in np.array_split(order, wanted) if len(stratum)]
        scores = [gain_N if number == turn else hope_N for number in range(len(strata))]
        pairs = zip(strata, scores, strict=True)
        return [int(stratum[score[stratum].argmax()]) for stratum, score in pairs]

    def _front(self, budget_N: Floats) -> Floats:
        """Worths of the best plans measured within these budgets, interpolated between plans."""
        cost_M, quality_M = self._known()
        order = np.argsort(cost_M, kind="stable")
        best_M = np.maximum.accumulate(self._scale(quality_M)[order])
        ahead = np.flatnonzero(np.diff(best_M, prepend=-np.inf) > 0)
        return np.interp(budget_N, cost_M[order][ahead], best_M[ahead])

    def _neighbours(self, budget_N: Floats) -> list[tuple[Kept, float]]:
        """Plans some trades away from the best ones within the lanes' budgets, with these."""
        seen, (cost_M, quality_M) = self._account.seen, self._known()
        order, budgets = np.argsort(-quality_M, kind="stable"), np.unique(budget_N).tolist()
        task, found = self._account.ledger.task, []
        best = {budget: order[cost_M[order] <= budget + SLACK][:PARENTS] for budget in budgets}
        wanted = self._practice.neighbours
        for n in range(max(wanted, LEAST * len(budgets)) if wanted else 0):
            budget = budgets[n % len(budgets)]
            if len(parents := best[budget]):
                parent = seen[parents[n // len(budgets) % len(parents)]].kept
                found.append((mutated(task.at(budget), parent, self._generator), budget))
        return found

    def _known(self) -> tuple[Floats, Floats]:
        """Costs and qualities of the measured plans."""
        seen, rules = self._account.seen, self._account.ledger.task.rules
        cost_M = rules.ratio(np.array([outcome.kept for outcome in seen]))
        return cost_M, np.array([self._account.quality(outcome) for outcome in seen])


Payment = Measured | Practised
