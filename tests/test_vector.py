"""The lockstep vector environment is, number for number, Gymnasium's loop over `PruneEnv`."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import tasks

from prune_env.errors import BudgetError, ConfigError, PruneEnvError
from prune_env.mdp.env import PlanningEnv, PruneEnv
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Units
from prune_env.mdp.task import PruningTask
from prune_env.mdp.vector import (
    DiscreteVectorEnv,
    LockstepVectorEnv,
    PlanningVectorEnv,
    PlanVectorEnv,
)
from prune_env.mdp.vector_wrappers import ResidualAction, ShapedReward, StandardObservation
from prune_env.testing import toy_task

ID = "PruneEnv/Layerwise-v0"


KINDS = (LockstepVectorEnv, PlanVectorEnv, DiscreteVectorEnv)


def looped(
    task: PruningTask, count: int, single: type[PlanningEnv] = PruneEnv, **options: Any
) -> SyncVectorEnv[Any, Any]:
    make = [partial(single, task, **options)] * count
    return SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)


def same(first: Any, second: Any) -> None:
    """Two answers of vector environments: the same keys, types, shapes and numbers."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            same(value, second[key])
    elif isinstance(first, tuple) or (isinstance(first, np.ndarray) and first.dtype == object):
        assert len(first) == len(second)
        for left, right in zip(first, second, strict=True):
            same(left, right)
    elif isinstance(first, list):
        assert first == pytest.approx(second, rel=1e-12)
    else:
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=0)  # sums of N rows or of one
        assert first.dtype == second.dtype
        assert first.shape == second.shape


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=15)
def test_lockstep_is_the_loop(kind: type[PlanningVectorEnv], data: st.DataObject) -> None:
    """Over three episodes, with drawn budgets, under any actions."""
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    least = float(task.rules.ratio(task.rules.least_G[None])[0])
    ends = sorted(data.draw(st.lists(st.floats(least, 1.0), min_size=2, max_size=2)))
    budgets = data.draw(st.sampled_from([None, ends]))
    loop = looped(task, count, kind.single, budgets=budgets)
    lockstep = kind(task, count, budgets=budgets)
    assert lockstep.observation_space == loop.observation_space
    assert lockstep.action_space == loop.action_space
    assert lockstep.single_observation_space == loop.single_observation_space
    assert lockstep.single_action_space == loop.single_action_space
    assert lockstep.metadata == loop.metadata
    seed, options = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([None, ends[:1]]))
    options = options and {"budget": options[0]}
    same(lockstep.reset(seed=seed, options=options), loop.reset(seed=seed, options=options))
    lockstep.action_space.seed(seed)
    for _ in range(3 * task.length):
        actions = lockstep.action_space.sample()
        same(lockstep.step(actions), loop.step(actions))
    same(lockstep.reset(), loop.reset())


def test_seeds_may_be_given_one_by_one() -> None:
    task, seeds = toy_task(), [3, None, 8]
    lockstep, loop = (make(task, 3, budgets=(0.3, 0.9)) for make in (LockstepVectorEnv, looped))
    same(lockstep.reset(seed=1), loop.reset(seed=1))
    same(lockstep.reset(seed=seeds), loop.reset(seed=seeds))
    budgets = lockstep.reset(seed=1)[1]["budget"]
    assert len(set(budgets)) == 3


def test_make_vec_finds_it() -> None:
    for mode in ("vector_entry_point", None):
        envs = gymnasium.make_vec(
            ID, num_envs=8, vectorization_mode=mode, task="toy", budgets=(0.4, 0.8)
        )
        assert isinstance(envs, LockstepVectorEnv)
        assert envs.num_envs == 8
        envs.reset(seed=0)
        for _ in range(5):
            envs.step(envs.action_space.sample())
        envs.close()


def test_make_vec_wraps_by_name_and_by_function() -> None:
    names = ["ShapedReward", "ResidualAction", "StandardObservation"]
    made = {"task": "toy", "num_envs": 3}
    envs = gymnasium.make_vec(ID, vector_wrappers=names, **made)
    assert isinstance(envs, StandardObservation)
    assert isinstance(envs.unwrapped, LockstepVectorEnv)
    assert json.loads(envs.unwrapped.spec.to_json())["kwargs"]["vector_wrappers"] == names
    by_hand = StandardObservation(ResidualAction(ShapedReward(gymnasium.make_vec(ID, **made))))
    other = gymnasium.make_vec(
        ID, vector_wrappers=[ShapedReward, ResidualAction, StandardObservation], **made
    )
    envs.action_space.seed(0)
    seen = [each.reset(seed=0)[0] for each in (envs, by_hand, other)]
    for _ in range(4):
        assert np.array_equal(seen[0], seen[1])
        assert np.array_equal(seen[0], seen[2])
        action = envs.action_space.sample()
        steps = [each.step(action) for each in (envs, by_hand, other)]
        assert steps[0][1].tolist() == steps[1][1].tolist() == steps[2][1].tolist()
        seen = [step[0] for step in steps]
    with pytest.raises(ConfigError, match=r"wrapper.*ShapedReward"):
        gymnasium.make_vec(ID, vector_wrappers=["ShapedRewards"], **made)


def test_gymnasiums_own_wrappers_work() -> None:
    envs: VectorEnv[Any, Any, Any] = RecordEpisodeStatistics(LockstepVectorEnv(toy_task(), 3))
    envs.reset(seed=0)
    for _ in range(4):
        *_, rewards, _, _, infos = envs.step(envs.action_space.sample())
    assert infos["episode"]["l"].tolist() == [4, 4, 4]
    assert infos["episode"]["r"].tolist() == pytest.approx(rewards.tolist())


def test_every_episode_may_have_a_budget_of_its_own() -> None:
    envs = LockstepVectorEnv(toy_task(width=50), 3)
    asked = [0.4, 0.6, 1.0]
    for options in ({"budget": asked}, {"budget": np.array(asked)}):
        infos = envs.reset(options=options)[1]
        assert infos["budget"].tolist() == asked
        for _ in range(4):
            *_, infos = envs.step(np.zeros((3, 1), np.float32))
        assert infos["final_info"]["budget"].tolist() == asked
        ratios = infos["final_info"]["flops_ratio"]
        assert (ratios <= np.array(asked) + 1e-12).all()
        assert (ratios > np.array(asked) - 0.02).all()
    assert infos["budget"].tolist() == [1.0] * 3  # the next episodes have the task's


def test_the_prior_decides_as_well_as_in_one_episode() -> None:
    task = toy_task(budget=0.6)
    envs, env = LockstepVectorEnv(task, 2), PruneEnv(task)
    envs.reset()
    env.reset()
    for _ in task.groups:
        assert envs.prior.tolist() == [env.prior.tolist()] * 2
        *_, infos = envs.step(envs.prior.astype(np.float32))
        env.step(env.prior.astype(np.float32))
    assert {k: v[0] for k, v in infos["final_info"]["plan"].items() if k[0] != "_"} == (
        env.plan.levels
    )


def test_plans_are_measured_together() -> None:
    seen = []

    class Together(LockstepVectorEnv):
        def measure(self, kept_NG: Units) -> list[Outcome]:
            seen.append(kept_NG.shape)
            return super().measure(kept_NG)

    envs = Together(toy_task(), 5, budgets=(0.3, 0.6))
    envs.reset(seed=0)
    for _ in range(8):
        envs.step(envs.action_space.sample())
    assert seen == [(5, 4)] * 2


def test_the_best_episode_is_that_of_the_loop() -> None:
    task = toy_task()
    lockstep, loop = (make(task, 3, budgets=(0.3, 0.9)) for make in (LockstepVectorEnv, looped))
    with pytest.raises(PruneEnvError, match="no best plan before"):
        _ = lockstep.best
    for envs in (lockstep, loop):
        envs.reset(seed=1)
        envs.action_space.seed(1)
        for _ in range(3 * task.length):
            envs.step(envs.action_space.sample())
    found = [env.best for env in loop.envs]
    first = max(found, key=lambda best: best.outcome.rank)
    assert lockstep.best.outcome == first.outcome
    assert lockstep.best.task.budget == first.task.budget
    assert lockstep.best.plan.kept == first.plan.kept


def test_rendering_gives_a_picture_for_each() -> None:
    envs = LockstepVectorEnv(toy_task(), 2, render_mode="ansi", budgets=(0.3, 0.7))
    envs.reset(options={"budget": [0.4, 0.6]})
    envs.step(np.array([[0.25], [0.5]], np.float32))
    first, second = envs.render() or ()
    assert "budget 40.0%" in first
    assert "sparsity 25.0%" in first
    assert "budget 60.0%" in second
    assert "sparsity 50.0%" in second
    assert LockstepVectorEnv(toy_task()).render() is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_envs is 0; give a whole number, 1 or more"):
        LockstepVectorEnv(toy_task(), 0)
    with pytest.raises(BudgetError, match="cannot be reached"):
        LockstepVectorEnv(toy_task(), 2, budgets=(1e-6, 0.5))
    with pytest.raises(ConfigError, match=r"no render mode 'human'"):
        LockstepVectorEnv(toy_task(), 2, render_mode="human")
    envs = LockstepVectorEnv(toy_task(), 2)
    with pytest.raises(PruneEnvError, match=r"Call reset\(\) before step"):
        envs.step(np.zeros((2, 1), np.float32))
    with pytest.raises(ConfigError, match=r"3 values for 2 episodes. Give one for all or one"):
        envs.reset(options={"budget": [0.3, 0.4, 0.5]})
    with pytest.raises(ConfigError, match="1 values for 2 episodes"):
        envs.reset(seed=[1])
    with pytest.raises(ConfigError, match="no option 'reset_mask'"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(BudgetError, match="cannot be reached"):
        envs.reset(options={"budget": [0.3, 1e-6]})
    envs.reset()
    with pytest.raises(PruneEnvError, match="the action holds 3 values; 2 are expected"):
        envs.step(np.zeros((3, 1), np.float32))
    with pytest.raises(PruneEnvError, match="nan"):
        envs.step(np.array([[0.5], [np.nan]], np.float32))
    envs.step(np.zeros((2, 1), np.float32))  # nothing was lost
