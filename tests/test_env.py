"""The Gymnasium shell: both conformance checks, registration, vectors, rendering, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, RescaleAction
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import prune_env
from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.env import CenteredAction, PlanEnv, PruneEnv
from prune_env.mdp.registry import TASKS, make_task, register_task
from prune_env.mdp.task import FEATURES, PruningTask
from prune_env.testing import toy_inputs, toy_model, toy_task

ID = "PruneEnv/Layerwise-v0"
IDS = sorted(name for name in gymnasium.registry if name.startswith("PruneEnv/"))
TERMINAL = {
    "asked", "taken", "accuracy", "kl", "loss", "flops_ratio", "params_ratio", "plan",
    "reward_terms",
}  # fmt: skip


def real_task(**options: Any) -> PruningTask:
    """A task on a toy network, for `package.module:function` names and direct use."""
    data = [(toy_inputs("residual", seed=n, batch=4), torch.arange(4)) for n in range(6)]
    return PruningTask.from_model(
        toy_model("residual"),
        data,
        calibration_samples=8,
        reward_samples=16,
        batch_size=4,
        **options,
    )


def action(sparsity: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([sparsity], dtype=np.float32)


def episode(env: gymnasium.Env[Any, Any], seed: int = 0) -> list[Any]:
    """Everything one episode of random actions gives back."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    seen: list[Any] = [observation.tolist(), info]
    done = False
    while not done:
        observation, reward, done, truncated, info = env.step(env.action_space.sample())
        seen += [observation.tolist(), reward, done, truncated, info]
    return seen


# A sparsity lies in [0, 1]; agents wrap, see CenteredAction.
@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")
@pytest.mark.parametrize("task", ["toy", "digits"])
@pytest.mark.parametrize("name", IDS)
def test_both_checkers_accept_every_registered_id(name: str, task: str) -> None:
    for mode in ("ansi", "rgb_array"):
        env = gymnasium.make(name, task=task, render_mode=mode)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)
        env.close()


def test_ids_are_registered() -> None:
    assert ID in IDS


def test_the_default_is_the_digits_task_at_half_the_cost() -> None:
    env = gymnasium.make(ID)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    assert (task.name, task.budget, task.on) == ("digits", 0.5, "macs")
    info = episode(env)[-1]
    assert 0.3 < info["flops_ratio"] <= 0.5
    assert info["accuracy"] > 0.2
    assert set(info) == TERMINAL


def test_a_fresh_process_needs_no_import() -> None:
    code = (
        "import gymnasium; env = gymnasium.make('prune_env:PruneEnv/Layerwise-v0', task='toy');"
        "env.reset(seed=0); print(sum(1 for _ in iter(lambda: env.step("
        "env.action_space.sample())[2], True)) + 1)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["4"], run.stderr


def test_the_spec_is_json() -> None:
    env = gymnasium.make(ID, task="toy", target=0.5, length=3)
    assert env.spec is not None
    again = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert json.loads(env.spec.to_json())["kwargs"]["length"] == 3
    assert again.make().unwrapped.task.length == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [toy_task, real_task])
def test_an_episode_is_one_step_per_group_paid_at_the_end(make: Any) -> None:
    task = make(budget=0.6)
    seen = episode(PruneEnv(task))
    rewards, dones, infos = seen[3::5], seen[4::5], seen[6::5]
    assert len(rewards) == task.length
    assert rewards[:-1] == [0.0] * (task.length - 1)
    assert dones == [False] * (task.length - 1) + [True]
    assert not any(seen[5::5])
    assert all(set(info) == {"asked", "taken"} for info in infos[:-1])
    last = infos[-1]
    assert set(last) == TERMINAL
    assert rewards[-1] == pytest.approx(sum(last["reward_terms"].values()))
    assert last["flops_ratio"] <= 0.6 + 1e-12
    assert list(last["plan"]) == [group.name for group in task.groups]
    assert json.loads(json.dumps(infos)) == infos


@pytest.mark.parametrize("make", [toy_task, real_task])
def test_one_seed_one_episode(make: Any) -> None:
    task = make(budget=0.6)
    assert episode(PruneEnv(task), 3) == episode(PruneEnv(task), 3)
    assert episode(PruneEnv(make(budget=0.6)), 3) == episode(PruneEnv(task), 3)
    assert episode(PruneEnv(task), 3) != episode(PruneEnv(task), 4)


def test_observations_are_not_one_reused_buffer() -> None:
    env = PruneEnv(toy_task())
    first, _ = env.reset()
    copied = first.copy()
    second = env.step(action(0.9))[0]
    assert first is not second
    assert (first == copied).all()


def test_the_plan_of_an_episode_can_be_applied() -> None:
    env = PruneEnv(real_task(budget=0.5))
    with pytest.raises(PruneEnvError, match="no plan before the last step"):
        _ = env.plan
    info = episode(env)[-1]
    assert env.plan.levels == info["plan"]
    assert env.plan.notes["reward"] == pytest.approx(sum(info["reward_terms"].values()))
    prune_env.compact(toy_model("residual"), env.plan)
    env.reset()
    with pytest.raises(PruneEnvError, match="no plan"):
        _ = env.plan


# ---- vectors


def test_a_cleanrl_style_loop_runs_in_step_with_same_step_autoreset() -> None:
    def thunk() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make(ID, task="toy", budget=0.6)
        return RescaleAction(RecordEpisodeStatistics(env), np.float32(-1), np.float32(1))

    envs = SyncVectorEnv([thunk] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.action_space.seed(0)
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (3, len(FEATURES))
    returns, plans = [], []
    for step in range(1, 13):
        observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        assert bool(terminated.all()) == (step % 4 == 0)
        assert not truncated.any()
        assert ("final_info" in infos) == bool(terminated.any())
        if "final_info" in infos:
            assert (observations[:, FEATURES.index("position")] == 0).all()  # begun again
            returns += infos["final_info"]["episode"]["r"].tolist()
            plans += infos["final_info"]["plan"]["layer0"].tolist()
            assert infos["final_info"]["episode"]["l"].tolist() == [4, 4, 4]
            assert infos["final_info"]["episode"]["r"].tolist() == pytest.approx(rewards.tolist())
    assert len(returns) == len(plans) == 9
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec(mode: str) -> None:
    envs = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=mode, task="toy")
    envs.reset(seed=0)
    for _ in range(5):
        envs.step(envs.action_space.sample())
    envs.close()


# ---- actions


@pytest.mark.parametrize("asked", [-3.0, 0.0, 0.25, 1.0, 7.0])
def test_actions_outside_the_box_are_clipped(asked: float) -> None:
    env = PruneEnv(toy_task())
    env.reset()
    info = env.step(action(asked))[4]
    assert info["asked"] == asked
    assert info["taken"] == pytest.approx(min(max(asked, 0.0), 1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_no_number_are_refused(value: float) -> None:
    env = PruneEnv(toy_task())
    env.reset()
    with pytest.raises(PruneEnvError, match=rf"the action is \[{value}\]"):
        env.step(action(value))
    env.step(action(0.5))  # nothing was lost


def test_steps_before_and_after_an_episode_are_refused() -> None:
    env = PruneEnv(toy_task(length=1))
    with pytest.raises(PruneEnvError, match=r"Call reset\(\) before step"):
        env.step(action(0.5))
    env.reset()
    assert env.step(action(0.5))[2]
    with pytest.raises(PruneEnvError, match=r"Call reset\(\) before step"):
        env.step(action(0.5))


@pytest.mark.parametrize("center", [0.1, 0.5, 0.8])
def test_the_middle_of_a_centred_action_is_the_center(center: float) -> None:
    env = CenteredAction(PruneEnv(toy_task()), center)
    assert env.action(action(-1)) == pytest.approx(0)
    assert env.action(action(0)) == pytest.approx(center)
    assert env.action(action(1)) == pytest.approx(1)
    values = [float(env.action(action(x))[0]) for x in np.linspace(-1, 1, 21)]
    assert values == sorted(values)
    env.reset()
    assert env.step(action(0))[4]["asked"] == pytest.approx(center)


# ---- rendering


def test_rendering_shows_every_group() -> None:
    task = real_task(budget=0.6)
    text, picture = PruneEnv(task, render_mode="ansi"), PruneEnv(task, render_mode="rgb_array")
    for env in (text, picture):
        assert env.render() is not None  # before reset, too
        env.reset()
    shape = picture.render().shape
    assert shape[2] == 3
    assert shape[0] % 2 == shape[1] % 2 == 0
    frames = [picture.render()]
    for number in range(task.length):
        lines = text.render().splitlines()
        assert len(lines) == task.length + 1
        assert lines[number].endswith("<- next")
        for env in (text, picture):
            env.step(action(0.4))
        frames.append(picture.render())
        assert frames[-1].dtype == np.uint8
        assert frames[-1].shape == shape
        assert (frames[-1] != frames[-2]).any()
    assert "next" not in text.render()
    assert "budget 60.0%" in text.render()
    assert PruneEnv(task).render() is None


# ---- names and options


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no task 'digit'\. Did you mean 'digits'"):
        gymnasium.make(ID, task="digit")
    with pytest.raises(ConfigError, match=r"no task 'zzz'\. Registered: digits, toy"):
        make_task("zzz")
    with pytest.raises(ConfigError, match="no task option 'bugdet'; did you mean 'budget'"):
        gymnasium.make(ID, task="toy", bugdet=0.5)
    with pytest.raises(ConfigError, match="no render mode 'human'; use 'ansi'"):
        PruneEnv(toy_task(), render_mode="human")
    with pytest.raises(ConfigError, match=r"options \['budget'\] have no effect on a finished"):
        PruneEnv(toy_task(), budget=0.5)


@pytest.mark.parametrize(
    "name", [":f", "json:", "nowhere_at_all:f", "json:nothing", "json:__name__", ":", "a..b:c"]
)
def test_factories_that_cannot_be_imported_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"task '.*'"):
        make_task(name)


def test_a_factory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from prune_env.testing import toy_task\n"
        "def make_task(**options):\n    return toy_task(length=2, **options)\n"
        "def wrong(**options):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = gymnasium.make(ID, task="mine:make_task", budget=0.7)
    assert env.unwrapped.task.length == 2  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="returned a int, not a PruningTask"):
        make_task("mine:wrong")
    monkeypatch.setattr("prune_env.mdp.registry.TASKS", dict(TASKS))
    register_task("mine", "mine:make_task")
    register_task("mine", "mine:make_task")
    assert make_task("mine").length == 2
    with pytest.raises(ConfigError, match="registered already"):
        register_task("mine", toy_task)


@pytest.mark.parametrize("seed", range(4))
def test_the_one_step_environment_decodes_and_measures_the_same_task(seed: int) -> None:
    task = real_task(budget=0.7)
    env = PlanEnv(task)
    asked = np.random.default_rng(seed).random(task.length).astype(np.float32)
    observation, _ = env.reset(seed=seed)
    assert observation.tolist() == pytest.approx([0.7])
    _, reward, done, truncated, info = env.step(asked)
    outcome = task.outcome(task.decode(asked.tolist()))
    assert (reward, done, truncated) == (outcome.reward, True, False)
    assert set(info) == TERMINAL
    assert env.plan.kept == task.plan(outcome.kept).kept
    assert [1 - k / g.units for k, g in zip(outcome.kept, task.groups, strict=True)] == info[
        "taken"
    ]
    with pytest.raises(PruneEnvError, match="Call reset"):
        env.step(asked)


@pytest.mark.parametrize(
    ("values", "says"),
    [([0.5], "holds 1 values; 4 are expected"), ([0.1, float("nan"), 0.2, 0.3], "nan")],
)
def test_the_one_step_environment_refuses_malformed_actions(values: list[float], says: str) -> None:
    env = PlanEnv(toy_task())
    env.reset()
    with pytest.raises(PruneEnvError, match=says):
        env.step(np.array(values, np.float32))
