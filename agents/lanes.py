"""What our agents train on: the vector environments that we ship, with the wrappers that we ship.

Three things are done for the agent, none of which moves the optimum. Actions are offsets from the
prior's sparsity, so an untrained policy is as good as the allocator behind it. Observations are
standardised. Every step is paid what it changes about the worth of the plan that the prior would
complete; the last one corrects by what the plan turned out to be worth among its group.

Legend: N episodes, G groups, F features, A what an action holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prune_env import PruningTask
from prune_env.agents.payments import Payment
from prune_env.agents.vec_env import AsVecEnv
from prune_env.mdp.env import PlanningEnv, PruneEnv
from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.transforms import Standing, group_relative
from prune_env.mdp.vector import VECTORS, Draw
from prune_env.mdp.vector_wrappers import ResidualAction, ShapedReward, StandardObservation

Array = NDArray[np.float32]

Credit = Callable[[Payment, Units], Floats]
"""The potential of plans (N, G), by which steps are paid when they are taken."""


def by_effects(payment: Payment, kept_NG: Units) -> Floats:
    """What the payment expects of the plans, group by group."""
    return payment.potential(kept_NG)


def at_the_end(payment: Payment, kept_NG: Units) -> Floats:
    """Nothing: only the finished plan is paid."""
    return np.zeros(len(kept_NG))


@dataclass(frozen=True)
class Help:
    """How episodes are paid.

    Attributes:
        credit: potential of a plan under way.
        standing: of finished plans among their group.
    """

    credit: Credit = by_effects
    standing: Standing = group_relative


HELP = Help()


def lanes(
    task: PruningTask,
    payment: Payment,
    count: int,
    kind: type[PlanningEnv] = PruneEnv,
    help: Help = HELP,
    budgets: Draw | None = None,
) -> AsVecEnv:
    """N episodes in lockstep, ready for an agent of SB3.

    Args:
        task: with the prior that offsets start from.
        payment: pays finished plans.
        count: episodes at a time, N.
        kind: the environment.
        help: how steps and plans are paid.
        budgets: of the episodes; all the task's by default.
    """
    envs = VECTORS[kind](task, count, budgets=budgets, pay=payment)
    shaped = ShapedReward(envs, partial(help.credit, payment), help.standing)
    vec_env = AsVecEnv(StandardObservation(ResidualAction(shaped)))
    vec_env.reset()  # SB3 does so again; journals are from when the first draw of budgets was lost
    return vec_env


def plans_of(
    task: PruningTask, kind: type[PlanningEnv], act: Callable[[Array], Floats], budget_N: Floats
) -> Units:
    """Whole plans (N, G) as `act` decides them from what lanes show; nothing is paid."""
    episodes, standard = kind.shape.episodes(task, budget_N), kind.shape.standard(task)
    while not episodes.finished:
        episodes.advance(episodes.beside(act(standard(episodes.observation_NF))))
    return episodes.kept_NG
