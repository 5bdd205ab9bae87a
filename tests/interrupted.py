"""Law 8: same task, same seed, any interruption: same plan, same journal as a set."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from prune_env.mdp.task import PruningTask
from prune_env.search.searchers import JOURNAL, SearchResult, run_search

Make = Callable[[], PruningTask]
EVALUATIONS = 10


def searched(task: PruningTask, name: str, folder: Path) -> SearchResult:
    """One search of a seed that never changes."""
    return run_search(task, name, EVALUATIONS, 5, folder)


def require_same_after_interruptions(make: Make, name: str, folder: Path) -> None:
    """Whole, killed with any rows on the disk in any order, and finished with rows gone."""
    whole = searched(make(), name, folder / "whole")
    text = (folder / "whole" / JOURNAL).read_text()
    first, *rows = text.splitlines(keepends=True)
    draw = random.Random(0)
    for place, done in (("killed", False), ("cut", True)):
        some = draw.sample(rows, len(rows) // 2)
        torn = rows[-1][: draw.randrange(20)]
        part = folder / place
        part.mkdir()
        if done:  # a search that says it is finished, whose journal lost rows
            for file in (folder / "whole").iterdir():
                (part / file.name).write_bytes(file.read_bytes())
        (part / JOURNAL).write_text(first + "".join(some) + torn)
        again = searched(make(), name, part)
        assert again.plan == whole.plan
        assert again.history == whole.history
        journals = [(folder / p / JOURNAL).read_text().splitlines() for p in ("whole", place)]
        assert len(journals[0]) == len(journals[1])
        assert set(some) <= set((part / JOURNAL).read_text().splitlines(keepends=True))
        assert searched(make(), name, part).seconds == again.seconds, "finished now"
