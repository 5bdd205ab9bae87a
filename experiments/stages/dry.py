"""What a run would work on and how long it would take, from one evaluation; nothing is trained."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sized
from typing import Any

import torch

from prune_env import PruningTask
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.stages.stages import hunts_of, tuning_settings
from prune_env.pipeline.formats import cost_name, duration, percent
from prune_env.pipeline.project import Project
from prune_env.quality.batches import take_batches
from prune_env.search.allocators import PATHS
from prune_env.structure.inputs import call_model, device_of

STEP = 3
"""Forward passes that a step of training costs: one forward, two backward."""


def forecast(config: RunConfig, project: Project | PruningTask) -> dict[str, Any]:
    """Groups, the least that can remain, and seconds: of an evaluation, of all, of the tuning.

    Two plans are measured and the second is timed: the first one also solves what all share. A
    training step is taken for three forward passes of the dense network, and a network that is
    tuned for as large as the budget says.
    """
    task = project if isinstance(project, PruningTask) else project.task
    least = tuple(group.levels[0] for group in task.groups)
    task.outcome(task.reference)
    each = _seconds(lambda: task.outcome(task.beside([0.1] * task.length)))
    names = [hunt.name for hunt in hunts_of(config)]
    evaluations = sum(1 if name in PATHS else config.evaluations for name in names)
    epochs, epoch = 0, 0.0
    if isinstance(project, Project):
        epochs = tuning_settings(config, project).epochs
        epoch = task.budget * _epoch(project) if epochs else 0.0
    return {
        "groups": task.length,
        "frozen": len(task.frozen),
        "on": task.on,
        "least": float(task.costs.ratio(least, task.on)),
        "budget": task.budget,
        "searchers": names,
        "evaluation_seconds": each,
        "evaluations": evaluations,
        "search_seconds": evaluations * each / config.workers,
        "epochs": epochs * len(names),
        "tuning_seconds": epochs * len(names) * epoch,
    }


def forecast_text(facts: dict[str, Any]) -> str:
    """The same in five lines."""
    searching, tuning = facts["search_seconds"], facts["tuning_seconds"]
    lines = {
        "groups": f"{facts['groups']} may shrink, {facts['frozen']} may not ('inspect' says why)",
        "budget": f"{percent(facts['budget'], 0)} of the {cost_name(facts['on'])}; "
        f"{percent(facts['least'])} can be reached",
        "search": f"{', '.join(facts['searchers'])}: at most {facts['evaluations']:,} evaluations "
        f"at {duration(facts['evaluation_seconds'])}, {duration(searching)}",
        "tuning": f"{facts['epochs']} epochs, all networks together, {duration(tuning)}",
        "total": f"about {duration(searching + tuning)}, preparation and dense training aside",
    }
    return "\n".join(f"{name}: {said}" for name, said in lines.items())


def _epoch(project: Project) -> float:
    """Seconds of an epoch of tuning the dense network, from the forward pass of one batch."""
    loader = project.train
    assert isinstance(loader, Sized)
    batch = take_batches(itertools.islice(loader, 1), None)[0].to(device_of(project.dense))
    with torch.no_grad():
        call_model(project.dense, batch.inputs)  # the first call prepares
        once = _seconds(lambda: call_model(project.dense, batch.inputs))
    return STEP * once * len(loader)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
