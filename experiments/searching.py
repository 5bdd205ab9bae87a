"""The searches of a comparison: each in its own folder, in one process or several."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from agents.search import SearchResult, run_search, searcher_named
from experiments.compare_config import CompareConfig
from experiments.directory import once
from experiments.presets import open_named
from experiments.progress import progress
from experiments.project import Project
from experiments.quality import ACCURACY, Yardstick
from experiments.stages import machine, quality
from experiments.summaries import summarise
from prune_env import Ledger, PruningTask
from prune_env.mdp.rewards import Outcome

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One search of a comparison."""

    config: CompareConfig
    searcher: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its journal and figures are."""
        return self.config.folder / f"{self.searcher}-s{self.seed}"


def compare(config: CompareConfig, command: str) -> dict[str, Any]:
    """Every search that is not finished yet, then all of them in figures.

    Raises:
        PruneEnvError: an unknown task or searcher, an unreachable budget, or a folder that cannot
            be written.
    """
    for name in config.searchers:
        searcher_named(name)
    # One thread everywhere: sums in another order would end the journals of other searches.
    torch.set_num_threads(1)
    task, yardstick = task_of(config), yardstick_of_task(config)
    runs = _search_all(config)
    return {
        "title": task.name,
        "command": command,
        "settings": config.settings,
        "machine": machine(),
        "quality": yardstick.name,
        "dense": None if task.dense is None else {yardstick.name: yardstick.of(task.dense)},
        "groups": task.length,
        "searchers": [summary.to_dict() for summary in summarise(runs, yardstick)],
        "runs": runs,
    }


@lru_cache(maxsize=1)
def _opened(config: CompareConfig) -> Project | PruningTask:
    """What the config names, opened once in every process."""
    names = ("budget", "on", "reward", "units", "criterion", "repair")
    return open_named(config.task, **{name: getattr(config, name) for name in names})


def task_of(config: CompareConfig) -> PruningTask:
    """The task of a comparison."""
    opened = _opened(config)
    return opened.task if isinstance(opened, Project) else opened


def yardstick_of_task(config: CompareConfig) -> Yardstick:
    """The figure of quality of a comparison."""
    opened = _opened(config)
    return opened.yardstick if isinstance(opened, Project) else ACCURACY


def _search_all(config: CompareConfig) -> list[Run]:
    """First one seed of every searcher; those that need luck are then given the other seeds.

    A searcher that measures a single plan although it may measure more does not depend on a seed
    and appears once.
    """
    first = [Job(config, name, 0) for name in dict.fromkeys(config.searchers)]
    done = _run(first, config)
    lucky = [job for job in first if done[job]["evaluations"] > 1 or config.evaluations == 1]
    more = [replace(job, seed=seed) for job in lucky for seed in range(1, config.seeds)]
    done.update(_run(more, config))
    return [
        done[replace(job, seed=s)]
        for job in first
        for s in range(config.seeds)
        if replace(job, seed=s) in done
    ]


def _run(jobs: Sequence[Job], config: CompareConfig) -> dict[Job, Run]:
    done = {}
    for number, (job, run) in enumerate(_finished(jobs, config.processes), 1):
        done[job] = run
        print(
            f"[{number}/{len(jobs)}] {job.searcher}, seed {job.seed}: reward {run['reward']:.4f} "
            f"after {run['evaluations']} evaluations, {run['seconds']:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    return done


def _finished(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Run]]:
    """Jobs and their figures, as they finish."""
    if processes == 1:
        for job in jobs:
            yield job, run_job(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_job(job: Job) -> Run:
    """The figures of one search, from its folder when it is finished."""
    return once(job.folder / "figures.json", lambda: _search(job))


def _search(job: Job) -> dict[str, Any]:
    config, label = job.config, f"{job.searcher} s{job.seed}"
    with progress(label, config.evaluations, "episodes", config.processes == 1) as bar:

        def tell(ledger: Ledger, outcome: Outcome) -> None:
            bar.step(f"best reward {ledger.best.reward:.4f}")

        result = run_search(
            task_of(config), job.searcher, config.evaluations, job.seed, job.folder, on_outcome=tell
        )
    return _figures(job, result)


def _held_out(config: CompareConfig, kept: Sequence[int]) -> float | None:
    """The figure of quality on test, before fine-tuning, if the task comes with such data."""
    opened = _opened(config)
    return quality(opened, opened.task.network(kept)) if isinstance(opened, Project) else None


def _figures(job: Job, result: SearchResult) -> dict[str, Any]:
    best, yardstick = result.best, yardstick_of_task(job.config)
    return {
        "searcher": job.searcher,
        "seed": job.seed,
        "evaluations": len(result.history),
        "seconds": result.seconds,
        "reward": best.reward,
        "kl": best.metrics.kl,
        yardstick.name: yardstick.of(best.metrics),
        "held_out": _held_out(job.config, best.kept),
        "macs_ratio": best.flops_ratio,
        "params_ratio": best.params_ratio,
        "kept": list(best.kept),
        "rewards": [outcome.reward for outcome in result.history],
    }
