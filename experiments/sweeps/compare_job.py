"""One search of a comparison: its folder, and its figures once it is finished."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.stages.policies import continuing, is_agent
from prune_env.experiments.sweeps.compare_task import (
    fingerprint_of,
    held_out,
    passes,
    task_of,
    yardstick_of_task,
)
from prune_env.fingerprint import Identity, identity_of
from prune_env.mdp.rewards import improved
from prune_env.pipeline.once import once
from prune_env.pipeline.stages import shown_on
from prune_env.progress import progress
from prune_env.search.searchers import Searcher, SearchResult, run_search, searcher_named

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One search of a comparison."""

    config: CompareConfig
    budget: float
    searcher: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where its journal and figures are."""
        return self.config.folder / f"b{self.budget:g}" / f"{self.searcher}-s{self.seed}"

    @property
    def figures(self) -> Path:
        """There when the search is finished."""
        return self.folder / "figures.json"


def run_job(job: Job) -> Run:
    """The figures of one search, from its folder when it is finished; or why it cannot be run."""
    try:
        return once(job.figures, _made_of(job), lambda: _search(job))
    except PruneEnvError as error:  # not kept: what is missing may be there at the next call
        return _refused(job, error)


def _made_of(job: Job) -> Identity:
    """What the figures of a search depend on.

    Raises:
        PruneEnvError: the task cannot be opened, or the searcher is unknown.
    """
    search = identity_of(
        searcher=job.searcher, seed=job.seed, evaluations=job.config.evaluations,
        algorithm=_agent(job) or searcher_named(job.searcher),
    )  # fmt: skip
    return {**fingerprint_of(job.config, job.budget), **search}


def _agent(job: Job) -> Searcher | None:
    """What goes on from the policy of the config, if it names one and the searcher has one."""
    policy = job.config.init_policy if is_agent(job.searcher) else ""
    return continuing(job.searcher, policy)


def _search(job: Job) -> dict[str, Any]:
    config, label = job.config, f"{job.searcher} b{job.budget:g} s{job.seed}"
    with progress(label, config.evaluations, "evaluations") as bar:
        task = task_of(config, job.budget)
        try:
            result = run_search(
                task, job.searcher, config.evaluations, job.seed, job.folder, shown_on(bar),
                clock(),
                _agent(job),
            )  # fmt: skip
        except ConfigError as error:  # kept: this searcher is not for this task
            return _refused(job, error)
    return _figures(job, result)


def clock() -> Callable[[], float]:
    """Processor time, so that a busy machine is no disadvantage; on a GPU the time of day."""
    return time.monotonic if torch.cuda.is_available() else time.process_time


def _refused(job: Job, error: PruneEnvError) -> dict[str, Any]:
    name = {"budget": job.budget, "searcher": job.searcher, "seed": job.seed}
    return {**name, "refused": " ".join(str(error).split())}


def _figures(job: Job, result: SearchResult) -> dict[str, Any]:
    best, history, yardstick = result.best, result.history, yardstick_of_task(job.config)
    charged = list(itertools.accumulate(outcome.metrics.share for outcome in history))
    asked = json.dumps([outcome.kept for outcome in history])
    return {
        "budget": job.budget,
        "searcher": job.searcher,
        "seed": job.seed,
        "evaluations": round(charged[-1], 6),
        "passes": passes(job.config, charged[-1]),
        "plans": len(history),
        "seconds": result.times[-1],
        "reward": best.reward,
        "kl": best.metrics.divergence,
        yardstick.name: yardstick.of(best.metrics),
        **held_out(job.config, best.kept),
        "macs_ratio": best.flops_ratio,
        "params_ratio": best.params_ratio,
        "kept": list(best.kept),
        "asked": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "rewards": [outcome.reward for outcome in history],
        "kls": [outcome.metrics.divergence for outcome in history],
        "improved": improved(history),
        "charged": charged,
        "times": list(result.times),
    }
