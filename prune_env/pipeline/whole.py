"""The whole path from a project to a report: search, choose, tune, measure.

`prune_env.compress` and the command `prune-env run` are both this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prune_env.errors import RunError
from prune_env.fingerprint import identity_of
from prune_env.mdp.task import PruningTask
from prune_env.pipeline.once import once
from prune_env.pipeline.project import Project
from prune_env.pipeline.rows import Row, results_of, row_of
from prune_env.pipeline.stages import (
    TUNE,
    Hunt,
    Tuned,
    dense_facts,
    latencies,
    latency_batch,
    measured,
    search,
    tune,
)
from prune_env.pipeline.yardstick import Yardstick
from prune_env.recovery.training import Tuning
from prune_env.search.searchers import Listener, SearchResult
from prune_env.search.workers import Workers, opened
from prune_env.storage import parse, write_text

DENSE, RESULTS = "dense", "results.json"
Found = Mapping[str, SearchResult]
"""What every searcher found, by its name, in the order they were asked."""
Listening = Callable[[str, Found], AbstractContextManager[Listener | None]]
"""From a searcher's name and what the ones before it found to who hears of its outcomes."""


@dataclass(frozen=True, eq=False)
class Whole:
    """What became of a project: tuned networks by searcher, and all figures as plain values."""

    found: Found
    tuned: Mapping[str, Tuned]
    results: Row


def _nobody(name: str, found: Found) -> AbstractContextManager[Listener | None]:
    return nullcontext()


def searched(
    task: PruningTask,
    hunts: Sequence[Hunt],
    folder: Path | None = None,
    listening: Listening = _nobody,
    workers: int | Workers = 1,
) -> Found:
    """What every searcher finds; one after the other, with workers that stay for all of them."""
    found: dict[str, SearchResult] = {}
    with opened(workers) as measuring:
        for hunt in hunts:
            with listening(hunt.name, dict(found)) as listener:
                place = folder and folder / "search" / hunt.name
                found[hunt.name] = search(task, hunt, place, listener, measuring)
    return found


def found_rows(
    task: PruningTask, hunts: Sequence[Hunt], found: Found, yardstick: Yardstick
) -> list[Row]:
    """A row for every search; the last one is what the others stand beside."""
    kinds = ["baseline"] * (len(hunts) - 1) + ["agent"]
    return [
        row_of(task, found[hunt.name], kind, yardstick)
        for hunt, kind in zip(hunts, kinds, strict=True)
    ]


def finished(
    project: Project,
    hunts: Sequence[Hunt],
    found: Found,
    chosen: Sequence[str],
    tuning: Tuning,
    folder: Path | None = None,
) -> Whole:
    """The chosen plans applied, tuned and measured on test beside the dense network.

    Args:
        project: the dense network, its task and data.
        hunts, found: the searches, see `searched`.
        chosen: names of the searchers whose plans are tuned.
        tuning: how.
        folder: keeps tuned networks and figures; None keeps nothing.
    """
    rows = found_rows(project.task, hunts, found, project.yardstick)
    models: dict[str, nn.Module] = {DENSE: project.dense}
    tuned: dict[str, Tuned] = {}
    for name in chosen:
        tuned[name] = tune(project, found[name], tuning, folder and folder / TUNE / name)
        models[name] = tuned[name].model
    dense = dense_facts(project, folder and folder / "dense")
    plans = {name: found[name].best.kept for name in chosen}
    times = latencies(project, models, plans, folder and folder / "latency.json")
    for row in rows:
        if row["name"] in tuned:
            row |= {**tuned[row["name"]].facts, "latency_ms": times[row["name"]]}
    results = results_of(project.task, {**dense, "latency_ms": times[DENSE]}, rows)
    size = len(latency_batch(project))
    note = f"latency: batch of {size}, median and quartiles. {project.note}".strip()
    return Whole(found, tuned, {**results, "note": note, **project.yardstick.record})


def keep_results(results: Mapping[str, Any], folder: Path) -> None:
    """Write all figures where the report's command finds them."""
    write_text(folder / RESULTS, json.dumps(dict(results), indent=1))


def read_results(folder: str | Path) -> Row:
    """What `keep_results` wrote.

    Raises:
        RunError: there is nothing, or it is damaged.
    """
    path = Path(folder) / RESULTS
    try:
        results: Row = parse(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read '{path}': {error}. Give a finished run directory.") from error
    return results


def best_on_val(project: Project, found: Found, folder: Path | None = None) -> str:
    """The searcher whose plan, applied and not yet tuned, is best on val; the first of equals."""
    if len(found) == 1:
        return next(iter(found))
    yardstick = project.yardstick

    def measure() -> dict[str, Any]:
        networks = {name: project.task.network(one.best.kept) for name, one in found.items()}
        return {n: yardstick.of(measured(project, net, project.val)) for n, net in networks.items()}

    def made_of() -> Mapping[str, str]:
        plans = {name: one.best.kept for name, one in found.items()}
        return {**project.fingerprint, **identity_of(plans=plans)}

    values = once(folder and folder / "val.json", made_of, measure)
    return max(found, key=lambda name: yardstick.sign * values[name])
