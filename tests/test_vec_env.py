"""Wrappers of vectors are those of each episode, and SB3 sees what Gymnasium's vectors say."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from prune_env.agents.vec_env import AsVecEnv
from prune_env.errors import ConfigError
from prune_env.mdp import vector_wrappers, wrappers
from prune_env.mdp.env import DiscreteEnv, PlanEnv, PlanningEnv, PruneEnv
from prune_env.mdp.task import FEATURES, PruningTask
from prune_env.mdp.transforms import LIMIT, group_relative
from prune_env.mdp.vector import VECTORS, DiscreteVectorEnv, LockstepVectorEnv
from prune_env.testing import toy_task

TARGETS = [0.2, 0.5, 0.6, 0.3]


def task() -> PruningTask:
    return toy_task(target=TARGETS, budget=0.6)


def helped(kind: type[PlanningEnv], of: PruningTask) -> gymnasium.Env[Any, Any]:
    env: Any = wrappers.ShapedReward(kind(of, budgets=(0.3, 0.8)))
    return wrappers.StandardObservation(
        env if kind is DiscreteEnv else wrappers.ResidualAction(env)
    )


def helped_vector(kind: type[PlanningEnv], of: PruningTask, count: int) -> Any:
    envs: Any = vector_wrappers.ShapedReward(VECTORS[kind](of, count, budgets=(0.3, 0.8)))
    envs = envs if kind is DiscreteEnv else vector_wrappers.ResidualAction(envs)
    return vector_wrappers.StandardObservation(envs)


@pytest.mark.parametrize("kind", VECTORS)
def test_wrappers_of_a_vector_are_those_of_each_episode(kind: type[PlanningEnv]) -> None:
    of = task()
    loop: Any = SyncVectorEnv(
        [partial(helped, kind, of)] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    envs = helped_vector(kind, of, 3)
    assert envs.single_observation_space == loop.single_observation_space
    assert envs.action_space == loop.action_space
    np.testing.assert_allclose(envs.reset(seed=1)[0], loop.reset(seed=1)[0], rtol=1e-5, atol=1e-6)
    envs.action_space.seed(0)
    for _ in range(2 * of.length):
        actions = envs.action_space.sample()
        ours, theirs = envs.step(actions), loop.step(actions)
        for mine, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
        assert ours[4].keys() == theirs[4].keys()
        if "final_obs" in ours[4]:
            last = [np.stack(infos["final_obs"]) for infos in (ours[4], theirs[4])]
            np.testing.assert_allclose(*last, rtol=1e-5, atol=1e-6)
            assert last[0].dtype == np.float32


def test_standard_observations_have_mean_0_and_spread_1_along_the_prior() -> None:
    env = wrappers.StandardObservation(wrappers.ResidualAction(PruneEnv(task())))
    seen = [env.reset()[0]]
    for _ in range(3):
        seen.append(env.step(np.zeros(1, np.float32))[0])
    assert np.mean(seen, 0) == pytest.approx(0, abs=1e-5)
    moved = np.std(seen, 0)
    assert moved[FEATURES.index("position")] == pytest.approx(1.0)
    assert (moved <= 1 + 1e-5).all()
    plan = wrappers.StandardObservation(PlanEnv(task()))
    assert plan.reset()[0].tolist() == [0.0]
    assert plan.reset(options={"budget": 0.8})[0] == pytest.approx(1.0)
    assert plan.reset(options={"budget": 0.1})[0] >= -LIMIT


def test_a_group_may_be_ranked() -> None:
    envs = vector_wrappers.ShapedReward(
        LockstepVectorEnv(task(), 5), lambda kept_NG: np.zeros(len(kept_NG)), group_relative
    )
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(4):
        _, paid, _, _, infos = envs.step(envs.action_space.sample())
    reward = infos["final_info"]["reward_terms"]["divergence"]
    assert paid == pytest.approx(reward - reward.mean())


def test_others_have_no_prior() -> None:
    other: Any = gymnasium.make_vec("CartPole-v1", 2)
    for wrap in (
        vector_wrappers.ResidualAction, vector_wrappers.ShapedReward,
        vector_wrappers.StandardObservation,
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"has no prior\. Wrap what make_vec makes"):
            wrap(other)
    with pytest.raises(ConfigError, match="needs sparsities as actions"):
        vector_wrappers.ResidualAction(DiscreteVectorEnv(task(), 2))
    with pytest.raises(ConfigError, match=r"autoreset_mode=AutoresetMode\.SAME_STEP"):
        AsVecEnv(other)


def test_plans_may_be_paid_without_being_measured() -> None:
    seen = []

    def pay(kept_NG: Any, budget_N: Any) -> Any:
        seen.append(budget_N.tolist())
        return kept_NG.sum(1) / 80.0

    envs = LockstepVectorEnv(
        toy_task(), 2, budgets=lambda count: np.linspace(0.4, 0.8, count), pay=pay
    )
    envs.reset()
    for _ in range(4):
        _, paid, ended, _, infos = envs.step(np.zeros((2, 1)))
    assert seen == [[0.4, 0.8]]
    assert ended.all()
    assert 0 < paid[0] < paid[1] < 1
    assert "accuracy" not in infos["final_info"]


def test_sb3_sees_episodes_in_its_own_layout() -> None:
    of = task()
    vec_env = AsVecEnv(LockstepVectorEnv(of, 3, budgets=(0.3, 0.8)))
    vec_env.seed(4)
    vec_env.set_options({"budget": 0.5})
    first = vec_env.reset()
    assert [info["budget"] for info in vec_env.reset_infos] == [0.5] * 3
    for step in range(1, 5):
        seen, paid, done, infos = vec_env.step(np.full((3, 1), 0.1, np.float32))
        assert done.tolist() == [step == 4] * 3
        assert (paid.dtype, len(infos)) == (np.float32, 3)
    assert seen.shape == first.shape
    for info in infos:
        assert info["terminal_observation"].shape == (len(FEATURES),)
        assert info["TimeLimit.truncated"] is False
        assert set(info["plan"]) == {group.name for group in of.groups}
        assert info["flops_ratio"] <= 0.5 + 1e-12
    assert len(set(seen[:, FEATURES.index("budget")].tolist())) == 3  # budgets were drawn


def test_agents_train_on_vectors() -> None:
    vec_env = VecMonitor(AsVecEnv(helped_vector(PruneEnv, task(), 4)))
    PPO("MlpPolicy", vec_env, n_steps=4, batch_size=16, gamma=1.0, seed=0).learn(32)
    best = vec_env.get_attr("best")[0]
    assert best.plan.levels.keys() == {group.name for group in task().groups}
    masked = AsVecEnv(DiscreteVectorEnv(task(), 4))
    MaskablePPO("MlpPolicy", masked, n_steps=4, batch_size=16, gamma=1.0, seed=0).learn(32)
    assert get_action_masks(masked).shape == (4, 21)
    assert masked.env_method("action_masks", indices=[2])[0].shape == (21,)
    with pytest.raises(AttributeError, match="has no 'nothing'"):
        masked.get_attr("nothing")
