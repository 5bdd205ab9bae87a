"""N episodes of one task side by side, each under a budget of its own: arrays in, arrays out.

Legend: N episodes, G groups, A sparsities decided at once, F features.

The one place where stepping is written. `PruneEnv` and `PlanEnv` are N = 1 of it, the vector
environments and our agents the same with more, so what an agent practises is the environment's own
decision process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from prune_env.errors import PruneEnvError
from prune_env.mdp.leftover import decoded
from prune_env.mdp.path import beside
from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.task import PruningTask

Array = NDArray[np.float32]


class Episodes(ABC):
    """N episodes of a task, whatever is decided in a step.

    Attributes:
        task: what is decided; its budget is not used.
        number: groups decided so far.
        kept_NG: kept units; groups that are not decided are whole.
        budget_N: fractions of the dense cost.

    Raises:
        BudgetError: a budget is no number or cannot be reached.
    """

    def __init__(self, task: PruningTask, budget_N: Floats) -> None:
        self.task, self.number = task, 0
        self.budget_N = np.asarray(budget_N, np.float64)
        if not (self.budget_N >= task.rules.ratio(task.rules.least_G)).all():
            task.at(float(self.budget_N.min()))  # says what is wrong
        self.kept_NG: Units = np.tile(task.rules.most_G, (len(self.budget_N), 1))

    @property
    @abstractmethod
    def width(self) -> int:
        """Sparsities decided at once, A."""

    @property
    def finished(self) -> bool:
        """Whether every group is decided."""
        return self.number == self.task.length

    def advance(self, sparsity_NA: Floats) -> Floats:
        """Decide what is next in every episode; sparsities are cut to [0, 1].

        Returns:
            The sparsities taken, (N, A): what was asked, projected to the budgets.

        Raises:
            PruneEnvError: all are decided.
        """
        if self.finished:
            raise PruneEnvError("these episodes are over. Make new ones.")
        first = self.number
        self._decide(np.clip(np.asarray(sparsity_NA, np.float64), 0.0, 1.0))
        now = slice(first, self.number)
        return 1.0 - self.kept_NG[:, now] / self.task.rules.units_G[now]

    @property
    @abstractmethod
    def observation_NF(self) -> Array:
        """What agents see of every episode."""

    @property
    @abstractmethod
    def completed_NG(self) -> Units:
        """The plans, if the path decided the rest under the budgets that are left."""

    @property
    @abstractmethod
    def prior_NA(self) -> Floats:
        """The sparsities that the path asks for next."""

    @abstractmethod
    def beside(self, offset_NA: Floats) -> Floats:
        """The sparsities, (N, A), at offsets in [-1, 1] from the prior; see `path.beside`."""

    @abstractmethod
    def _decide(self, sparsity_NA: Floats) -> None:
        """Take up sparsities in [0, 1]."""


class Walk(Episodes):
    """Group by group: A is 1, F is that of `prune_env.mdp.task.FEATURES`."""

    def __init__(self, task: PruningTask, budget_N: Floats) -> None:
        super().__init__(task, budget_N)
        self._asked_NG = np.zeros(self.kept_NG.shape)
        self._placed: Units | None = None

    width = 1

    @property
    def observation_NF(self) -> Array:
        """What `PruningTask.observe` shows of every episode."""
        place_N = None if self.finished else self._place_N
        return self.task.observe_all(self.kept_NG, self.number, self.budget_N, place_N)

    @property
    def completed_NG(self) -> Units:
        """The plans, if the path decided the rest."""
        decided_G = np.arange(self.task.length) < self.number
        return np.where(decided_G, self.kept_NG, self.task.path.kept_TG[self._place_N])

    @property
    def prior_NA(self) -> Floats:
        """Sparsity, (N, 1), that the path asks of the next group."""
        return self.task.rules.sparsity(self.completed_NG)[:, self.number, None]

    def beside(self, offset_NA: Floats) -> Floats:
        """Sparsities beside that of the path."""
        return beside(self.prior_NA, offset_NA)

    @property
    def most_N(self) -> Units:
        """The largest level of the next group that leaves every budget reachable."""
        whole_N = np.zeros(len(self.kept_NG))
        return self.task.rules.project(self.kept_NG, self.number, whole_N, self.budget_N)

    @property
    def _place_N(self) -> Units:
        """Where on the path the budgets leave the episodes; found once for every step."""
        if self._placed is None:
            task = self.task
            self._placed = task.path.under(task.rules, self.kept_NG, self.number, self.budget_N)
        return self._placed

    def _decide(self, sparsity_NA: Floats) -> None:
        rules, number = self.task.rules, self.number
        (sparsity_N,) = sparsity_NA.T
        self._asked_NG[:, number] = sparsity_N
        self.kept_NG[:, number] = rules.project(self.kept_NG, number, sparsity_N, self.budget_N)
        self.number, self._placed = number + 1, None
        if self.finished:
            self.kept_NG = self.task.leftover(rules, self.kept_NG, self._asked_NG, self.budget_N)


class Whole(Episodes):
    """All groups at once: A is G; one step, of which the budget alone is seen."""

    @property
    def width(self) -> int:
        """All of them."""
        return self.task.length

    @property
    def observation_NF(self) -> Array:
        """The budgets, (N, 1)."""
        seen: Array = self.budget_N[:, None].astype(np.float32)
        return seen

    @property
    def completed_NG(self) -> Units:
        """The plans of the path at the budgets."""
        return plans_beside(self.task, np.zeros(self.kept_NG.shape), self.budget_N)

    @property
    def prior_NA(self) -> Floats:
        """Sparsities of the plans of the path, (N, G)."""
        return self.task.rules.sparsity(self.completed_NG)

    def beside(self, offset_NA: Floats) -> Floats:
        """Those of the plans beside the path's, shifted along it to the budgets."""
        return self.task.rules.sparsity(plans_beside(self.task, offset_NA, self.budget_N))

    def _decide(self, sparsity_NA: Floats) -> None:
        task = self.task
        self.kept_NG = decoded(task.rules, task.leftover, sparsity_NA, self.budget_N)
        self.number = task.length


def plans_beside(task: PruningTask, offset_NG: Floats, budget_N: Floats) -> Units:
    """Whole plans (N, G) at offsets in [-1, 1] from the path; see `PruningTask.beside`."""
    offset_NG = np.asarray(offset_NG, np.float64)
    asked_NG = task.path.decode(task.rules, offset_NG, budget_N)
    return task.leftover(task.rules, task.rules.snap(asked_NG), asked_NG, budget_N)
