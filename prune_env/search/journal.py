"""A journal: what was measured of the plans of one task, a line each, safe from kills and damage.

The first line says what task it is of, see `PruningTask.fingerprint`; every line is sealed, and
names that task, so that none can be damaged or come from another journal without being noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prune_env.errors import RunError
from prune_env.fingerprint import Identity, differences, joined_identity
from prune_env.mdp.rewards import Outcome
from prune_env.records import read_record
from prune_env.search.questions import Question
from prune_env.storage import Unreadable, seal, unseal, write_text

FORMAT = 2


@dataclass(frozen=True)
class Row:
    """One outcome.

    Attributes:
        task: which it is of, see `joined_identity`.
        asked: how the plan was to be measured, see `Question`.
        outcome: what was measured.
        seconds: that it took, searching included.
    """

    task: str
    asked: str
    outcome: Outcome
    seconds: float

    @property
    def key(self) -> Question:
        """What the row answers."""
        return Question(self.outcome.kept, self.asked)


@dataclass(frozen=True)
class Origin:
    """The first line: the format, and what the rows are of."""

    journal: int
    task: dict[str, str]


class Journal:
    """The file of a journal.

    Attributes:
        path: of the file; it is made with the first row.
        task: mark of the task, for rows.
        rows: what it holds, in its order.
    """

    def __init__(self, path: Path, task: Identity) -> None:
        """Open a journal; a last line that a kill cut short is dropped from the file.

        Raises:
            RunError: it is of another task (says what differs), damaged, or no journal.
        """
        self.path, self.task = path, joined_identity(task)
        self._first = _first(Origin(FORMAT, dict(task)))
        first, *lines = self._lines() if path.exists() else [self._first]
        self._require_task(first, task)
        self.rows = [self._row(number, line) for number, line in enumerate(lines, 2)]

    def append(self, row: Row) -> None:
        """Write a row; it is on the disk when this returns.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("" if file.tell() else self._first) + _line(row))
                file.flush()
                os.fsync(file.fileno())
            self.rows.append(row)
        except OSError as error:
            raise RunError(
                f"cannot write '{self.path}': {error.strerror or error}. Choose a folder you may "
                "write to."
            ) from error

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Let the file hold just these rows, in this order."""
        if list(rows) != self.rows:
            write_text(self.path, self._first + "".join(map(_line, rows)))
            self.rows = list(rows)

    def _lines(self) -> list[str]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if lines and not lines[-1].endswith("\n"):
            lines = lines[:-1]
            write_text(self.path, "".join(lines))
        return lines or [self._first]

    def _require_task(self, line: str, task: Identity) -> None:
        try:
            first = read_record(Origin, unseal(line))
            if _first(first) != line:
                raise Unreadable("its layout is not ours")
        except Unreadable as error:
            raise self._damaged(f"line 1: {error}") from error
        if first.journal != FORMAT:
            raise self._damaged(f"its format is {first.journal}, this version reads {FORMAT}")
        differ = differences(first.task, task)
        if differ:
            raise RunError(
                f"'{self.path}' is of another task: {differ}. Choose another folder, or delete "
                "this one to search afresh."
            )

    def _row(self, number: int, line: str) -> Row:
        try:
            row = read_record(Row, unseal(line))
            if row.task != self.task:
                raise Unreadable("it comes from the journal of another task")
            if _line(row) != line:  # "1e-3" as "1E-3"
                raise Unreadable("its layout is not ours")
        except Unreadable as error:
            raise self._damaged(f"line {number}: {error}") from error
        return row

    def _damaged(self, why: str) -> RunError:
        return RunError(
            f"'{self.path}' is not a search journal, or is damaged: {why}. Delete it to search "
            "afresh."
        )


def digest_of(rows: Sequence[Row]) -> str:
    """Changes with every row but not with times: equal searches have equal digests."""
    text = "".join(_line(dataclasses.replace(row, seconds=0.0)) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _first(origin: Origin) -> str:
    return seal(dataclasses.asdict(origin)) + "\n"


def _line(row: Row) -> str:
    return seal(dataclasses.asdict(row)) + "\n"
