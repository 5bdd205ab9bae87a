"""One signature and one table for everything that looks for a plan.

A searcher is a function `search(ledger, seed)` that measures plans through the ledger until it has
none left to propose or the ledger is spent. To add one, write the function and put it into
`SEARCHERS`.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prune_env import Ledger, PruningPlan, PruningTask
from prune_env.errors import ConfigError, RunError
from prune_env.mdp.rewards import Outcome
from prune_env.storage import write_text

Searcher = Callable[[Ledger, int], None]
Listener = Callable[[Ledger, Outcome], None]

JOURNAL, PLAN, FACTS = "journal.jsonl", "plan.json", "search.json"

SEARCHERS: dict[str, str] = {
    "uniform": "agents.baselines:uniform",
    "random": "agents.baselines:random",
    "global": "agents.allocators:global_threshold",
    "sensitivity": "agents.allocators:sensitivity",
    "sensitivity_measured": "agents.allocators:sensitivity_measured",
    "probe": "agents.allocators:probe",
    "owl": "agents.allocators:owl",
    "evolution": "agents.evolution:evolution",
    "evolution_uniform": "agents.evolution:evolution_uniform",
    "ppo": "agents.sb3:ppo",
    "ppo_plan": "agents.sb3:ppo_plan",
    "a2c": "agents.sb3:a2c",
    "sac": "agents.sb3:sac",
    "td3": "agents.sb3:td3",
    "ddpg": "agents.sb3:ddpg",
    "tqc": "agents.sb3:tqc",
    "screened": "agents.screening:screened",
    "tpe": "agents.optuna_search:tpe",
    "cmaes": "agents.optuna_search:cma_es",
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
) -> SearchResult:
    """Let a searcher spend its evaluations; the same call again resumes or returns the result.

    Args:
        task: what is searched.
        name: of the searcher, kept in notes.
        evaluations: plans that may be measured, at least 1.
        seed: of the searcher.
        folder: keeps journal.jsonl, plan.json, search.json and what the searcher saves; None keeps
            nothing.
        on_outcome: called after every charged outcome, replayed ones included; not at all when the
            search was finished already.
        clock: times the outcomes; `time.process_time` leaves out what else the machine does.
        searcher: what searches, where the name does not say it; None: see `searcher_named`.

    Raises:
        ConfigError: no such searcher, or nothing to spend.
        RunError: the folder holds another search, or cannot be written.
    """
    searcher = searcher or searcher_named(name)
    if evaluations < 1:
        raise ConfigError(f"a search of {evaluations} evaluations finds nothing; give at least 1.")
    settings = {
        "searcher": name, "seed": seed, "evaluations": evaluations, "task": task.name,
        "budget": task.budget, "on": task.on,
        "groups": {group.name: group.units for group in task.groups},
    }  # fmt: skip
    done = None if folder is None else _seconds(folder, settings)
    journal = None if folder is None else folder / JOURNAL
    if done is not None:
        return _result(_replayed(task, evaluations, journal), settings, done)
    ledger = Ledger(task, evaluations, journal, on_outcome, clock)
    start = clock()
    ledger.run(searcher, seed)
    result = _result(ledger, settings, clock() - start)
    if folder is not None:
        result.plan.save(folder / PLAN)
        _write(folder, settings, result.seconds)
    return result


def _seconds(folder: Path, settings: dict[str, object]) -> float | None:
    """How long the finished search of `folder` took; None if it is not finished."""
    path = folder / FACTS
    if not path.exists():
        _write(folder, settings, None)
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found, seconds = dict(facts["settings"]), facts["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{path}' is damaged ({error!r}). Delete '{folder}'.") from error
    differ = [key for key in settings if found.get(key) != settings[key]]
    if differ:
        said = "; ".join(f"{k} {found.get(k)!r} there, {settings[k]!r} now" for k in differ)
        raise RunError(f"'{folder}' holds another search: {said}. Choose another folder.")
    complete = seconds is not None and all((folder / name).exists() for name in (JOURNAL, PLAN))
    return float(seconds) if complete else None


def _replayed(task: PruningTask, evaluations: int, journal: Path | None) -> Ledger:
    """The ledger of a finished search, from its journal alone."""
    ledger = Ledger(task, evaluations, journal)
    for kept in ledger.journalled:
        ledger.measure(kept)
    return ledger


def _write(folder: Path, settings: dict[str, object], seconds: float | None) -> None:
    write_text(folder / FACTS, json.dumps({"settings": settings, "seconds": seconds}, indent=1))


def _result(ledger: Ledger, settings: dict[str, object], seconds: float) -> SearchResult:
    notes = {key: value for key, value in settings.items() if key != "groups"}
    notes |= {"evaluations": ledger.spent, "charged": round(ledger.charged, 6)}
    notes |= {"reward": ledger.best.reward}
    plan = ledger.task.plan(ledger.best.kept, **notes)
    times = tuple(itertools.accumulate(ledger.seconds))
    return SearchResult(ledger.best, plan, tuple(ledger.history), seconds, times)
