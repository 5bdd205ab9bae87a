"""Honest accounting: every searcher measures plans through a `Ledger`, and every plan is charged.

The journal makes any searcher resumable without its help: a searcher is deterministic under its
seed, so the same search started again asks for the same plans in the same order, and those already
in the journal are answered from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prune_env.errors import RunError
from prune_env.mdp.rewards import Outcome, best_of
from prune_env.mdp.task import PruningTask
from prune_env.measure.evaluators import Metrics
from prune_env.storage import write_text


class Exhausted(Exception):
    """All evaluations are spent; `Ledger.run` ends the search here."""


class Ledger:
    """Measures plans for one search, charges them, and remembers them.

    Asking for the same plan twice is charged twice: a searcher that repeats itself pays for it.

    Attributes:
        task: the task, whose `outcome` is the expensive part.
        limit: evaluations that may be charged; a plan given up early costs the share of the
            samples that it was measured on.
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
        self.task, self.limit = task, limit
        self.history: list[Outcome] = []
        self.figures: dict[str, float] = {}
        self.seconds: list[float] = []
        self._clock, self._since = clock, clock()
        self._listener = on_outcome
        self._journal = None if journal is None else Path(journal)
        self._known = _read(self._journal)
        self._replayed = 0

    @property
    def folder(self) -> Path | None:
        """Where the search keeps its files, if it has a journal."""
        return None if self._journal is None else self._journal.parent

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

    @property
    def journalled(self) -> tuple[tuple[int, ...], ...]:
        """Plans in the journal, in order."""
        return tuple(tuple(row["kept"]) for row in self._known)

    def measure(self, kept: Sequence[int]) -> Outcome:
        """The outcome of a finished plan, charged as one evaluation.

        Raises:
            Exhausted: nothing is left to spend.
            RunError: the journal is of another search.
        """
        eligible = [outcome for outcome in self.history if outcome.eligible]
        rival = best_of(eligible) if eligible else None
        return self._charge(kept, lambda: self.task.outcome(kept, rival))

    def probe(self, kept: Sequence[int]) -> Outcome:
        """The outcome of any levels, beyond the budget too; see `PruningTask.probe`. Charged."""
        return self._charge(kept, lambda: self.task.probe(kept))

    def glimpse(self, kept: Sequence[int], share: float) -> Outcome:
        """The outcome on a share of the samples, charged its share; see `PruningTask.glimpse`."""
        return self._charge(kept, lambda: self.task.glimpse(kept, share))

    def _charge(self, kept: Sequence[int], measure: Callable[[], Outcome]) -> Outcome:
        if self.exhausted:
            raise Exhausted
        outcome = self._recall(tuple(kept)) or self._measure(measure)
        self.history.append(outcome)
        if self._listener is not None:
            self._listener(self, outcome)
        return outcome

    def run(self, search: Callable[[Ledger, int], None], seed: int) -> Outcome:
        """Let a searcher spend the evaluations; returns the best outcome.

        Raises:
            RunError: the searcher ended without measuring any plan.
        """
        self._since = self._clock()
        with contextlib.suppress(Exhausted):
            search(self, seed)
        if not self.history or not self.best.eligible:
            raise RunError(f"searcher {search!r} measured no plan. It must call ledger.measure.")
        return self.best

    def _measure(self, measure: Callable[[], Outcome]) -> Outcome:
        outcome, now = measure(), self._clock()
        self.seconds.append(now - self._since)
        self._since = now
        if self._journal is not None:
            self._known.append({**_row(outcome), "seconds": self.seconds[-1]})
            self._replayed += 1
            _append(self._journal, self._known[-1])
        return outcome

    def _recall(self, kept: tuple[int, ...]) -> Outcome | None:
        if self._replayed >= len(self._known):
            return None
        row = self._known[self._replayed]
        if tuple(row["kept"]) != kept:
            raise RunError(
                f"'{self._journal}' is of another search: its plan {self._replayed} is not "
                "the one asked for now (other code, settings or library versions?). Delete the "
                "file to search afresh."
            )
        self._replayed += 1
        self._since = self._clock()  # what is replayed was paid for already
        values = {**row, "kept": kept, "metrics": Metrics(**row["metrics"])}
        self.seconds.append(values.pop("seconds"))
        return Outcome(**values)


def _row(outcome: Outcome) -> dict[str, Any]:
    return {**dataclasses.asdict(outcome), "kept": list(outcome.kept), "terms": dict(outcome.terms)}


def _append(path: Path, row: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error.strerror or error}. Choose a folder you may write to."
        ) from error


def _read(path: Path | None) -> list[dict[str, Any]]:
    """Rows of a journal; a last line that a kill cut short is dropped from the file."""
    if path is None or not path.exists():
        return []
    fields = {"seconds", *(field.name for field in dataclasses.fields(Outcome))}
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        torn = bool(lines) and not lines[-1].endswith("\n")
        rows = [json.loads(line) for line in lines[: len(lines) - torn]]
        if not all(isinstance(row, dict) and set(row) == fields for row in rows):
            raise ValueError("its lines do not hold outcomes")
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' is not a search journal: {error}. Delete it.") from error
    if torn:
        write_text(path, "".join(lines[:-1]))
    return rows
