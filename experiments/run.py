"""The whole path: train, search, apply, fine-tune, report.

    python -m experiments.run --config experiments/configs/digits.toml
    python -m experiments.run --model resnet20 --data cifar10_jpeg --weights model.safetensors

Every stage leaves its files in the run directory; the same command goes on where it was killed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_env.experiments.config.cli import invoked
from prune_env.experiments.config.run import RunConfig, main_guard, parse

if TYPE_CHECKING:
    from prune_env import PruningTask
    from prune_env.pipeline.project import Project
    from prune_env.pipeline.whole import Found
    from prune_env.search.searchers import Listener


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
    from prune_env.progress import showing

    check_run(config)
    with nullcontext() if config.progress else showing(None):
        if config.dry_run:
            return dry(config)
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


def dry(config: RunConfig) -> int:
    """Say what the run would be; it leaves nothing behind."""
    from prune_env.experiments.networks.dense import nothing_trained
    from prune_env.experiments.stages.dry import forecast, forecast_text

    with nothing_trained():
        facts = forecast(config, opened(config))
    print(forecast_text(facts))
    print(json.dumps(facts))
    return 0


def opened(config: RunConfig) -> Project | PruningTask:
    """What the config works on; the dense network is trained if need be."""
    import torch

    from prune_env.experiments.stages import stages
    from prune_env.search.workers import cores

    if config.threads or config.workers > 1:
        torch.set_num_threads(config.threads or max(1, cores() // config.workers))
    return stages.open_project(config)


def shown_command(argv: Sequence[str]) -> str:
    """The command line that makes this run again."""
    return f"{invoked('run')} {shlex.join(argv)}".rstrip()


def run(
    config: RunConfig, project: Project | PruningTask, folder: Path, command: str
) -> dict[str, Any]:
    """All stages but the pages; returns what report.py is made of, also in results.json."""
    from prune_env import PruningTask
    from prune_env.experiments.stages.directory import identity
    from prune_env.experiments.stages.stages import hunts_of, tuning_settings
    from prune_env.pipeline.rows import results_of
    from prune_env.pipeline.whole import finished, found_rows, keep_results, searched
    from prune_env.pipeline.yardstick import yardstick_for
    from prune_env.recovery.training import Tuning

    task = project if isinstance(project, PruningTask) else project.task
    if config.tensorboard:
        from prune_env.agents.callbacks import log_dense

        log_dense(folder / "tensorboard" / "dense", task, config.evaluations)
    hunts, said = hunts_of(config), {"command": command, "config": identity(config)}
    found = searched(task, hunts, folder, partial(_listening, config, folder, task), config.workers)
    if isinstance(project, PruningTask):
        rows = found_rows(task, hunts, found, yardstick_for(task.objective))
        return {**results_of(task, {}, rows), **said}
    tuning = Tuning(tuning_settings(config, project))
    results = {**finished(project, hunts, found, tuple(found), tuning, folder).results, **said}
    keep_results(results, folder)
    _log_test(config, results, folder)
    return results


def _log_test(config: RunConfig, results: Mapping[str, Any], folder: Path) -> None:
    """The figures of test, where the searches are logged."""
    if not config.tensorboard:
        return
    from prune_env.agents.callbacks import log_test
    from prune_env.pipeline.yardstick import yardstick_of

    yardstick = yardstick_of(results)
    for row in results["rows"]:
        figures = {
            f"{yardstick.name}_{stage}": row.get(yardstick.key(stage))
            for stage in ("before", "after")
        }
        figures["kl"] = row.get("kl_held_out")
        log_test(folder / "tensorboard" / row["name"], figures, config.evaluations)


@contextmanager
def _listening(
    config: RunConfig, folder: Path, task: PruningTask, name: str, found: Found
) -> Iterator[Listener | None]:
    """TensorBoard, beside what was found before."""
    if not config.tensorboard:
        yield None
        return
    from prune_env.agents.callbacks import TensorBoardLog
    from prune_env.experiments.stages.directory import identity

    facts = {**identity(config), "searcher": name}
    best = {name: result.best for name, result in found.items()}
    log = TensorBoardLog(folder / "tensorboard" / name, task, best, facts)
    try:
        yield log
    finally:
        log.close()


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
