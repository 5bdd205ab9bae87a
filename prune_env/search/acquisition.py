"""Which plans are worth measuring: a surrogate of the measured ones, asked about many others.

Legend: N plans to choose from, M measured plans, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rules import Units, as_kept
from prune_env.search.ledger import Ledger
from prune_env.search.neighbours import PARENTS, mutated
from prune_env.search.seen import Scale, Seen, compression
from prune_env.search.surrogate import CHOICES, NOISY, Mean, Strengths, Surrogate

Floats = NDArray[np.float64]
FEW = 10
"""Groups that a few dozen plans tell apart."""
FEWEST = 6
"""Measured plans before a surrogate is trusted."""
GOLDEN = (5.0**0.5 - 1.0) / 2.0
"""The fraction whose multiples, modulo 1, stay spread out best."""
REFIT = 1.3
"""Growth of the measured plans after which a surrogate's strengths are chosen anew."""


@dataclass(frozen=True)
class Choice:
    """How plans are chosen.

    Attributes:
        measured: plans that are measured together.
        optimism: standard deviations added to the expected worth; one of the plans is chosen
            without (an upper confidence bound, and the mean).
        neighbours: plans beside the best measured ones of a budget that may join those to choose
            from; 0: none ever do.
        share: of the samples that plans are measured on; below 1 they are glimpsed at.
    """

    measured: int = 4
    optimism: float = 1.0
    neighbours: int = 48
    share: float = 1.0

    @property
    def looks(self) -> bool:
        """Whether plans are only glimpsed at."""
        return self.share < 1


class Acquisition:
    """A surrogate of all that was measured, and the choice of what is measured next.

    Attributes:
        surrogate: fitted to the measured plans; None while they are fewer than `FEWEST`.
        scale: from rewards to the worths that the surrogate is fitted to.
        mean: what plans are expected to be worth before any is measured, see `Surrogate.fit`.
    """

    def __init__(self, ledger: Ledger, choice: Choice, seed: int, mean: Mean | None = None) -> None:
        self.ledger, self.choice, self.mean = ledger, choice, mean
        self.surrogate: Surrogate | None = None
        self.scale: Scale = lambda reward_N: reward_N
        self._generator = np.random.default_rng(seed)
        self._strengths: Strengths | None = None
        self._chosen_at, self._turns = 0, 0

    def measure(self, kept_NG: Units, budget_N: Floats) -> None:
        """Measure the most promising of N plans, made for budgets (N,), and fit to the outcomes.

        Raises:
            Exhausted: nothing is left to spend.
        """
        self.ask(self.promising(kept_NG, budget_N))
        self.fit()

    def ask(self, plans: Sequence[Kept]) -> None:
        """Measure plans as the choice has it, in full or at a glimpse.

        Raises:
            Exhausted: nothing is left to spend.
        """
        if self.choice.looks:
            self.ledger.glimpse(plans, self.choice.share)
        else:
            self.ledger.measure(plans)

    @property
    def seen(self) -> Seen:
        """What the surrogate is fitted to."""
        return Seen.of(self.ledger, looks=self.choice.looks)

    def fit(self) -> None:
        """Fit the surrogate to all that was measured."""
        seen = self.seen
        if len(seen.kept_MG) < FEWEST:
            return
        self.scale = compression(seen.reward_M)
        if len(seen.kept_MG) >= REFIT * self._chosen_at:
            self._strengths, self._chosen_at = None, len(seen.kept_MG)
        self.surrogate = self._fitted(seen, self.scale, self._strengths)
        self._strengths = self.surrogate.strengths

    def _fitted(self, seen: Seen, scale: Scale, strengths: Strengths | None = None) -> Surrogate:
        rules = self.ledger.task.rules
        choices = NOISY if self.choice.looks else CHOICES
        worth_M = scale(seen.reward_M)
        return Surrogate.fit(rules, seen.kept_MG, worth_M, strengths, choices, self.mean)

    def judge(self, seen: Seen, budget: float) -> Surrogate | None:
        """What chooses among plans of one budget of several: fitted to the nearest in cost.

        What tells good plans of a budget apart is small beside what tells budgets apart.
        """
        if len(seen.kept_MG) < FEWEST:
            return self.surrogate
        near = seen.nearest(budget)
        return self._fitted(near, compression(near.reward_M))

    def promising(self, kept_NG: Units, budget_N: Floats) -> list[Kept]:
        """New plans of the budgets whose turn it is, the most promising ones of each.

        Plans of different budgets are not compared: small ones promise larger gains.
        """
        several = bool(np.ptp(budget_N) > 0.0)
        seen, found = self.seen, list[Kept]()
        known = set(map(as_kept, seen.kept_MG))
        for budget, turns in self._due(budget_N).items():
            fresh = _new(map(as_kept, kept_NG[budget_N == budget]), known)
            if self._joined(several, len(fresh)):
                fresh += _new(self.neighbours(seen, budget), known.union(fresh))
            judge = self.judge(seen, budget) if several else self.surrogate
            found += self._chosen(fresh, turns, judge)
            known.update(found)
        return found or [as_kept(kept_NG[0])]  # a search must go on, even if it repeats itself

    def _due(self, budget_N: Floats) -> dict[float, list[int]]:
        """Budgets and the turns that fall on them: as often as episodes do, and well spread.

        Multiples of the golden ratio leave no gap large, whichever turn is the last.
        """
        order_N, first, due = np.sort(budget_N), self._turns, dict[float, list[int]]()
        self._turns += self.choice.measured
        for turn in range(first, self._turns):
            place = int(len(order_N) * (turn * GOLDEN % 1.0))
            due.setdefault(float(order_N[place]), []).append(turn)
        return due

    def _joined(self, several: bool, fresh: int) -> bool:
        """Whether plans a trade away from the best measured ones compete with the policy's.

        They do where it has settled and brings too few, where groups are many (plans that stray in
        all of them at once are too coarse a choice), and where budgets are (each has few lanes).
        """
        many = several or crowd(self.ledger.task.length) > 1.0
        return self.surrogate is not None and (many or fresh < self.choice.measured)

    def _chosen(
        self, fresh: Sequence[Kept], turns: Sequence[int], judge: Surrogate | None
    ) -> list[Kept]:
        """The plans of one budget that are measured; every so many turns one without optimism."""
        if judge is None or not fresh:
            return list(fresh[: len(turns)])
        plans, places = np.array(fresh), list[int]()
        worth_N = judge(plans)
        hope_N = worth_N + self.choice.optimism * judge.spread(plans)
        for turn in turns[: len(fresh)]:
            score_N = hope_N if turn % self.choice.measured else worth_N
            order = np.argsort(-score_N, kind="stable").tolist()
            places.append(next(place for place in order if place not in places))
        return [fresh[place] for place in places]

    def neighbours(self, seen: Seen, budget: float) -> list[Kept]:
        """Plans some trades away from the best ones within a budget."""
        best, task = seen.best(budget, PARENTS), self.ledger.task.at(budget)
        count = self.choice.neighbours if best else 0
        parents = [best[n % len(best)] for n in range(count)]
        return mutated(task, parents, self._generator) if parents else []


def _new(plans: Iterable[Kept], known: Set[Kept]) -> list[Kept]:
    """Each plan once, but for those that are known."""
    return [kept for kept in dict.fromkeys(plans) if kept not in known]


def crowd(length: int) -> float:
    """How many times as many groups as the few that one group of plans tells apart."""
    return max(1.0, length / FEW)
