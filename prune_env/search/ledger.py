"""Honest accounting: every searcher measures plans through a `Ledger`, and every plan is charged.

The journal makes any searcher resumable without its help. Its rows are known by the plan and by how
it was to be measured, so that a search goes on from any part of them, in any order: a searcher is
deterministic under its seed, so it asks for the same plans again, and what is missing is measured.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prune_env.checks import real
from prune_env.errors import RunError
from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rewards import Outcome, best_of
from prune_env.mdp.task import PruningTask
from prune_env.search.journal import Journal, Row, digest_of

Key = tuple[Kept, str]
PLAN, RACE, PROBE, SHARE = "plan", "race", "probe", "share"
"""How a plan may be asked for, see `Row`."""
WHOLE = (PLAN, RACE, PROBE)
"""Those that a measurement on all samples answers."""


class Exhausted(Exception):
    """All evaluations are spent; `Ledger.run` ends the search here."""


class Ledger:
    """Measures plans for one search, charges them, and remembers them.

    Asking for the same plan twice is charged twice, though it is measured once: a searcher that
    repeats itself pays for it.

    Attributes:
        task: the task, whose `outcome` is the expensive part.
        limit: evaluations that may be charged; a plan given up early costs the share of the
            samples that it was measured on.
        clock: what it tells the time by.
        history: every outcome, in order.
        figures: the searcher's own numbers (losses, entropy), for the next listener to log.
        seconds: by `clock`, from the outcome before to this one, searching included, of every
            outcome; those replayed from a journal keep what they took when they were measured.
    """

    def __init__(
        self,
        task: PruningTask,
        limit: int,
        journal: str | Path | None = None,
        on_outcome: Callable[[Ledger, Outcome], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        real("a number of plans above 0", lambda x: 0 < x < math.inf)("limit", limit)
        self.task, self.limit = task, limit
        self.history: list[Outcome] = []
        self.figures: dict[str, float] = {}
        self.seconds: list[float] = []
        self.clock, self._since = clock, clock()
        self._listener = on_outcome
        self._journal = None if journal is None else Journal(Path(journal), task.fingerprint)
        self._task = "" if self._journal is None else self._journal.task
        self._rows: list[Row] = []
        self._told: dict[Key, Outcome] = {}
        self._left: dict[Key, deque[Row]] = {}
        for row in self._journal.rows if self._journal else ():
            self._left.setdefault(row.key, deque()).append(row)

    def __repr__(self) -> str:
        return f"Ledger({self.task!r}, charged {self.charged:g} of {self.limit})"

    @property
    def folder(self) -> Path | None:
        """Where the search keeps its files, if it has a journal."""
        return None if self._journal is None else self._journal.path.parent

    @property
    def spent(self) -> int:
        """Plans measured so far."""
        return len(self.history)

    @property
    def charged(self) -> float:
        """Evaluations charged so far: every plan's share of the samples, summed."""
        return math.fsum(outcome.metrics.share for outcome in self.history)

    @property
    def left(self) -> float:
        """Evaluations that may still be charged."""
        return max(0.0, self.limit - self.charged)

    @property
    def exhausted(self) -> bool:
        """Whether nothing more may be measured."""
        return self.charged >= self.limit

    @property
    def best(self) -> Outcome:
        """The outcome of the highest rank: eligible, of best quality, then cheapest, then first."""
        return best_of(self.history)

    def measure(self, kept: Sequence[int]) -> Outcome:
        """The outcome of a finished plan, charged as one evaluation.

        Raises:
            Exhausted: nothing is left to spend.
            RunError: the journal cannot be written.
        """
        eligible = [outcome for outcome in self.history if outcome.eligible]
        rival = best_of(eligible) if eligible else None
        asked = f"{RACE} {rival.reward!r}" if rival and self.task.races else PLAN
        return self._charge(kept, asked, lambda: self.task.outcome(kept, rival))

    def probe(self, kept: Sequence[int]) -> Outcome:
        """The outcome of any levels, beyond the budget too; see `PruningTask.probe`. Charged."""
        return self._charge(kept, PROBE, lambda: self.task.probe(kept))

    def glimpse(self, kept: Sequence[int], share: float) -> Outcome:
        """The outcome on a share of the samples, charged its share; see `PruningTask.glimpse`."""
        return self._charge(
            kept, f"{SHARE} {float(share)!r}", lambda: self.task.glimpse(kept, share)
        )

    def replay(self) -> None:
        """Take over every row of the journal, in its order: a finished search is in its journal."""
        with contextlib.suppress(Exhausted):
            for row in self._journal.rows if self._journal else ():
                self._charge(row.outcome.kept, row.asked, partial(getattr, row, "outcome"))

    def settle(self) -> None:
        """Let the journal hold what was asked for, in this order."""
        if self._journal is not None:
            self._journal.rewrite(self._rows)

    @property
    def digest(self) -> str:
        """Changes with every outcome, but not with times."""
        return digest_of(self._rows)

    def _charge(self, kept: Sequence[int], asked: str, measure: Callable[[], Outcome]) -> Outcome:
        if self.exhausted:
            raise Exhausted
        plan = tuple(kept)
        left = self._left.get((plan, asked))
        row = left.popleft() if left else self._measured(asked, self._again(plan, asked), measure)
        self._since = self.clock()  # what is replayed was paid for already
        self._rows.append(row)
        self._told[plan, _kind(asked)] = row.outcome
        self.seconds.append(row.seconds)
        self.history.append(row.outcome)
        if self._listener is not None:
            self._listener(self, row.outcome)
        return row.outcome

    def _again(self, kept: Kept, asked: str) -> Outcome | None:
        """What this search was told of a plan before.

        One given up stays given up, as the best only gets better. A plan within the budget that was
        measured in full answers whatever asks for all.
        """
        kind = _kind(asked)
        for name in (kind, *(WHOLE if kind in WHOLE else ())):
            outcome = self._told.get((kept, name))
            if outcome is not None and (name == kind or outcome.eligible):
                return outcome
        return None

    def _measured(self, asked: str, known: Outcome | None, measure: Callable[[], Outcome]) -> Row:
        outcome = known or measure()
        row = Row(self._task, asked, outcome, self.clock() - self._since)
        if self._journal is not None:
            self._journal.append(row)
        return row

    def run(self, search: Callable[[Ledger, int], None], seed: int) -> Outcome:
        """Let a searcher spend the evaluations; returns the best outcome.

        Raises:
            RunError: the searcher ended without measuring any plan.
        """
        self._since = self.clock()
        with contextlib.suppress(Exhausted):
            search(self, seed)
        if not self.history or not self.best.eligible:
            raise RunError(f"searcher {search!r} measured no plan. It must call ledger.measure.")
        return self.best


def _kind(asked: str) -> str:
    """What was asked for, whatever it was measured against."""
    return RACE if asked.startswith(RACE) else asked
