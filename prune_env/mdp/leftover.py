"""What is done with the budget that a finished plan has not spent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prune_env.errors import look_up
from prune_env.mdp.rules import SLACK, Floats, Rules, Units


def give_back(rules: Rules, kept_NG: Units, asked_NG: Floats, budget_N: Floats) -> Units:
    """Spend the budget to the last level; see `PruningTask.fill`."""
    return rules.fill(kept_NG, (1.0 - asked_NG) * rules.units_G, budget_N)


def leave(rules: Rules, kept_NG: Units, asked_NG: Floats, budget_N: Floats) -> Units:
    """Leave plans as they are: for rewards that pay for every FLOP saved, like AMC's."""
    return kept_NG


Leftover = Callable[[Rules, Units, Floats, Floats], Units]
LEFTOVERS: dict[str, Leftover] = {"give_back": give_back, "leave": leave}


def leftover_named(name: str) -> Leftover:
    """The treatment of unspent budget called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("leftover", name, LEFTOVERS)


def decoded(rules: Rules, leftover: Leftover, asked_NG: Floats, budget_N: Floats) -> Units:
    """Whole plans (N, G): asked sparsities, shifted together until the budgets are met.

    No group is favoured by its place. Where budgets need not be spent (`leave`), plans that meet
    them are not shifted.
    """
    shifted_NG = rules.shift(asked_NG, budget_N)
    if leftover is leave:
        meets_N = rules.ratio(rules.snap(asked_NG)) <= budget_N + SLACK
        shifted_NG = np.where(meets_N[:, None], asked_NG, shifted_NG)
    return leftover(rules, rules.snap(shifted_NG), shifted_NG, budget_N)
