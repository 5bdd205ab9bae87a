"""What groups are expected to lose at every level before any plan is measured.

Good within a group, fair between groups, blind to how they act together: enough for a prior and for
crediting steps, never for choosing the plan.

Legend: N plans, G groups, L levels of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.task import PruningTask

POINTS = 9
"""Levels of a group at which predicted losses are computed; between them they are interpolated."""


def expected_losses(task: PruningTask) -> list[Floats]:
    """`expected_loss` of every group."""
    return [expected_loss(task, number) for number in range(task.length)]


def expected_loss(task: PruningTask, number: int) -> Floats:
    """Loss of every level of a group, from the smallest to the largest, (L,).

    As the repair predicts it; a task without predictions loses the mass of the scores removed.
    """
    group = task.groups[number]
    predicted = task.evaluator.predicted_loss
    if predicted(group.name, group.levels[0]) is None:
        scores = task.scores[group.name].double().flatten().abs().sort().values.numpy()
        lost = np.concatenate([[0.0], scores.cumsum()]) / max(float(scores.sum()), 1e-300)
        return np.array([lost[group.cells - level] for level in group.levels])
    chosen = np.linspace(0, len(group.levels) - 1, min(POINTS, len(group.levels))).round()
    known = [group.levels[int(place)] for place in chosen]
    loss = np.sqrt([max(0.0, predicted(group.name, level) or 0.0) for level in known])
    return np.interp(group.levels, known, loss) ** 2


def expected_worth(task: PruningTask, losses: Sequence[Floats] = ()) -> Callable[[Units], Floats]:
    """What plans (N, G) are worth by the sum of their groups' losses, expected ones if not given.

    0 where nothing is expected to be lost, -1 with every group at its smallest level: unit-free,
    and the same for every budget. (N,).
    """
    losses, rules = losses or expected_losses(task), task.rules
    most = max(sum(float(loss_L[0]) for loss_L in losses), 1e-300)
    lost_GL = np.zeros(rules.level_GL.shape)
    for group, loss_L in enumerate(losses):
        lost_GL[group, : len(loss_L)] = loss_L / most

    def worth(kept_NG: Units) -> Floats:
        place_NG = rules.number(kept_NG.astype(np.float64))
        worths: Floats = -lost_GL[np.arange(task.length), place_NG].sum(1)
        return worths

    return worth
