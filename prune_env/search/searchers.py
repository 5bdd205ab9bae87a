"""One signature and one table for everything that looks for a plan.

A searcher is a function `search(ledger, seed)` that measures plans through the ledger until it has
none left to propose or the ledger is spent. To add one, write the function and put it into
`SEARCHERS`.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prune_env.errors import ConfigError, RunError
from prune_env.fingerprint import Identity, differences, identity_of
from prune_env.locks import locked
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.plan.plan import PruningPlan
from prune_env.records import read_record
from prune_env.search.ledger import Ledger
from prune_env.search.workers import Workers, opened
from prune_env.storage import Unreadable, read_json, write_json

_log = logging.getLogger(__name__)

Searcher = Callable[[Ledger, int], None]
Listener = Callable[[Ledger, Outcome], None]

JOURNAL, PLAN, FACTS = "journal.jsonl", "plan.json", "search.json"

SEARCHERS: dict[str, str] = {
    "uniform": "prune_env.search.baselines:uniform",
    "random": "prune_env.search.baselines:random",
    "global": "prune_env.search.allocators:global_threshold",
    "sensitivity": "prune_env.search.allocators:sensitivity",
    "sensitivity_measured": "prune_env.search.allocators:sensitivity_measured",
    "probe": "prune_env.search.allocators:probe",
    "owl": "prune_env.search.allocators:owl",
    "evolution": "prune_env.search.evolution:evolution",
    "evolution_uniform": "prune_env.search.evolution:evolution_uniform",
    "ppo": "prune_env.agents.sb3:ppo",
    "ppo_plan": "prune_env.agents.sb3:ppo_plan",
    "a2c": "prune_env.agents.sb3:a2c",
    "sac": "prune_env.agents.sb3:sac",
    "td3": "prune_env.agents.sb3:td3",
    "ddpg": "prune_env.agents.sb3:ddpg",
    "tqc": "prune_env.agents.sb3:tqc",
    "screened": "prune_env.search.screening:screened",
    "surrogate": "prune_env.search.screening:surrogate",
    "tpe": "prune_env.agents.optuna_search:tpe",
    "cmaes": "prune_env.agents.optuna_search:cma_es",
}
"""Name -> "module:function", imported when asked for: the list costs nothing."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        best: the outcome of the highest rank.
        plan: its plan, with notes on how it was found.
        history: every charged outcome, in order.
        seconds: wall-clock time of the search; of its last part, if it was resumed.
        times: wall-clock time from the start to each outcome; a resumed search keeps those of its
            earlier parts.
    """

    best: Outcome
    plan: PruningPlan
    history: tuple[Outcome, ...]
    seconds: float
    times: tuple[float, ...] = ()


def searcher_named(name: str) -> Searcher:
    """The searcher called `name`: a key of `SEARCHERS`, or "package.module:function".

    Raises:
        ConfigError: there is none, or a package it needs is missing; says the nearest, or the cure.
    """
    module, colon, function = SEARCHERS.get(name, name).partition(":")
    if not (module and colon and function):
        near = difflib.get_close_matches(name, SEARCHERS, n=1, cutoff=0.3)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"there is no searcher '{name}'.{hint} Known: {', '.join(SEARCHERS)}; or give your own "
            "as 'package.module:function'."
        )
    try:
        searcher: Searcher = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"searcher '{name}' cannot be imported: {error}. Install what it needs "
            "(pip install -e '.[rl]' for ours), or mend the name."
        ) from error
    return searcher


def run_search(
    task: PruningTask,
    name: str,
    evaluations: int,
    seed: int,
    folder: Path | None = None,
    on_outcome: Listener | None = None,
    clock: Callable[[], float] = time.monotonic,
    searcher: Searcher | None = None,
    workers: int | Workers = 1,
) -> SearchResult:
    """Let a searcher spend its evaluations; the same call again resumes or returns the result.

    Args:
        task: what is searched.
        name: of the searcher, kept in notes.
        evaluations: plans that may be measured, at least 1.
        seed: of the searcher.
        folder: keeps journal.jsonl, plan.json, search.json and what the searcher saves; None keeps
            nothing. One search at a time works there: a second one waits.
        on_outcome: called after every charged outcome, replayed ones included; not at all when the
            search was finished already.
        clock: times the outcomes; `time.process_time` leaves out what else the machine does.
        searcher: what searches, where the name does not say it; None: see `searcher_named`.
        workers: processes that measure plans side by side, where the searcher asks for several at
            once; or a `Processes` that is to last longer. The plans found are the same.

    Raises:
        ConfigError: no such searcher, nothing to spend, or a task that cannot be sent to workers.
        RunError: the folder holds another search or one of another task (says what differs), is
            damaged, or cannot be written.
    """
    searcher = searcher or searcher_named(name)
    if evaluations < 1:
        raise ConfigError(f"a search of {evaluations} evaluations finds nothing; give at least 1.")
    settings = {
        "searcher": name, "seed": seed, "evaluations": evaluations, "task": task.name,
        "budget": task.budget, "on": task.on,
    }  # fmt: skip
    with opened(workers) as measuring:
        if folder is None:
            ledger = Ledger(task, evaluations, None, on_outcome, clock, measuring)
            return _searched(ledger, searcher, settings)
        identity = {**task.fingerprint, **identity_of(**settings, algorithm=searcher)}
        with locked(folder):
            done = _finished(folder, identity)
            if done is not None:
                ledger = Ledger(task, evaluations, folder / JOURNAL)
                ledger.replay()
                if ledger.digest == done.journal:
                    return _result(ledger, settings, done.seconds)
                _log.warning("the journal of '%s' lacks rows; they are measured again.", folder)
            ledger = Ledger(task, evaluations, folder / JOURNAL, on_outcome, clock, measuring)
            result = _searched(ledger, searcher, settings)
            ledger.settle()
            result.plan.save(folder / PLAN)
            _write(folder, identity, _Done(result.seconds, ledger.digest))
        return result


def _searched(ledger: Ledger, searcher: Searcher, settings: dict[str, object]) -> SearchResult:
    start = ledger.clock()
    ledger.run(searcher, int(str(settings["seed"])))
    return _result(ledger, settings, ledger.clock() - start)


@dataclass(frozen=True)
class _Done:
    """A finished search: how long it took, and a digest of its journal."""

    seconds: float
    journal: str


@dataclass(frozen=True)
class _Facts:
    """What a search's folder says of it."""

    made_of: dict[str, str]
    done: _Done | None


def _finished(folder: Path, identity: Identity) -> _Done | None:
    """What is known of the finished search of `folder`; None if it is not finished."""
    path, cure = folder / FACTS, f"Delete '{folder}' to search afresh."
    if not path.exists():
        _write(folder, identity, None)
        return None
    try:
        facts = read_record(_Facts, read_json(path, "search", cure))
    except Unreadable as error:
        raise RunError(f"'{path}' is damaged ({error}). {cure}") from error
    differ = differences(facts.made_of, identity)
    if differ:
        raise RunError(f"'{folder}' holds another search: {differ}. Choose another folder.")
    complete = all((folder / name).exists() for name in (JOURNAL, PLAN))
    return facts.done if complete else None


def _write(folder: Path, identity: Identity, done: _Done | None) -> None:
    write_json(folder / FACTS, asdict(_Facts(dict(identity), done)))


def _result(ledger: Ledger, settings: dict[str, object], seconds: float) -> SearchResult:
    notes = {**settings, "evaluations": ledger.spent, "charged": round(ledger.charged, 6)}
    notes |= {"reward": ledger.best.reward}
    plan = ledger.task.plan(ledger.best.kept, **notes)
    times = tuple(itertools.accumulate(ledger.seconds))
    return SearchResult(ledger.best, plan, tuple(ledger.history), seconds, times)
