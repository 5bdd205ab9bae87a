"""N episodes of one task side by side, each under a budget of its own: arrays in, arrays out.

Legend: N episodes, G groups, F features.

What `PruneEnv` does once, this does N times with the same functions, so an agent that practises
here learns the environment's own decision process.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prune_env.errors import PruneEnvError
from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.task import PruningTask


class Lockstep:
    """The walk through the groups, N at a time.

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
        self._asked_NG = np.zeros(self.kept_NG.shape)
        self._placed: Units | None = None

    @property
    def finished(self) -> bool:
        """Whether every group is decided."""
        return self.number == self.task.length

    @property
    def observation_NF(self) -> NDArray[np.float32]:
        """What `PruningTask.observe` shows of every episode."""
        place_N = None if self.finished else self._place_N
        return self.task.observe_all(self.kept_NG, self.number, self.budget_N, place_N)

    @property
    def prior_N(self) -> Floats:
        """Sparsity that the path asks of the next group under the budgets that are left."""
        return self.task.rules.sparsity(self.completed_NG)[:, self.number]

    @property
    def completed_NG(self) -> Units:
        """The plans, if the path decided the rest."""
        decided_G = np.arange(self.task.length) < self.number
        return np.where(decided_G, self.kept_NG, self.task.path.kept_TG[self._place_N])

    @property
    def _place_N(self) -> Units:
        """Where on the path the budgets leave the episodes; found once for every step."""
        if self._placed is None:
            task = self.task
            self._placed = task.path.under(task.rules, self.kept_NG, self.number, self.budget_N)
        return self._placed

    def advance(self, sparsity_N: Floats) -> None:
        """Decide the next group of every episode; sparsities are cut to [0, 1].

        Raises:
            PruneEnvError: all are decided.
        """
        if self.finished:
            raise PruneEnvError("these episodes are over. Make a new Lockstep.")
        sparsity_N = np.clip(np.asarray(sparsity_N, np.float64), 0.0, 1.0)
        rules, number = self.task.rules, self.number
        self._asked_NG[:, number] = sparsity_N
        self.kept_NG[:, number] = rules.project(self.kept_NG, number, sparsity_N, self.budget_N)
        self.number, self._placed = self.number + 1, None
        if self.finished:
            self.kept_NG = self.task.leftover(rules, self.kept_NG, self._asked_NG, self.budget_N)


def plans_beside(task: PruningTask, offset_NG: Floats, budget_N: Floats) -> Units:
    """Whole plans (N, G) at offsets in [-1, 1] from the path; see `PruningTask.beside`."""
    offset_NG = np.asarray(offset_NG, np.float64)
    asked_NG = task.path.decode(task.rules, offset_NG, budget_N)
    return task.leftover(task.rules, task.rules.snap(asked_NG), asked_NG, budget_N)
