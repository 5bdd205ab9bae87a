"""One search under many budgets: every episode draws its own, so one policy answers them all.

Legend: N episodes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prune_env import Ledger
from prune_env.agents.sb3 import Course, learn
from prune_env.experiments.config.pareto import ParetoConfig
from prune_env.experiments.stages.policies import is_agent
from prune_env.experiments.sweeps.compare_job import clock
from prune_env.experiments.sweeps.compare_task import (
    fingerprint_of,
    held_out,
    task_of,
    yardstick_of_task,
)
from prune_env.fingerprint import identity_of
from prune_env.mdp.path import Path as PlanPath
from prune_env.mdp.rewards import Outcome, best_of
from prune_env.mdp.rules import SLACK, Floats
from prune_env.mdp.vector import Draw
from prune_env.pipeline.once import once
from prune_env.progress import progress
from prune_env.search.allocators import PATHS, plan_of
from prune_env.search.screening import surrogate_front
from prune_env.search.searchers import SearchResult, run_search

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Many:
    """The search of all budgets of a config.

    Attributes:
        config: its budgets are those that the policy is asked for, the smallest first.
        evaluations: plans that may be measured, all budgets together.
        seed: of the search.
    """

    config: ParetoConfig
    evaluations: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where its journal, policy and figures are."""
        digest = hashlib.sha256(repr(self.config.budgets).encode()).hexdigest()[:6]
        name = f"{self.config.agent}-n{self.evaluations}-s{self.seed}-{digest}"
        return self.config.folder / "many" / name


def run_many(many: Many) -> Run:
    """The figures of a search, from its folder when it is finished."""
    agent, asked = many.config.agent, many.config.budgets
    made_of = {
        **fingerprint_of(many.config, asked[-1]),
        **identity_of(agent=agent, seed=many.seed, evaluations=many.evaluations,
                      course=course_of(asked) if is_agent(agent) else asked),
    }  # fmt: skip
    return once(many.folder / "figures.json", made_of, lambda: _figures(many, _searched(many)))


def _searched(many: Many) -> SearchResult:
    config, asked = many.config, many.config.budgets
    # A plan is hopeless beside others of its budget only: no race.
    task = task_of(config, asked[-1]).unraced()
    searcher = (
        partial(learn, config.agent, course=course_of(asked)) if is_agent(config.agent)
        else partial(surrogate_front, asked)
    )  # fmt: skip
    label = f"{config.agent} b{asked[0]:g} to {asked[-1]:g} s{many.seed}"
    with progress(label, many.evaluations, "episodes") as bar:

        def tell(ledger: Ledger, outcome: Outcome) -> None:
            bar.step(
                f"KL {outcome.metrics.divergence:.4f} at {outcome.flops_ratio:.1%} of the MACs"
            )

        return run_search(
            task, f"{config.agent}, many budgets", many.evaluations, many.seed, many.folder, tell,
            clock(), searcher,
        )  # fmt: skip


def course_of(asked: Sequence[float]) -> Course:
    """How one policy learns all budgets asked for; its own plans are measured last."""
    return Course(
        prior=partial(front_prior, asked), budgets=partial(drawn, asked), finals=tuple(asked)
    )


def drawn(asked: Sequence[float], seed: int) -> Draw:
    """Those asked for in turns, in random order: what is measured between them helps none."""
    generator = np.random.default_rng(seed)

    def draw(count: int) -> Floats:
        turns = np.resize(generator.permutation(np.asarray(asked)), count)
        return generator.permutation(turns)

    return draw


def front_prior(asked: Sequence[float], ledger: Ledger) -> PlanPath:
    """The free path that loses least at the smallest, the middle and the largest budget.

    Losses of budgets differ by orders: the geometric mean counts. Every plan is measured once.
    """
    task, found = ledger.task, dict[tuple[tuple[int, ...], ...], tuple[float, PlanPath]]()
    budgets = sorted({asked[0], asked[len(asked) // 2], asked[-1]})
    for make in PATHS.values():
        path = make(task)
        plans = tuple(plan_of(task.at(budget), path) for budget in budgets)
        if plans not in found:
            paid = [outcome.reward for outcome in ledger.measure(plans)]
            lost = [max(task.dense_reward - reward, 1e-9) for reward in paid]
            found[plans] = (math.fsum(map(math.log, lost)), path)
    return min(found.values(), key=lambda entry: entry[0])[1]


def _figures(many: Many, result: SearchResult) -> dict[str, Any]:
    """Every measured plan, the best within each budget, and what the policy gives without search.

    The policy's plans were measured last, in the order of the budgets.
    """
    config, history = many.config, [o for o in result.history if o.eligible]  # no probes
    task = task_of(config, config.budgets[-1])
    yardstick = yardstick_of_task(config)
    cost_M = [float(task.costs.ratio(outcome.kept, task.on)) for outcome in history]
    tested: dict[tuple[int, ...], Mapping[str, float | None]] = {}

    def row(budget: float, outcome: Outcome) -> dict[str, Any]:
        if outcome.kept not in tested:
            tested[outcome.kept] = held_out(config, outcome.kept)
        return {
            "budget": budget, "cost": float(task.costs.ratio(outcome.kept, task.on)),
            "kl": outcome.metrics.divergence, yardstick.name: yardstick.of(outcome.metrics),
            **tested[outcome.kept], "kept": list(outcome.kept),
        }  # fmt: skip

    asked = history[-len(config.budgets) :]
    return {
        "agent": config.agent,
        "seed": many.seed,
        "evaluations": sum(outcome.metrics.share for outcome in result.history),
        "seconds": result.times[-1],
        "cost": cost_M,
        "kl": [outcome.metrics.divergence for outcome in history],
        yardstick.name: [yardstick.of(outcome.metrics) for outcome in history],
        "front": [row(b, best_within(history, cost_M, b)) for b in config.budgets],
        "policy": [row(b, outcome) for b, outcome in zip(config.budgets, asked, strict=True)],
    }


def best_within(history: Sequence[Outcome], cost_M: Sequence[float], budget: float) -> Outcome:
    """The measured plan within a budget that ranks highest."""
    pairs = zip(history, cost_M, strict=True)
    return best_of(outcome for outcome, cost in pairs if cost <= budget + SLACK)
