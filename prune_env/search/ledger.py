"""Honest accounting: every searcher measures plans through a `Ledger`, and every plan is charged.

The journal makes any searcher resumable without its help. Its rows are known by the plan and by how
it was to be measured, so that a search goes on from any part of them, in any order: a searcher is
deterministic under its seed, so it asks for the same plans again, and what is missing is measured.
Plans that are asked for together are measured by workers side by side, with the same outcomes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from prune_env.checks import real, refuse
from prune_env.errors import PlanError, RunError
from prune_env.mdp.rewards import Outcome, best_of
from prune_env.mdp.task import PruningTask
from prune_env.search.journal import Journal, Row, digest_of
from prune_env.search.questions import PLAN, PROBE, RACE, SHARE, WHOLE, Question, kind_of
from prune_env.search.workers import IN_PROCESS, Workers


class Exhausted(Exception):
    """All evaluations are spent; `Ledger.run` ends the search here."""


class Ledger:
    """Measures plans for one search, charges them, and remembers them.

    Asking for the same plan twice is charged twice, though it is measured once: a searcher that
    repeats itself pays for it.

    Attributes:
        task: the task, whose `outcome` is the expensive part.
        limit: evaluations that may be charged; a plan given up early costs the share that
            was run of all samples, those of its repair included.
        clock: what it tells the time by.
        workers: who measures.
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
        workers: Workers = IN_PROCESS,
    ) -> None:
        real("a number of plans above 0", lambda x: 0 < x < math.inf)("limit", limit)
        self.task, self.limit, self.workers = task, limit, workers
        self.history: list[Outcome] = []
        self.figures: dict[str, float] = {}
        self.seconds: list[float] = []
        self.clock, self._since = clock, clock()
        self._reserve = 0.0
        self._listener = on_outcome
        self._journal = None if journal is None else Journal(Path(journal), task.fingerprint)
        self._task = "" if self._journal is None else self._journal.task
        self._rows: list[Row] = []
        self._told: dict[Question, Outcome] = {}
        self._left: dict[Question, deque[Row]] = {}
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
        return max(0.0, self.limit - self._reserve - self.charged)

    @property
    def exhausted(self) -> bool:
        """Whether nothing more may be measured."""
        return self.left <= 0

    @property
    def seen(self) -> list[Outcome]:
        """What was measured in full, probes included."""
        return [
            row.outcome for row in self._rows
            if not row.asked.startswith(SHARE) and row.outcome.metrics.share == 1
        ]  # fmt: skip

    @property
    def looks(self) -> list[Outcome]:
        """What was glimpsed at."""
        return [row.outcome for row in self._rows if row.asked.startswith(SHARE)]

    @property
    def best(self) -> Outcome:
        """The outcome of the highest rank: eligible, of best quality, then cheapest, then first."""
        return best_of(self.history)

    @contextlib.contextmanager
    def reserved(self, evaluations: float) -> Iterator[None]:
        """Inside the `with` block so many evaluations are kept for what comes after it.

        The block ends when all others are spent.
        """
        self._reserve += evaluations
        try:
            with contextlib.suppress(Exhausted):
                yield
        finally:
            self._reserve -= evaluations

    def measure(self, plans: Iterable[Sequence[int]]) -> list[Outcome]:
        """The outcomes of finished plans, each charged as one evaluation.

        A task with `stages` gives up plans that fall behind the best one of before this call.

        Raises:
            Exhausted: nothing is left to spend. As many of the plans as could be paid for were
                measured before.
            PlanError: a plan is none of this task, or exceeds the budget.
            RunError: the journal cannot be written, or workers died.
        """
        eligible = [outcome for outcome in self.history if outcome.eligible]
        raced = bool(eligible) and self.task.races
        return self._answered(plans, f"{RACE} {best_of(eligible).reward!r}" if raced else PLAN)

    def probe(self, plans: Iterable[Sequence[int]], share: float = 1.0) -> list[Outcome]:
        """The outcomes of any levels, beyond the budget too; charged. See `PruningTask.probe`."""
        return self._answered(plans, PROBE if share == 1 else f"{PROBE} {float(share)!r}")

    def glimpse(self, plans: Iterable[Sequence[int]], share: float) -> list[Outcome]:
        """The outcomes on a share of the samples, charged as such; see `PruningTask.glimpse`.

        Where plans have fresh samples of their own, the reference plan that they stand beside is
        measured on all of these first, and charged like any other.
        """
        if self.task.widest and not self.looks:
            self._answered([self.task.reference], f"{SHARE} {self.task.widest!r}")
        return self._answered(plans, f"{SHARE} {float(share)!r}")

    def replay(self) -> None:
        """Take over every row of the journal, in its order: a finished search is in its journal."""
        for row in self._journal.rows if self._journal else ():
            if self.exhausted:
                break
            self._charge(row)

    def settle(self) -> None:
        """Let the journal hold what was asked for, in this order."""
        if self._journal is not None:
            self._journal.rewrite(self._rows)

    @property
    def digest(self) -> str:
        """Changes with every outcome, but not with times."""
        return digest_of(self._rows)

    def _answered(self, plans: Iterable[Sequence[int]], asked: str) -> list[Outcome]:
        questions, outcomes = [Question(kept, asked) for kept in _each(plans)], list[Outcome]()
        while len(outcomes) < len(questions):
            if self.exhausted:
                raise Exhausted
            # Plans that are given up early leave something for those that come after.
            paid = questions[len(outcomes) : len(outcomes) + math.ceil(self.left)]
            for row in self._rows_of(paid):
                self._charge(row)
                outcomes.append(row.outcome)
        return outcomes

    def _rows_of(self, questions: Sequence[Question]) -> Iterator[Row]:
        """In their order: from the journal, from what this search was told before, or new.

        What is new is in the journal as soon as it is measured, in whatever order that is.
        """
        new = [q for q in dict.fromkeys(questions) if not self._left.get(q) and not self._again(q)]
        answers, rows = self.workers.map(self.task, new), dict[Question, Row]()
        for question in questions:
            if left := self._left.get(question):
                yield left.popleft()
            elif known := self._again(question):
                yield self._written(question, known)
            else:
                while question not in rows:
                    answered, outcome = next(answers)
                    rows[answered] = self._written(answered, outcome)
                yield rows[question]

    def _written(self, question: Question, outcome: Outcome) -> Row:
        row = Row(self._task, question.asked, outcome, self.clock() - self._since)
        self._since = self.clock()
        if self._journal is not None:
            self._journal.append(row)
        return row

    def _charge(self, row: Row) -> None:
        self._since = self.clock()  # what is replayed was paid for already
        self._rows.append(row)
        self._told[Question(row.outcome.kept, kind_of(row.asked))] = row.outcome
        self.seconds.append(row.seconds)
        self.history.append(row.outcome)
        if self._listener is not None:
            self._listener(self, row.outcome)

    def _again(self, question: Question) -> Outcome | None:
        """What this search was told of a plan before.

        One given up stays given up, as the best only gets better. A plan within the budget that was
        measured in full answers whatever asks for all, if that is the same (see `probe`).
        """
        kind = kind_of(question.asked)
        alike = kind in WHOLE and not (kind == PROBE and self.task.tunes)
        for name in (kind, *(WHOLE if alike else ())):
            outcome = self._told.get(Question(question.kept, name))
            if outcome is not None and (name == kind or outcome.eligible):
                return outcome
        return None

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


def _each(plans: Iterable[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """The plans of a list.

    Raises:
        PlanError: it is one plan.
    """
    for kept in plans:
        try:
            yield tuple(kept)
        except TypeError:
            refuse("plans", plans, "a list of plans, such as ledger.measure([kept])", PlanError)
