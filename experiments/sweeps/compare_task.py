"""The task of a comparison: opened once in every process, under any budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from prune_env import PruningTask
from prune_env.errors import BudgetError
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.networks.presets import open_named
from prune_env.fingerprint import Identity
from prune_env.pipeline.formats import cost_name
from prune_env.pipeline.once import once
from prune_env.pipeline.project import Project
from prune_env.pipeline.rows import machine
from prune_env.pipeline.stages import quality
from prune_env.pipeline.yardstick import Yardstick, yardstick_for
from prune_env.quality.batches import take_batches
from prune_env.quality.evaluators import Evaluator
from prune_env.structure.inputs import device_of

FACTS = "facts.json"


def facts_of(config: CompareConfig) -> dict[str, Any]:
    """What a page says of the task; the task is opened to see that it is still the same.

    Raises:
        PruneEnvError: the task cannot be made, or a budget cannot be reached.
    """
    facts = once(config.folder / FACTS, fingerprint_of(config, 1.0), lambda: _facts(config))
    for budget in config.budgets:
        if facts["least"] > budget:
            raise BudgetError(
                f"budget {budget:g} of the dense {cost_name(config.on)} cannot be reached: with "
                f"every group at its smallest level {facts['least']:.3f} remain. Leave it out of "
                "--budgets, or raise --max-sparsity."
            )
    return facts


def _facts(config: CompareConfig) -> dict[str, Any]:
    opened, task, yardstick = _opened(config), _task(config), yardstick_of_task(config)
    dense = task.dense
    return {
        "title": task.name,
        "groups": task.length,
        **yardstick.record,
        "predictions": None if dense is None else dense.samples,
        "dense": None if dense is None else yardstick.of(dense),
        "dense_held_out": quality(opened, opened.dense) if isinstance(opened, Project) else None,
        "least": float(task.costs.ratio([group.levels[0] for group in task.groups], task.on)),
        "machine": machine(),
    }


@lru_cache(maxsize=2)  # a transfer goes back and forth between its source and its target
def _opened(config: CompareConfig) -> Project | PruningTask:
    """What the config names, under its smallest budget; any other one has the same ladders."""
    return open_named(config.task, **config.task_options)


def _task(config: CompareConfig) -> PruningTask:
    opened = _opened(config)
    return opened.task if isinstance(opened, Project) else opened


def task_of(config: CompareConfig, budget: float) -> PruningTask:
    """The task under a budget, with nothing measured yet: what a search finds costs it time."""
    task = _task(config)
    forget = getattr(task.evaluator, "forget", None)  # a toy's evaluation is a plain function
    if forget is not None:
        forget()
    return replace(task, budget=budget)


def fingerprint_of(config: CompareConfig, budget: float) -> Identity:
    """What a search's figures are of, by the name of the part; see `PruningTask.fingerprint`."""
    opened = _opened(config)
    tested = opened.fingerprint if isinstance(opened, Project) else {}
    return {**tested, **replace(_task(config), budget=budget).fingerprint}


def yardstick_of_task(config: CompareConfig) -> Yardstick:
    """The figure of quality of a comparison."""
    opened = _opened(config)
    if isinstance(opened, Project):
        return opened.yardstick
    return yardstick_for(opened.objective)


def passes(config: CompareConfig, evaluations: float) -> float | None:
    """What evaluations cost in forward passes over 1,000 predictions; None where none is made."""
    task = _task(config)
    return None if task.dense is None else evaluations * task.evaluator.passes / 1000


def held_out(config: CompareConfig, kept: Sequence[int]) -> dict[str, float | None]:
    """What a plan is worth on test, where nothing was chosen, if the task comes with such data.

    The figure of quality, and the divergence as rewards are of it: of the network that is
    delivered, tuned for some steps where plans are paid for after these.
    """
    opened = _opened(config)
    if not isinstance(opened, Project):
        return {"held_out": None, "kl_held_out": None}
    task, evaluate = opened.task.at(1.0), _tested(config)  # of whatever budget the plan is
    network = task.network(kept)
    found = evaluate(network)
    paid_for = evaluate(task.as_measured(network)) if task.tunes else found
    return {"held_out": opened.yardstick.of(found), "kl_held_out": paid_for.divergence}


@lru_cache(maxsize=2)
def _tested(config: CompareConfig) -> Evaluator:
    """Test, with what the dense network says of it."""
    opened = _opened(config)
    assert isinstance(opened, Project)
    device = device_of(opened.dense)
    batches = [batch.to(device) for batch in take_batches(opened.test, None)]
    return Evaluator.of(opened.dense, batches, objective=opened.task.objective)
