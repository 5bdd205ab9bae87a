"""The arithmetic of plans, for N of them at once: snap to levels, keep the budget, spend it.

Legend: N plans, G groups, L levels of a group (rows are padded with its last), T plans of a path.

The environment decides one plan at a time, lockstep agents hundreds: both call these functions, so
what an agent practises is what the environment does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prune_env.costs.model import CostModel, Metric
from prune_env.errors import BudgetError
from prune_env.structure.groups import PrunableGroup

Units = NDArray[np.int64]
Floats = NDArray[np.float64]
SLACK = 1e-12
"""Of the budget, for rounding."""


@dataclass(frozen=True, eq=False)
class Rules:
    """Levels and costs of a task as arrays.

    Attributes:
        groups: in the order they are decided.
        costs: over the same groups.
        on: the cost that budgets limit.
    """

    groups: tuple[PrunableGroup, ...]
    costs: CostModel
    on: Metric

    @cached_property
    def units_G(self) -> Units:
        """Units of the dense network."""
        return np.array([group.units for group in self.groups])

    @cached_property
    def top_G(self) -> Units:
        """Number of each group's last level."""
        return np.array([len(group.levels) - 1 for group in self.groups])

    @cached_property
    def level_GL(self) -> Units:
        """Kept units of every level."""
        length = int(self.top_G.max()) + 1
        rows = [[*g.levels, *[g.levels[-1]] * (length - len(g.levels))] for g in self.groups]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def least_G(self) -> Units:
        """Every group's smallest level."""
        return self.level_GL[:, 0]

    @cached_property
    def most_G(self) -> Units:
        """Every group's largest level."""
        return self.level_GL[:, -1]

    @cached_property
    def _bounds_GL(self) -> Floats:
        """`level_GL` whose padding is never reached."""
        padding = np.arange(self.level_GL.shape[1]) > self.top_G[:, None]
        return np.where(padding, np.inf, self.level_GL)

    def ratio(self, kept_NG: Units) -> Floats:
        """Cost left as a fraction of the dense one, (N,)."""
        return self.costs.ratio(kept_NG, self.on)

    def number(self, keep_NG: Floats, groups: slice = slice(None)) -> Units:
        """Numbers of the levels nearest to `keep_NG` units; ties go to the larger."""
        bounds_GL, top_G = self._bounds_GL[groups], self.top_G[groups]
        above_NG = np.minimum((bounds_GL < keep_NG[..., None]).sum(-1), top_G)
        below_NG = np.maximum(above_NG - 1, 0)
        place = np.arange(len(top_G))
        higher, lower = bounds_GL[place, above_NG], bounds_GL[place, below_NG]
        closer: Units = np.where(
            np.abs(lower - keep_NG) < np.abs(higher - keep_NG), below_NG, above_NG
        )
        return closer

    def snap(self, sparsity_NG: Floats) -> Units:
        """The levels nearest to these sparsities, as kept units."""
        keep_NG = (1.0 - np.clip(sparsity_NG, 0.0, 1.0)) * self.units_G
        return self.level_GL[np.arange(len(self.groups)), self.number(keep_NG)]

    def sparsity(self, kept_NG: Units) -> Floats:
        """Fraction of units removed."""
        return 1.0 - kept_NG / self.units_G

    def project(self, kept_NG: Units, number: int, sparsity_N: Floats, budget_N: Floats) -> Units:
        """Levels (N,) of group `number`: nearest to what is asked that keeps the budget reachable.

        Groups before it are as in `kept_NG`; those behind may still fall to their smallest levels.
        """
        trial_NG = np.where(np.arange(len(self.groups)) < number, kept_NG, self.least_G)
        levels_L = self.level_GL[number]

        def fits(place_N: Units) -> NDArray[np.bool_]:
            trial_NG[:, number] = levels_L[place_N]
            return self.ratio(trial_NG) <= budget_N + SLACK

        keep_N = (1.0 - np.clip(sparsity_N, 0.0, 1.0)) * self.units_G[number]
        asked_N = self.number(keep_N[:, None], slice(number, number + 1))[:, 0]
        low_N = np.zeros_like(asked_N)  # fits by construction
        level_N: Units = levels_L[bisect(fits, low_N, asked_N)]
        return level_N

    def fill(self, kept_NG: Units, want_NG: Floats, budget_N: Floats) -> Units:
        """Give back what budgets still allow, level by level; see `PruningTask.fill`.

        Args:
            kept_NG: plans within their budgets.
            want_NG: units that were asked for; who lacks most of them, relative to all, is first.
            budget_N: fractions of the dense cost.
        """
        base_NG = self.number(kept_NG.astype(np.float64))
        place_NG = self._raised(base_NG, want_NG, budget_N)
        group_G = np.arange(len(self.groups))
        open_NG = place_NG < self.top_G
        while open_NG.any():
            kept = self.level_GL[group_G, place_NG]
            lost_NG = np.where(open_NG, (want_NG - kept) / self.units_G, -np.inf)
            first_N = lost_NG.argmax(1)
            rows = np.flatnonzero(open_NG.any(1))
            picked = first_N[rows]
            trial = kept[rows]
            trial[np.arange(len(rows)), picked] = self.level_GL[picked, place_NG[rows, picked] + 1]
            fits = self.ratio(trial) <= budget_N[rows] + SLACK
            place_NG[rows[fits], picked[fits]] += 1
            open_NG[rows[~fits], picked[~fits]] = False  # cost is monotone: it never fits again
            open_NG &= place_NG < self.top_G
        filled: Units = self.level_GL[group_G, place_NG]
        return filled

    def _raised(self, base_NG: Units, want_NG: Floats, budget_N: Floats) -> Units:
        """The raises before the first that does not fit, all at once: a bisection over losses.

        At threshold p every group has taken each level whose loss before was above p.
        """
        group_G = np.arange(len(self.groups))

        def at(loss_N: Floats) -> Units:
            reach = want_NG - loss_N[:, None] * self.units_G
            taken = (self._bounds_GL < reach[..., None] - 1e-9).sum(-1)
            place_NG: Units = np.clip(taken, base_NG, self.top_G)
            return place_NG

        low_N, high_N = np.full(len(base_NG), -1.1), np.full(len(base_NG), 1.1)
        for _ in range(18):
            middle_N = (low_N + high_N) / 2
            fits_N = self.ratio(self.level_GL[group_G, at(middle_N)]) <= budget_N + SLACK
            high_N, low_N = np.where(fits_N, middle_N, high_N), np.where(fits_N, low_N, middle_N)
        place_NG = at(high_N)
        fits_N = self.ratio(self.level_GL[group_G, place_NG]) <= budget_N + SLACK
        return np.where(fits_N[:, None], place_NG, base_NG)

    def shift(self, asked_NG: Floats, budget_N: Floats) -> Floats:
        """Asked sparsities (N, G), all of a plan moved by one number that meets its budget."""

        def shifted(shift_N: Floats) -> Floats:
            return np.clip(asked_NG + shift_N[:, None] - 1.0, 0.0, 1.0)

        return shifted(self.decode(shifted, 2.0, budget_N))

    def decode(self, want: Callable[[Floats], Floats], steps: float, budget_N: Floats) -> Floats:
        """The smallest shift (N,) in [0, steps] at which `want(shift)` meets the budgets.

        Args:
            want: sparsities (N, G) of a shift (N,); grow with it, and are 1 at `steps`.
            steps: the last shift.
            budget_N: fractions of the dense cost.
        """
        low_N, high_N = np.zeros(len(budget_N)), np.full(len(budget_N), steps)
        for _ in range(30):
            middle_N = (low_N + high_N) / 2
            fits_N = self.ratio(self.snap(want(middle_N))) <= budget_N + SLACK
            high_N, low_N = np.where(fits_N, middle_N, high_N), np.where(fits_N, low_N, middle_N)
        return high_N


def require_reachable(
    groups: Sequence[PrunableGroup], costs: CostModel, on: Metric, budget: float
) -> None:
    """Check that some plan meets a budget.

    Raises:
        BudgetError: there is no group, or the smallest levels of all cost more.
    """
    if not groups:
        raise BudgetError(
            "the task has no prunable group. Print format_groups(...) for the reasons; a model "
            "without any, or an `ignore` that covers all, leaves nothing to decide."
        )
    least = float(costs.ratio([group.levels[0] for group in groups], on))
    if least > budget:
        raise BudgetError(
            f"budget {budget:.4g} of the dense {on} cannot be reached: with every group at its "
            f"smallest level {least:.4g} remain. Raise the budget, raise max_sparsity, or let more "
            "groups be pruned."
        )


def bisect(fits: Callable[[Units], NDArray[np.bool_]], low_N: Units, high_N: Units) -> Units:
    """The largest whole number in [low, high] that fits, where those that fit are the lowest.

    `low_N` fits by construction.
    """
    low_N, high_N = low_N.copy(), high_N.copy()
    while bool((low_N < high_N).any()):
        middle_N = (low_N + high_N + 1) // 2
        good_N = fits(middle_N)
        low_N, high_N = np.where(good_N, middle_N, low_N), np.where(good_N, high_N, middle_N - 1)
    return low_N


def as_kept(row_G: Sequence[int] | Units) -> tuple[int, ...]:
    """One plan as the rest of the package holds it."""
    return tuple(int(level) for level in row_G)
