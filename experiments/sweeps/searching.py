"""The searches of a comparison: each in its own folder, in one process or several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from prune_env.errors import RunError
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.report.cells import cell_of
from prune_env.experiments.report.publishing import note
from prune_env.experiments.sweeps.checks import check_comparison
from prune_env.experiments.sweeps.compare_job import Job, Run, run_job
from prune_env.experiments.sweeps.compare_task import facts_of
from prune_env.experiments.sweeps.parallel import workers

More = Callable[[Job, Run], Sequence[Job]]
"""Searches that a finished one asks for."""


def compare(config: CompareConfig, command: str) -> dict[str, Any]:
    """Every search that is not finished yet, then all of them in figures.

    Raises:
        PruneEnvError: an unknown task or searcher, an unreachable budget, a folder that cannot be
            written, or no search that could be run.
    """
    check_comparison(config)
    # One thread everywhere: sums in another order would make other numbers.
    torch.set_num_threads(1)
    facts = facts_of(config)
    runs = _search_all(config)
    if all("refused" in run for run in runs):
        raise RunError(f"no search could be run: {runs[0]['searcher']}: {runs[0]['refused']}")
    cells = [
        cell_of(facts, config, budget, [run for run in runs if run["budget"] == budget])
        for budget in dict.fromkeys(config.budgets)
    ]
    return {**facts, "command": command, "settings": config.settings, "cells": cells}


def _search_all(config: CompareConfig) -> list[Run]:
    """First one seed of every searcher; those that need luck are then given the other seeds.

    A searcher that measures a single plan although it may measure more, or that asks for the same
    plans with two seeds, does not depend on a seed and appears once.
    """
    done: dict[Job, Run] = {}

    def lucky(job: Job) -> bool:
        run, second = done[job], done.get(replace(job, seed=1))
        if "refused" in run or (run["plans"] == 1 and config.evaluations > 1):
            return False
        return second is None or second.get("asked") != run["asked"]

    def more(job: Job, run: Run) -> list[Job]:
        done[job] = run
        first = replace(job, seed=0)
        seeds = {0: range(1, min(2, config.seeds)), 1: range(2, config.seeds)}.get(job.seed, ())
        return [replace(job, seed=seed) for seed in seeds] if lucky(first) else []

    firsts = [
        Job(config, budget, name, 0)
        for budget in dict.fromkeys(config.budgets)
        for name in dict.fromkeys(config.searchers)
    ]
    for job, run in _finished(firsts, more, config.processes):
        note(f"budget {job.budget:g}, {job.searcher}, seed {job.seed}: {_said(run)}")
    return [
        done[each]
        for job in firsts
        for each in [job, *(replace(job, seed=s) for s in range(1, config.seeds) if lucky(job))]
        if each in done
    ]


def _said(run: Run) -> str:
    if "refused" in run:
        return f"not run: {run['refused']}"
    after = f"after {run['evaluations']:g} evaluations, {run['seconds']:.1f} s"
    return f"KL {run['kl']:.4f}, reward {run['reward']:.4f} {after}"


def _finished(jobs: Sequence[Job], more: More, processes: int) -> Iterator[tuple[Job, Run]]:
    """Jobs and their figures, as they finish, and then those that they ask for."""
    run = _one_by_one if processes == 1 else partial(_in_processes, processes)
    queue = deque(jobs)
    for job, figures in run(queue):
        queue.extend(more(job, figures))
        yield job, figures


def _one_by_one(queue: deque[Job]) -> Iterator[tuple[Job, Run]]:
    while queue:
        job = queue.popleft()
        yield job, run_job(job)


def _in_processes(processes: int, queue: deque[Job]) -> Iterator[tuple[Job, Run]]:
    """Several at a time; what is finished already needs no process."""
    running = dict[Future[Run], Job]()
    with workers(processes) as pool:
        try:
            while queue or running:
                if not queue:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
                    continue
                job = queue.popleft()
                if job.figures.exists():
                    yield job, run_job(job)
                else:
                    running[pool.submit(run_job, job)] = job
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
