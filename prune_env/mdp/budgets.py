"""The budgets of episodes: one policy, many budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from prune_env.checks import is_number, refuse
from prune_env.errors import ConfigError
from prune_env.mdp.task import PruningTask


@dataclass(frozen=True)
class Budgets:
    """Where the budgets of episodes come from: uniform between two fractions of the dense cost."""

    low: float
    high: float

    @staticmethod
    def of(task: PruningTask, given: Sequence[float] | None) -> Budgets:
        """The interval `given`, or the task's own budget.

        Raises:
            ConfigError: it is not two numbers, the lower first.
            BudgetError: an end is out of range or cannot be reached.
        """
        if given is None:
            return Budgets(task.budget, task.budget)
        try:
            low, high = given
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if not (is_number(low) and is_number(high) and low <= high):
            raise ConfigError(
                f"budgets are {given!r}; give the lowest and the highest fraction of the dense "
                "cost, the lower first: (0.3, 0.7)."
            )
        for end in (low, high):
            task.at(end)
        return Budgets(float(low), float(high))

    def draw(self, random: np.random.Generator) -> float:
        """The budget of one episode."""
        return float(random.uniform(self.low, self.high))


def asked_budget(options: Mapping[str, Any] | None) -> Any:
    """The budget in the options of a reset; None where there is none.

    Raises:
        ConfigError: there are others.
    """
    unknown = sorted(set(options or ()) - {"budget"})
    if unknown:
        raise ConfigError(f"reset has no option '{unknown[0]}'; there is 'budget' alone.")
    return (options or {}).get("budget")


def task_at(task: PruningTask, budget: Any) -> PruningTask:
    """The task under a budget that was asked for.

    Raises:
        ConfigError: it is no number.
        BudgetError: it is out of range or cannot be reached.
    """
    if isinstance(budget, np.ndarray) and budget.ndim == 0:
        budget = budget[()]
    if isinstance(budget, bool) or not isinstance(budget, Real):
        refuse("the budget", budget, "a fraction of the dense cost, such as 0.4")
    return task.at(float(budget))
