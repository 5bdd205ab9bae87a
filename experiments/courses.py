"""Searches by agents on a course of their own: from a saved policy, or under many budgets.

`agents.search.run_search` knows a searcher by its name, which says nothing of a course.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agents.search import FACTS, JOURNAL, PLAN, Listener, Searcher, SearchResult, run_search
from experiments.directory import once
from prune_env import Ledger, PruningTask
from prune_env.errors import ConfigError, RunError


@dataclass(frozen=True)
class Search:
    """What is searched with.

    Attributes:
        name: of the searcher, for notes.
        evaluations: plans that may be measured.
        seed: of the searcher.
        run: the searcher; None is the one of that name.
    """

    name: str
    evaluations: int
    seed: int
    run: Searcher | None = None


def is_agent(name: str) -> bool:
    """Whether a searcher has a policy."""
    from agents.sb3 import AGENTS

    return name in AGENTS


def require_agent(name: str) -> None:
    """Check that a searcher has a policy.

    Raises:
        ConfigError: it has none.
    """
    from agents.sb3 import AGENTS

    if name not in AGENTS:
        raise ConfigError(
            f"searcher '{name}' has no policy. Choose an agent ({', '.join(AGENTS)}), or leave out "
            "what asks for a policy."
        )


def continuing(name: str, policy: str | Path) -> Searcher | None:
    """The agent `name` that goes on from a saved policy; without a policy what its name says.

    Raises:
        ConfigError: `name` is no agent, or the file holds no policy of this agent.
    """
    if not policy:
        return None
    from agents.sb3 import Course, learn, load_policy  # not for who only runs baselines

    require_agent(name)
    load_policy(name, Path(policy))
    return partial(learn, name, course=Course(policy=Path(policy)))


def run_course(
    task: PruningTask,
    search: Search,
    folder: Path,
    on_outcome: Listener | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """`run_search`, also for searchers that have no name; as resumable.

    Raises:
        RunError: the folder holds another search, or cannot be written.
    """
    if search.run is None:
        return run_search(
            task, search.name, search.evaluations, search.seed, folder, on_outcome, clock
        )
    settings = {
        "searcher": search.name, "seed": search.seed, "evaluations": search.evaluations,
        "task": task.name, "budget": task.budget, "on": task.on,
    }  # fmt: skip
    finished = _finished(folder / FACTS, settings)
    listener = None if finished else on_outcome
    ledger, start = Ledger(task, search.evaluations, folder / JOURNAL, listener, clock), clock()
    if finished:
        for kept in ledger.journalled:
            ledger.measure(kept)
    else:
        ledger.run(search.run, search.seed)
    notes = {**settings, "evaluations": ledger.spent, "reward": ledger.best.reward}
    plan = task.plan(ledger.best.kept, **notes)
    plan.save(folder / PLAN)
    facts = once(folder / FACTS, lambda: {"settings": settings, "seconds": clock() - start})
    times = tuple(itertools.accumulate(ledger.seconds))
    return SearchResult(ledger.best, plan, tuple(ledger.history), facts["seconds"], times)


def _finished(path: Path, settings: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path}' is damaged ({error!r}). Delete '{path.parent}'.") from error
    if found != settings:
        raise RunError(f"'{path.parent}' holds another search: {found}. Choose another folder.")
    return True
