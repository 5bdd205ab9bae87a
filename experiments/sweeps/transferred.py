"""A policy run on a task that it was not trained on, and a plan moved to another budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prune_env import Ledger, PruningTask
from prune_env.agents.lanes import lanes
from prune_env.agents.payments import Measured
from prune_env.agents.policy import POLICY
from prune_env.agents.sb3 import AGENTS, load_policy, plan_by, private_randomness
from prune_env.agents.settings import LANES
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import digest_of
from prune_env.experiments.sweeps.compare_job import Job, run_job
from prune_env.experiments.sweeps.compare_task import (
    fingerprint_of,
    held_out,
    task_of,
    yardstick_of_task,
)
from prune_env.fingerprint import identity_of
from prune_env.mdp.evaluator import Kept
from prune_env.mdp.path import REACH
from prune_env.mdp.path import Path as PlanPath
from prune_env.mdp.rewards import Outcome
from prune_env.pipeline.once import once
from prune_env.search.allocators import PATHS, best_prior, chosen_prior, plan_of
from prune_env.search.searchers import JOURNAL

Run = Mapping[str, Any]
LIMIT = 100
"""Evaluations that nobody reaches: the prior's plans and the policy's are a handful."""


@dataclass(frozen=True)
class Transfer:
    """A policy on a target under a budget.

    Attributes:
        config: whose task is the target.
        agent: whose policy it is.
        policy: a saved policy.
        budget: of the target.
        origin: the search that made the policy; None where it was given as a file.
    """

    config: CompareConfig
    agent: str
    policy: Path
    budget: float
    origin: Job | None = None

    @property
    def folder(self) -> Path:
        """Where its journal and figures are."""
        digest = hashlib.sha256(str(self.policy).encode()).hexdigest()[:8]
        return self.config.folder / f"b{self.budget:g}" / f"transfer-{self.agent}-{digest}"

    @property
    def same_network(self) -> bool:
        """Whether source and target differ in the budget alone."""
        if self.origin is None:
            return False
        here = replace(self.config, evaluations=self.origin.config.evaluations, init_policy="")
        return digest_of(here) == digest_of(self.origin.config)


def policy_of(origin: Job) -> Path:
    """Where a search of an agent left its policy."""
    return origin.folder / POLICY


def run_transfer(transfer: Transfer) -> Run:
    """What the policy and the best prior reach on the target, from its folder if known.

    A policy corrects the allocation that it was trained around, so that is its prior here too,
    whatever is best on the target; the best one stands in where the source is not known.
    """
    origin = transfer.origin
    made_of = {
        **fingerprint_of(transfer.config, transfer.budget),
        **identity_of(agent=transfer.agent, policy=transfer.policy, origin=origin and origin.seed),
    }
    return once(transfer.folder / "figures.json", made_of, lambda: _figures(transfer))


def _figures(transfer: Transfer) -> dict[str, Any]:
    config = transfer.config
    task = task_of(config, transfer.budget)
    ledger = Ledger(task, LIMIT, transfer.folder / JOURNAL)
    path = best_prior(ledger)
    prior, needed, origin = ledger.best, ledger.spent + 1, transfer.origin
    rows = {"best prior": _row(config, prior, ledger.spent)}
    if origin is not None:
        name, theirs = prior_of(origin)
        path, needed = PATHS[name](task), 1
    (moved,) = ledger.measure([transferred(task.around(path), ledger, transfer)])
    rows["policy"] = _row(config, moved, needed)
    if origin is not None and transfer.same_network:
        (plan,) = ledger.measure([plan_moved(task, origin, theirs)])
        rows["plan"] = _row(config, plan, 1)
    return {"budget": transfer.budget, "rows": rows}


def _row(config: CompareConfig, outcome: Outcome, evaluations: int) -> dict[str, Any]:
    yardstick = yardstick_of_task(config)
    return {
        "kl": outcome.metrics.divergence, yardstick.name: yardstick.of(outcome.metrics),
        **held_out(config, outcome.kept), "kept": list(outcome.kept),
        "macs_ratio": outcome.flops_ratio, "params_ratio": outcome.params_ratio,
        "evaluations": evaluations,
    }  # fmt: skip


def transferred(task: PruningTask, ledger: Ledger, transfer: Transfer) -> Kept:
    """The plan of the deterministic policy, a residual around the task's prior.

    Raises:
        ConfigError: the policy is of another agent, or fits another network only.
    """
    name = transfer.agent
    kind = AGENTS[name].env
    env = lanes(task, Measured(ledger), LANES, kind)
    with private_randomness():
        policy = load_policy(name, transfer.policy, env)
        return plan_by(policy, task, kind, transfer.budget)


def prior_of(origin: Job) -> tuple[str, PlanPath]:
    """Name and path of the allocation that a finished search started at.

    The search measured its priors first, so its journal answers which was best.
    """
    task = task_of(origin.config, origin.budget)
    return chosen_prior(Ledger(task, origin.config.evaluations, origin.folder / JOURNAL))


def plan_moved(task: PruningTask, origin: Job, path: PlanPath) -> Kept:
    """The source's best plan at the target's budget.

    It strays from `path`, that of the source's prior, as far as it did there.
    """
    best = run_job(origin)["kept"]
    return task.around(path).beside(strayed(task.at(origin.budget), path, best).tolist())


def strayed(task: PruningTask, path: PlanPath, kept: Kept) -> np.ndarray[Any, Any]:
    """The offsets (G,) at which a plan lies from a path under the task's budget."""
    middle_G, kept_G = (np.array(plan, float) for plan in (plan_of(task, path), kept))
    octaves_G = np.log2(np.maximum(middle_G, 0.25) / np.maximum(kept_G, 0.25))
    return np.clip(octaves_G / REACH, -1.0, 1.0)
