"""The whole path: train, search, apply, fine-tune, report.

    python -m experiments.run --config experiments/configs/digits.toml
    python -m experiments.run --model resnet20 --data cifar10_jpeg --weights model.safetensors

Every stage leaves its files in the run directory; the same command goes on where it was killed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_env.experiments.config.cli import invoked
from prune_env.experiments.config.run import RunConfig, main_guard, parse

if TYPE_CHECKING:
    from prune_env import PruningTask
    from prune_env.pipeline.project import Project


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run all stages; returns the exit status."""
    config = parse(RunConfig, argv, prog=invoked("run"), description=__doc__ or "")
    from prune_env.experiments.report.report import format_table, write_report
    from prune_env.experiments.stages.directory import open_run
    from prune_env.experiments.sweeps.checks import (
        check_run,  # imports torch, which --help must not wait for
    )
    from prune_env.locks import locked

    check_run(config)
    project = opened(config)
    folder = open_run(config)
    print(f"run directory: {folder}")
    with locked(folder):
        results = run(config, project, folder, shown_command(argv))
        write_report(results, folder)
    print(format_table(results))
    print(f"report: {folder / 'report.html'}")
    print(json.dumps(summary(config, results)))
    return 0


def opened(config: RunConfig) -> Project | PruningTask:
    """What the config works on; the dense network is trained if need be."""
    import torch

    from prune_env.experiments.stages import stages

    if config.threads:
        torch.set_num_threads(config.threads)
    return stages.open_project(config)


def shown_command(argv: Sequence[str]) -> str:
    """The command line that makes this run again."""
    return f"{invoked('run')} {shlex.join(argv)}".rstrip()


def run(
    config: RunConfig, project: Project | PruningTask, folder: Path, command: str
) -> dict[str, Any]:
    """All stages but the pages; returns what report.py is made of, also in results.json."""
    from prune_env import PruningTask
    from prune_env.experiments.stages import stages
    from prune_env.pipeline.yardstick import yardstick_for

    task = project if isinstance(project, PruningTask) else project.task
    yardstick = (
        yardstick_for(task.objective) if isinstance(project, PruningTask) else project.yardstick
    )
    names = [*dict.fromkeys(n for n in config.baselines if n != config.searcher), config.searcher]
    found: dict[str, Any] = {}
    for name in names:
        log = _log(config, folder, task, name, {n: r.best for n, r in found.items()})
        found[name] = stages.search(config, task, name, folder, log)
        if log is not None:
            log.close()
    rows = [
        stages.row_of(task, result, "agent" if name == config.searcher else "baseline", yardstick)
        for name, result in found.items()
    ]
    if isinstance(project, PruningTask):
        return _results(config, task, {}, rows, command, "")
    models = {"dense": project.dense}
    for row, (name, result) in zip(rows, found.items(), strict=True):
        tuned = stages.tune(config, project, result, folder / "tune" / name)
        models[name] = tuned.model
        row.update(tuned.facts)
    dense = stages.dense_facts(project, folder)
    plans = {name: result.best.kept for name, result in found.items()}
    times = stages.latencies(project, models, plans, folder / "latency.json")
    for row in rows:
        row["latency_ms"] = times[row["name"]]
    dense["latency_ms"] = times["dense"]
    size = len(stages.latency_batch(project))
    note = f"latency: batch of {size}, median and quartiles. {project.note}".strip()
    results = {**_results(config, task, dense, rows, command, note), **project.yardstick.record}
    from prune_env.storage import write_text

    write_text(folder / "results.json", json.dumps(results, indent=1))
    return results


def _log(config: RunConfig, folder: Path, task: Any, name: str, baselines: dict[str, Any]) -> Any:
    if not config.tensorboard:
        return None
    from prune_env.agents.callbacks import TensorBoardLog
    from prune_env.experiments.stages.directory import identity

    facts = {**identity(config), "searcher": name}
    return TensorBoardLog(folder / "tensorboard" / name, task, baselines, facts)


def _results(
    config: RunConfig,
    task: Any,
    dense: dict[str, Any],
    rows: list[dict[str, Any]],
    command: str,
    note: str,
) -> dict[str, Any]:
    from prune_env.experiments.stages import stages
    from prune_env.experiments.stages.directory import identity

    shares = {name: task.costs.share(number) for number, name in enumerate(task.costs.names)}
    groups = [
        {
            "name": g.name,
            "units": g.units,
            "macs_share": shares.get(g.name, 0.0),
            "frozen": g.frozen,
        }
        for g in (*task.groups, *task.frozen)
    ]
    return {
        "title": task.name,
        "command": command,
        "config": identity(config),
        "machine": stages.machine(),
        "dense": dense,
        "rows": rows,
        "groups": groups,
        "budget": task.budget,
        "on": task.on,
        "note": note,
    }


def summary(config: RunConfig, results: dict[str, Any]) -> dict[str, Any]:
    """The figures and the settings that made them, for the last line of output."""
    from prune_env.pipeline.yardstick import yardstick_of

    key = yardstick_of(results).key
    keys = (key("before"), key("after"), "kl", "macs_ratio", "params_ratio", "evaluations")
    figures = {row["name"]: {key: row[key] for key in keys} for row in results["rows"]}
    dense = {key("test"): results["dense"].get(key("test"))}
    from prune_env.experiments.stages.directory import identity

    return {"dense": dense, **figures, "settings": identity(config)}


if __name__ == "__main__":
    sys.exit(main(None))
