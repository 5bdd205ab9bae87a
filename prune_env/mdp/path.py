"""Paths: nested families of plans, one for every budget. What an allocator makes.

A path starts at the dense network and lowers one group by one level at a time until all are at
their smallest. It answers every budget, also that of an episode half-way, so it serves as the prior
of an agent: the policy is a residual around it.

Legend: N plans, G groups, T plans of the path, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.rules import SLACK, Floats, Rules, Units, bisect

REACH = 3.0
"""Octaves of kept units that an offset of 1 is worth."""


@dataclass(frozen=True, eq=False)
class Path:
    """Plans from the largest to the smallest; every group falls along it.

    Attributes:
        kept_TG: kept units.
    """

    kept_TG: Units

    def under(self, rules: Rules, kept_NG: Units, number: int, budget_N: Floats) -> Units:
        """Numbers (N,) of the first plan whose groups from `number` on meet what is left.

        Groups before `number` are as in `kept_NG`. The last plan stands for budgets that none
        meets.
        """
        decided_G = np.arange(kept_NG.shape[1]) < number
        last = len(self.kept_TG) - 1

        def fits(height_N: Units) -> NDArray[np.bool_]:
            trial_NG = np.where(decided_G, kept_NG, self.kept_TG[last - height_N])
            return rules.ratio(trial_NG) <= budget_N + SLACK

        zero_N = np.zeros(len(budget_N), np.int64)
        return last - bisect(fits, zero_N, zero_N + last)

    def around(self, rules: Rules, place_N: Floats, offset_NG: Floats) -> Floats:
        """Sparsities (N, G) beside the plans at places (N,), interpolated between plans.

        Beyond the end of the path they go on to 1, so that any offset can meet any budget.

        Args:
            rules: of the task.
            place_N: in [0, `end`].
            offset_NG: see `beside`.
        """
        last = len(self.kept_TG) - 1
        below_N = np.clip(np.floor(place_N), 0, last).astype(np.int64)
        above_N = np.minimum(below_N + 1, last)
        part_N1 = np.clip(place_N - below_N, 0.0, 1.0)[:, None]
        kept_NG = (1 - part_N1) * self.kept_TG[below_N] + part_N1 * self.kept_TG[above_N]
        sparsity_NG = beside(1.0 - kept_NG / rules.units_G, offset_NG)
        beyond_N1 = np.clip((place_N - last) / (last + 1), 0.0, 1.0)[:, None]
        return sparsity_NG + beyond_N1 * (1.0 - sparsity_NG)

    def decode(self, rules: Rules, offset_NG: Floats, budget_N: Floats) -> Floats:
        """The sparsities (N, G) of whole plans beside this path that just meet the budgets."""
        end = 2.0 * len(self.kept_TG) - 1.0
        want = partial(self._wanted, rules, offset_NG)
        return want(rules.decode(want, end, budget_N))

    def _wanted(self, rules: Rules, offset_NG: Floats, place_N: Floats) -> Floats:
        return self.around(rules, place_N, offset_NG)


def beside(sparsity: Floats, offset: Floats) -> Floats:
    """A sparsity moved by an offset in [-1, 1]: what is kept shrinks by `REACH` octaves at 1.

    In what is kept, not in what is removed, since half the units are as far from a quarter as from
    all of them. 0 changes nothing.
    """
    keep: Floats = (1.0 - sparsity) * np.exp2(-REACH * offset)
    return np.clip(1.0 - keep, 0.0, 1.0)


def uniform_path(rules: Rules) -> Path:
    """The same sparsity everywhere, falling level by level."""
    fall = []
    for group in rules.groups:
        middles = np.array([(a + b) / 2 for a, b in pairwise(group.levels)])
        fall.append(1.0 - middles[::-1] / group.units)
    return path_of(rules, fall)


def path_of(rules: Rules, fall: Sequence[Floats]) -> Path:
    """The path on which group g falls to its next level at `fall[g]`, ascending numbers."""
    group = np.repeat(np.arange(len(fall)), [len(values) for values in fall])
    order = np.argsort(np.concatenate([np.asarray(v, np.float64) for v in fall]), kind="stable")
    down_TG = np.zeros((len(order) + 1, len(fall)), np.int64)
    down_TG[np.arange(1, len(order) + 1), group[order]] = 1
    place_TG = rules.top_G - down_TG.cumsum(0)
    return Path(rules.level_GL[np.arange(len(fall)), place_TG])


def greedy_path(rules: Rules, loss_GL: Sequence[Floats]) -> Path:
    """Always the group that loses least for the cost it saves: a Lagrange multiplier that grows.

    Losses are first made convex from below (hull), so that a cheap level behind a dear one is seen;
    costs are those at hand, since the price of a group depends on its neighbours.

    Args:
        rules: of the task.
        loss_GL: loss of every level of every group, from the smallest level to the largest, in any
            unit that adds up over groups.
    """
    lost_GL = np.zeros(rules.level_GL.shape)  # entry l: from level l + 1 to l
    for number, (group, loss_L) in enumerate(zip(rules.groups, loss_GL, strict=True)):
        hull_L = hull(np.array(group.levels), np.asarray(loss_L, np.float64))
        lost_GL[number, : len(hull_L) - 1] = -np.diff(hull_L)
    group_G = np.arange(len(lost_GL))
    place_G = rules.top_G.copy()
    fall: list[list[float]] = [[] for _ in group_G]
    for time in range(int(rules.top_G.sum())):
        kept_G, lower_G = rules.level_GL[group_G, place_G], np.maximum(place_G - 1, 0)
        trial_GG = np.tile(kept_G, (len(group_G), 1))
        trial_GG[group_G, group_G] = rules.level_GL[group_G, lower_G]
        saved_G = np.maximum(rules.ratio(kept_G[None]) - rules.ratio(trial_GG), 1e-15)
        price_G = np.where(place_G > 0, lost_GL[group_G, lower_G] / saved_G, np.inf)
        chosen = int(price_G.argmin())
        fall[chosen].append(float(time))
        place_G[chosen] -= 1
    return path_of(rules, [np.array(times) for times in fall])


def hull(keep_L: Units, loss_L: Floats) -> Floats:
    """The lower convex hull of a group's losses over what its levels keep, (L,)."""
    corners: list[int] = []
    for level in range(len(loss_L)):
        while len(corners) > 1:
            a, b = corners[-2:]
            slope = (loss_L[b] - loss_L[a]) / (keep_L[b] - keep_L[a])
            beyond = (loss_L[level] - loss_L[b]) / (keep_L[level] - keep_L[b])
            if slope <= beyond:
                break
            corners.pop()
        corners.append(level)
    return np.interp(keep_L, keep_L[corners], loss_L[corners])
