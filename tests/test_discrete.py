"""The decision process with levels as actions: masks say what is taken, and agents learn on it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import DQN
from toys import tasks

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.env import DiscreteEnv
from prune_env.mdp.vector import DiscreteVectorEnv
from prune_env.mdp.wrappers import ResidualAction
from prune_env.testing import toy_task

ID = "PruneEnv/Discrete-v0"


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_masked_levels_are_taken_and_others_are_the_nearest_below(data: st.DataObject) -> None:
    task = data.draw(tasks())
    env = DiscreteEnv(task)
    env.reset()
    last = task.length - 1
    for number, group in enumerate(task.groups):
        allowed = env.action_masks()
        assert allowed.shape == (env.action_space.n,)  # type: ignore[attr-defined]
        assert allowed[0]
        assert (np.diff(allowed.astype(int)) <= 0).all()  # the lowest are allowed
        assert not allowed[len(group.levels) :].any()
        chosen = data.draw(st.integers(0, len(allowed) - 1))
        info = env.step(chosen)[4]
        nearest = min(chosen, int(allowed.sum()) - 1)
        if number < last:  # what is left over is given back at the end
            assert env.decided[number] == group.levels[nearest]
            assert info["taken"] == pytest.approx(1 - group.levels[nearest] / group.units)
    assert task.within_budget(env.decided)


def test_the_mask_ends_where_the_budget_does() -> None:
    task = toy_task(budget=0.3, length=2, width=10)
    env = DiscreteEnv(task)
    env.reset()
    most = int(env.action_masks().sum()) - 1
    for level, within in ((most, True), (most + 1, False)):
        assert bool(task.costs.ratio([level, 0], task.on) <= 0.3) is within


def test_the_prior_is_a_level() -> None:
    task = toy_task(budget=0.6)
    env, other = DiscreteEnv(task), task.decode([0.0] * 4)
    env.reset()
    for _ in task.groups:
        assert env.action_space.contains(np.int64(env.prior))
        env.step(env.prior)
    assert sum(env.decided) == sum(other)


@pytest.mark.parametrize("action", [-1, 21, 0.5, np.nan, "x", [1, 2]])
def test_what_is_no_level_is_refused(action: Any) -> None:
    env = DiscreteEnv(toy_task())
    env.reset()
    with pytest.raises(PruneEnvError, match="the action"):
        env.step(action)
    env.step(20)  # nothing was lost


def test_levels_have_no_offsets() -> None:
    with pytest.raises(ConfigError, match="ResidualAction needs sparsities as actions"):
        ResidualAction(DiscreteEnv(toy_task()))


def test_masks_of_a_vector_are_those_of_each() -> None:
    task = toy_task(budget=0.6)
    envs, env = DiscreteVectorEnv(task, 2), DiscreteEnv(task)
    envs.reset(options={"budget": [0.4, 0.6]})
    env.reset(options={"budget": 0.4})
    for level in (15, 3, 7):
        masks = envs.action_masks()
        assert masks.shape == (2, 21)
        assert (masks[0] == env.action_masks()).all()
        envs.step(np.array([level, 20]))
        env.step(level)


def test_dqn_and_maskable_ppo_train_on_it() -> None:
    env: Any = gymnasium.make(ID, task="toy", budget=0.6)
    DQN("MlpPolicy", env, gamma=1.0, learning_starts=8, buffer_size=100, seed=0).learn(20)
    first = env.unwrapped.best
    MaskablePPO("MlpPolicy", env, gamma=1.0, n_steps=16, batch_size=16, seed=0).learn(16)
    env.reset()
    assert get_action_masks(env).tolist() == env.unwrapped.action_masks().tolist()
    assert env.unwrapped.best.outcome.rank >= first.outcome.rank
    assert env.unwrapped.task.within_budget(env.unwrapped.best.outcome.kept)
