"""Lanes and payments: what agents are paid, and who is charged for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import VecEnv

from prune_env import Ledger, PruningTask
from prune_env.agents.lanes import Help, at_the_end, lanes
from prune_env.agents.payments import Measured, Practice, Practised
from prune_env.mdp.env import PlanEnv, PlanningEnv, PruneEnv
from prune_env.mdp.path import beside
from prune_env.mdp.task import FEATURES, State
from prune_env.mdp.transforms import absolute, group_relative
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.seen import compression
from prune_env.testing import toy_task

TARGETS = [0.2, 0.5, 0.6, 0.3]


def task_and_ledger(limit: int = 200, budget: float = 0.6) -> tuple[PruningTask, Ledger]:
    task = toy_task(target=TARGETS, budget=budget)
    ledger = Ledger(task, limit)
    ledger.measure([task.decode([0.0] * task.length)])
    return task, ledger


def played(envs: VecEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rewards of one episode of every lane, and whether all ended at its end."""
    generator = np.random.default_rng(seed)
    envs.reset()
    total, done = np.zeros(envs.num_envs), np.zeros(envs.num_envs, bool)
    while not done.any():
        shape = (envs.num_envs, *envs.action_space.shape)
        seen, paid, done, infos = envs.step(generator.uniform(-0.5, 0.5, shape))
        assert seen.shape == (envs.num_envs, *envs.observation_space.shape)
        assert envs.observation_space.contains(seen[0])
        total += paid
    assert all(info["terminal_observation"].shape == seen[0].shape for info in infos)
    return total, done


@pytest.mark.parametrize("kind", [PruneEnv, PlanEnv])
def test_measured_lanes_charge_every_plan_and_pay_what_it_is_worth(kind: type[PlanningEnv]) -> None:
    task, ledger = task_and_ledger()
    envs = lanes(task, Measured(ledger), 6, kind, Help(at_the_end, absolute))
    assert isinstance(envs, VecEnv)
    total, done = played(envs, 0)
    assert done.all()
    assert ledger.spent == 1 + 6
    unit = -ledger.history[0].reward
    wanted = [np.arcsinh(outcome.reward / unit) for outcome in ledger.history[1:]]
    assert total == pytest.approx(wanted, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("kind", [PruneEnv, PlanEnv])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_credit_moves_pay_between_steps_but_not_the_order_of_plans(
    kind: type[PlanningEnv], seed: int
) -> None:
    """Potential-based shaping: an episode is paid its plan's worth beyond the start's potential."""
    totals = []
    for help in (Help(standing=absolute), Help(at_the_end, absolute)):
        task, ledger = task_and_ledger()
        payment = Practised(ledger, Practice(measured=8, rehearsals=2), seed=0)
        envs = lanes(task, payment, 12, kind, help)
        for number in range(3):
            played(envs, number)
        assert payment.surrogate is not None
        totals.append(played(envs, seed)[0])
    shaped, plain = totals
    assert shaped - shaped.mean() == pytest.approx(plain - plain.mean(), abs=1e-5)


def test_a_group_is_ranked_among_itself() -> None:
    worth_N = np.array([1.0, 2.0, 6.0])
    assert group_relative(worth_N).tolist() == [-2.0, -1.0, 3.0]
    assert absolute(worth_N) is worth_N


def test_practice_charges_only_what_it_measures() -> None:
    task, ledger = task_and_ledger()
    practice = Practice(measured=3, rehearsals=4)
    envs = lanes(task, Practised(ledger, practice, seed=0), 16, PlanEnv)
    charged = []
    for number in range(20):
        played(envs, number)
        charged.append(ledger.spent)
    first = charged.index(next(c for c in charged if c >= 6))  # a surrogate needs a few plans
    steps = np.diff(charged[first:])
    assert set(steps.tolist()) == {0, 3}
    assert (steps > 0).sum() == pytest.approx(len(steps) / 5, abs=1)
    plans = [outcome.kept for outcome in ledger.history]
    assert len(set(plans)) == len(plans), "what is known was measured again"


class Near:
    """A surrogate that expects most of what lies near a plan."""

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept_G = np.array(kept)

    def __call__(self, kept_NG: Any) -> Any:
        return -np.abs(kept_NG - self.kept_G).sum(1).astype(float)

    def spread(self, kept_NG: Any) -> Any:
        return np.zeros(len(kept_NG))


@pytest.mark.parametrize(("groups", "joined"), [(4, False), (12, True)])
def test_neighbours_of_the_best_plan_join_where_groups_are_many(groups: int, joined: bool) -> None:
    task = toy_task(target=[0.5] * groups, budget=0.6)
    ledger = Ledger(task, 50)
    best = ledger.measure([task.decode([0.0] * groups)])[0].kept
    acquisition: Any = Acquisition(ledger, Choice(), 0)
    acquisition.surrogate = Near(best)
    offsets = np.random.default_rng(0).uniform(-1.0, 1.0, (16, groups))  # all of them far away
    plans_NG = np.array([task.beside(row.tolist()) for row in offsets])
    found = acquisition.promising(plans_NG, np.full(16, task.budget))
    brought = {tuple(row) for row in plans_NG.tolist()}
    assert len(found) == Choice().measured
    assert joined is not any(kept in brought for kept in found)
    assert all(task.within_budget(kept) for kept in found)


def test_a_walk_in_lanes_is_a_walk_of_the_task() -> None:
    task, ledger = task_and_ledger()
    envs = lanes(task, Measured(ledger), 5)
    actions_GN = np.random.default_rng(0).uniform(-1, 1, (task.length, 5)).astype(np.float32)
    seen = envs.reset()
    assert seen.shape == (5, len(FEATURES))
    for actions_N in actions_GN:
        envs.step(actions_N[:, None])
    for lane in range(5):
        state = State()
        for action in actions_GN[:, lane]:
            state = task.advance(state, float(beside(np.array(task.prior(state)), action)))
        assert ledger.history[1 + lane].kept == state.kept


def test_compression_keeps_the_order_and_is_finest_at_the_top() -> None:
    quality = -np.array([0.1, 0.11, 0.13, 0.5, 5.0])
    worth = compression(quality)(quality)
    assert worth[0] == 0
    assert (np.diff(worth) < 0).all()
    near, far = compression(quality)(np.array([-0.12, -4.0])) - compression(quality)(
        np.array([-0.13, -4.01])
    )
    assert near > 20 * far
