"""Searchers that learn nothing: what every agent has to beat."""

from __future__ import annotations

import numpy as np

from prune_env import Ledger, PruningTask
from prune_env.mdp.task import Kept


def uniform(ledger: Ledger, seed: int) -> None:
    """The same sparsity everywhere; one evaluation."""
    ledger.measure(ledger.task.decode([0.0] * ledger.task.length))


def random(ledger: Ledger, seed: int) -> None:
    """Independent random sparsities around the uniform plan, until all is spent.

    How far they spread is drawn for every plan, from a fortieth of the range to all of it: with
    many groups plans that ignore the uniform one are all bad, with few groups they are the best.
    """
    task, generator = ledger.task, np.random.default_rng(seed)
    while True:
        spread = 10.0 ** generator.uniform(-1.6, 0.0)
        offsets = spread * generator.uniform(-1.0, 1.0, task.length)
        ledger.measure(task.decode((task.uniform_sparsity + offsets).tolist()))


def global_threshold(ledger: Ledger, seed: int) -> None:
    """One threshold over the units of all groups; one evaluation.

    Scores are divided by their group's mean, since layers differ in scale for reasons that say
    nothing about importance. The threshold is the lowest that meets the budget.
    """
    task = ledger.task
    scores = [_relative(task, group.name) for group in task.groups]
    low, high = 0.0, max(float(s.max()) for s in scores) + 1e-9
    for _ in range(50):
        threshold = (low + high) / 2
        if task.within_budget(_above(task, scores, threshold)):
            high = threshold
        else:
            low = threshold
    kept = _above(task, scores, high)
    asked = [1 - k / group.units for k, group in zip(kept, task.groups, strict=True)]
    ledger.measure(task.leftover(task, kept, asked))


def _relative(task: PruningTask, name: str) -> np.ndarray:
    scores = task.scores[name].double().flatten().numpy()
    mean = float(scores.mean())
    return scores / mean if mean > 0 else np.ones_like(scores)


def _above(task: PruningTask, scores: list[np.ndarray], threshold: float) -> Kept:
    pairs = zip(task.groups, scores, strict=True)
    return tuple(group.nearest_level(float((s >= threshold).sum())) for group, s in pairs)
