"""The forms in which the decision process is offered: what a step decides, sees and may be given.

Legend: N episodes, A sparsities decided at once, F features, G groups, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray

from prune_env.errors import PruneEnvError
from prune_env.mdp.lockstep import Episodes, Walk, Whole
from prune_env.mdp.rules import Floats
from prune_env.mdp.task import FEATURES, PruningTask
from prune_env.mdp.transforms import Standard, along_the_prior, around_the_budget


@dataclass(frozen=True)
class Shape:
    """One form of the decision process.

    Attributes:
        episodes: what steps.
        observations: space of one episode's observation.
        actions: space of one episode's action.
        sparsities: (N, A) that the actions of N episodes ask for.
        of_sparsities: the actions that ask for these.
        standard: how its observations are standardised.
    """

    episodes: type[Episodes]
    observations: Callable[[PruningTask], Box]
    actions: Callable[[PruningTask], Space[Any]]
    sparsities: Callable[[Episodes, Any], Floats]
    of_sparsities: Callable[[Episodes, Floats], Floats]
    standard: Callable[[PruningTask], Standard] = along_the_prior


def _asked(episodes: Episodes, actions: Any) -> Floats:
    """The actions are sparsities."""
    count, width = len(episodes.budget_N), episodes.width
    return numbers(actions, count * width).reshape(count, width)


def _same(episodes: Episodes, sparsity_NA: Floats) -> Floats:
    return sparsity_NA


def _of_levels(episodes: Episodes, actions: Any) -> Floats:
    """The actions are numbers of levels; those that the group at hand lacks are its last.

    Raises:
        PruneEnvError: one is no whole number, or none of the space.
    """
    rules, group = episodes.task.rules, episodes.number
    number_N = numbers(actions, len(episodes.budget_N))
    most = int(rules.top_G.max())
    if not ((number_N == np.floor(number_N)) & (number_N >= 0) & (number_N <= most)).all():
        raise PruneEnvError(
            f"the action is {number_N.tolist()}; a level is expected, a whole number from 0 "
            f"(fewest units) to {most}."
        )
    level_N = rules.level_GL[group, number_N.astype(np.int64)]  # rows are padded with the last
    sparsity_NA: Floats = (1.0 - level_N / rules.units_G[group])[:, None]
    return sparsity_NA


def _levels_of(episodes: Episodes, sparsity_NA: Floats) -> Floats:
    rules, group = episodes.task.rules, episodes.number
    keep_N1 = (1.0 - sparsity_NA) * rules.units_G[group]
    number_N: Floats = rules.number(keep_N1, slice(group, group + 1))[:, 0].astype(np.float64)
    return number_N


def _features(task: PruningTask) -> Box:
    return Box(0.0, 1.0, (len(FEATURES),), np.float32)


WALK = Shape(Walk, _features, lambda task: Box(0.0, 1.0, (1,), np.float32), _asked, _same)
"""Group by group, by sparsity."""
LEVELS = Shape(
    Walk, _features, lambda task: Discrete(int(task.rules.top_G.max()) + 1), _of_levels, _levels_of
)
"""Group by group, by the number of the level."""
PLAN = Shape(
    Whole,
    lambda task: Box(0.0, 1.0, (1,), np.float32),
    lambda task: Box(0.0, 1.0, (task.length,), np.float32),
    _asked,
    _same,
    around_the_budget,
)
"""All groups at once, by sparsity."""


def masks(walk: Walk) -> NDArray[np.bool_]:
    """Which levels (N, L) the group at hand has and the budgets allow; never none."""
    rules, number = walk.task.rules, walk.number
    there_L = np.arange(rules.level_GL.shape[1]) <= rules.top_G[number]
    allowed_NL: NDArray[np.bool_] = there_L & (rules.level_GL[number] <= walk.most_N[:, None])
    return allowed_NL


def numbers(action: Any, count: int) -> Floats:
    """An action as numbers.

    Raises:
        PruneEnvError: it holds another number of values, or one that is not finite.
    """
    try:
        values = np.asarray(action, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise PruneEnvError(f"the action is no array of numbers: {error}.") from None
    if len(values) != count:
        raise PruneEnvError(f"the action holds {len(values)} values; {count} are expected.")
    if not np.isfinite(values).all():
        raise PruneEnvError(f"the action is {values.tolist()}; finite numbers are expected.")
    return values
