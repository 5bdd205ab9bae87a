"""What plans are worth to an agent, and who pays for measuring them.

Legend: N plans that lanes finished together, G groups, B plans measured of them, L levels.

A payment turns N finished plans into N worths. `Measured` measures them all. `Practice` lets a
surrogate answer and measures a few that look best; every measured plan refits the surrogate. Only
measured plans are charged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import SLACK, Units, as_kept
from prune_env.search.evolution import all_mutated
from prune_env.search.ledger import Exhausted, Ledger
from prune_env.search.surrogate import Strengths, Surrogate

Floats = NDArray[np.float64]
LANES = 32
"""Plans that are looked at together, an agent's episodes in lockstep."""
FEW = 10
"""Groups that `LANES` plans tell apart."""
SPREAD = 0.14
"""First standard deviation of an action; it changes what a group keeps by a factor of 1.3."""
FEWEST = 6
"""Measured plans before a surrogate is trusted."""
PARENTS = 3
"""Plans of a budget whose neighbours are looked at."""
NEAR, NEAREST = 0.4, 60
"""Share of the measured plans that one budget of several is judged by, and at least how many."""
GOLDEN = (5.0**0.5 - 1.0) / 2.0
"""The fraction whose multiples, modulo 1, stay spread out best."""
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

    @property
    def seen(self) -> list[Outcome]:
        """What was measured in full, probes included."""
        return [outcome for outcome in self.ledger.history if outcome.metrics.share == 1]


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


class Measured:
    """Every finished plan is measured.

    Worths are in units of what the first plan of the ledger lost, so that they stay what they were.
    """

    def __init__(self, account: Account) -> None:
        self._account, self._dense = account, account.ledger.task.dense_reward
        self._unit = max(abs(account.ledger.history[0].reward - self._dense), 1e-3)

    def __call__(self, kept_NG: Units, budget_N: Floats) -> Floats:
        """The worths of N plans, N charged evaluations.

        Raises:
            Exhausted: nothing but the reserve is left.
        """
        reward_N = np.array([self._account.measure(kept).reward for kept in kept_NG])
        worths: Floats = np.arcsinh((reward_N - self._dense) / self._unit)
        return worths

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
        neighbours: plans beside the best measured ones of a budget that may join those of the
            policy; 0: none ever do.
    """

    measured: int = 4
    rehearsals: int = 4
    optimism: float = 1.0
    neighbours: int = 48


PRACTICE = Practice()


@dataclass(frozen=True, eq=False)
class Seen:
    """The M measured plans (M, G), with their costs and rewards, both (M,)."""

    kept_MG: Units
    cost_M: Floats
    reward_M: Floats

    @staticmethod
    def of(account: Account) -> Seen:
        """What an account has measured in full, in order."""
        seen, task = account.seen, account.ledger.task
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


class Practised:
    """Finished plans are paid by a surrogate; the most promising ones are measured now and then."""

    def __init__(self, account: Account, practice: Practice, seed: int) -> None:
        self._account, self._practice = account, practice
        self._generator = np.random.default_rng(seed)
        self._strengths: Strengths | None = None
        self._chosen_at, self._groups, self._turns = 0, 0, 0
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
        known = {outcome.kept: outcome.reward for outcome in self._account.seen}
        worth_N = self.surrogate(kept_NG)
        for row, kept in enumerate(map(as_kept, kept_NG)):
            if kept in known:
                worth_N[row] = self._scale(np.array([known[kept]]))[0]
        return worth_N

    def potential(self, kept_NG: Units) -> Floats:
        """What plans are worth as far as groups act alone, (N,): a table, so that it is cheap."""
        return np.zeros(len(kept_NG)) if self.surrogate is None else self.surrogate.alone(kept_NG)

    def _measure(self, kept_NG: Units, budget_N: Floats) -> None:
        for kept in self._promising(kept_NG, budget_N):
            self._account.measure(kept)
        seen = Seen.of(self._account)
        if len(seen.kept_MG) < FEWEST:
            return
        self._scale = compression(seen.reward_M)
        if len(seen.kept_MG) >= REFIT * self._chosen_at:
            self._strengths, self._chosen_at = None, len(seen.kept_MG)
        self.surrogate = self._fitted(seen, self._scale, self._strengths)
        self._strengths = self.surrogate.strengths

    def _fitted(self, seen: Seen, scale: Scale, strengths: Strengths | None = None) -> Surrogate:
        rules = self._account.ledger.task.rules
        return Surrogate.fit(rules, seen.kept_MG, scale(seen.reward_M), strengths)

    def _judge(self, seen: Seen, budget: float) -> Surrogate | None:
        """What chooses among plans of one budget of several: fitted to the nearest in cost.

        What tells good plans of a budget apart is small beside what tells budgets apart.
        """
        if len(seen.kept_MG) < FEWEST:
            return self.surrogate
        near = seen.nearest(budget)
        return self._fitted(near, compression(near.reward_M))

    def _promising(self, kept_NG: Units, budget_N: Floats) -> list[Kept]:
        """New plans of the budgets whose turn it is, the most promising ones of each.

        Plans of different budgets are not compared: small ones promise larger gains.
        """
        several = bool(np.ptp(budget_N) > 0.0)
        seen, found = Seen.of(self._account), list[Kept]()
        known = set(map(as_kept, seen.kept_MG))
        for budget, turns in self._due(budget_N).items():
            fresh = _new(map(as_kept, kept_NG[budget_N == budget]), known)
            if self._joined(several, len(fresh)):
                fresh += _new(self._neighbours(seen, budget), known.union(fresh))
            judge = self._judge(seen, budget) if several else self.surrogate
            found += self._chosen(fresh, turns, judge)
            known.update(found)
        return found or [as_kept(kept_NG[0])]  # a search must go on, even if it repeats itself

    def _due(self, budget_N: Floats) -> dict[float, list[int]]:
        """Budgets and the turns that fall on them: as often as episodes do, and well spread.

        Multiples of the golden ratio leave no gap large, whichever turn is the last.
        """
        order_N, first, due = np.sort(budget_N), self._turns, dict[float, list[int]]()
        self._turns += self._practice.measured
        for turn in range(first, self._turns):
            place = int(len(order_N) * (turn * GOLDEN % 1.0))
            due.setdefault(float(order_N[place]), []).append(turn)
        return due

    def _joined(self, several: bool, fresh: int) -> bool:
        """Whether plans a trade away from the best measured ones compete with the policy's.

        They do where it has settled and brings too few, where groups are many (plans that stray in
        all of them at once are too coarse a choice), and where budgets are (each has few lanes).
        """
        many = several or crowd(self._account.ledger.task.length) > 1.0
        return self.surrogate is not None and (many or fresh < self._practice.measured)

    def _chosen(
        self, fresh: Sequence[Kept], turns: Sequence[int], judge: Surrogate | None
    ) -> list[Kept]:
        """The plans of one budget that are measured; every so many turns one without optimism."""
        if judge is None or not fresh:
            return list(fresh[: len(turns)])
        plans, places = np.array(fresh), list[int]()
        worth_N = judge(plans)
        hope_N = worth_N + self._practice.optimism * judge.spread(plans)
        for turn in turns[: len(fresh)]:
            score_N = hope_N if turn % self._practice.measured else worth_N
            order = np.argsort(-score_N, kind="stable").tolist()
            places.append(next(place for place in order if place not in places))
        return [fresh[place] for place in places]

    def _neighbours(self, seen: Seen, budget: float) -> list[Kept]:
        """Plans some trades away from the best ones within a budget."""
        best, task = seen.best(budget, PARENTS), self._account.ledger.task.at(budget)
        count = self._practice.neighbours if best else 0
        parents = [best[n % len(best)] for n in range(count)]
        return all_mutated(task, parents, self._generator) if parents else []


def _new(plans: Iterable[Kept], known: Set[Kept]) -> list[Kept]:
    """Each plan once, but for those that are known."""
    return [kept for kept in dict.fromkeys(plans) if kept not in known]


Payment = Measured | Practised


def crowd(length: int) -> float:
    """How many times as many groups as the few that one group of plans tells apart."""
    return max(1.0, length / FEW)
