"""The Gymnasium shells: conformance, registration, budgets, help for agents, bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, RescaleAction
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from toys import asked_of, tasks

import prune_env
from prune_env.errors import BudgetError, ConfigError, PruneEnvError
from prune_env.mdp.env import PlanEnv, PlanningEnv, PruneEnv
from prune_env.mdp.leftover import give_back, leave
from prune_env.mdp.losses import expected_losses, expected_worth
from prune_env.mdp.path import path_of
from prune_env.mdp.registry import TASKS, make_task, register_task
from prune_env.mdp.rules import Floats, Units
from prune_env.mdp.task import FEATURES, PruningTask, State
from prune_env.mdp.transforms import Potential
from prune_env.mdp.wrappers import ResidualAction, ShapedReward
from prune_env.testing import toy_inputs, toy_model, toy_task

ID = "PruneEnv/Layerwise-v0"
IDS = sorted(name for name in gymnasium.registry if name.startswith("PruneEnv/"))
TERMINAL = {
    "asked", "taken", "budget", "accuracy", "kl", "divergence", "loss", "flops_ratio",
    "params_ratio", "plan", "reward_terms",
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


# A sparsity lies in [0, 1]; agents wrap, see ResidualAction.
@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")
@pytest.mark.parametrize(("name", "task"), [(ID, "digits"), *((name, "toy") for name in IDS)])
def test_both_checkers_accept_every_registered_id(name: str, task: str) -> None:
    modes = (("ansi", None), ("rgb_array", [0.5, 0.9]))
    few = {"reward_samples": 64, "calibration_samples": 64} if task == "digits" else {}
    for mode, budgets in modes[task == "digits" :]:
        env = gymnasium.make(name, task=task, render_mode=mode, budgets=budgets, **few)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)
        env.close()


def test_ids_are_registered() -> None:
    assert ID in IDS


@pytest.mark.long
def test_the_default_is_the_digits_task_at_half_the_cost() -> None:
    env = gymnasium.make(ID)
    task = env.unwrapped.task  # type: ignore[attr-defined]
    assert (task.name, task.budget, task.on) == ("digits", 0.5, "macs")
    info = episode(env)[-1]
    assert 0.3 < info["flops_ratio"] <= 0.5
    assert info["accuracy"] > 0.2
    assert set(info) == TERMINAL


@pytest.mark.long
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


@pytest.mark.parametrize("make", [PruneEnv, PlanEnv])
def test_the_best_episode_is_kept(make: type[PlanningEnv]) -> None:
    """It ranks above all others, is the first of equals, and a reset does not lose it."""
    env = make(real_task(budget=0.9), budgets=(0.3, 0.9))
    with pytest.raises(PruneEnvError, match="no best plan before the last step"):
        _ = env.best
    outcomes, plans, budgets = [], [], []
    for seed in (*range(6), 0):  # the first once more
        episode(env, seed)
        assert env._outcome is not None
        outcomes.append(env._outcome)
        plans.append(env.plan)
        budgets.append(env.current.budget)
    env.reset()
    ranks = [outcome.rank for outcome in outcomes]
    first = ranks.index(max(ranks))
    assert env.best.outcome is outcomes[first]
    assert env.best.plan.kept == plans[first].kept
    assert env.best.plan.notes == plans[first].notes
    assert env.best.task.budget == budgets[first]
    again = prune_env.compact(toy_model("residual"), env.best.plan)
    assert sum(p.numel() for p in env.best.network().parameters()) == sum(
        p.numel() for p in again.parameters()
    )
    assert env.best.network()(toy_inputs("residual")).isfinite().all()
    assert len(repr(env.best)) < 200


@pytest.mark.long
def test_what_an_agent_found_is_at_hand_after_learning() -> None:
    """SB3 resets an environment when an episode ends, and wraps it."""
    env = gymnasium.make(ID, task="toy", budget=0.6)
    paid: list[float] = []
    inner: Any = env.unwrapped
    measure = inner.measure
    inner.measure = lambda kept: (outcome := measure(kept), paid.append(outcome.reward))[0]
    PPO("MlpPolicy", env, gamma=1.0, n_steps=16, batch_size=16, seed=0).learn(32)
    assert len(paid) == 8
    assert inner.best.outcome.reward == max(paid)


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


# ---- budgets


ENVS = [PruneEnv, PlanEnv]


def finished(env: gymnasium.Env[Any, Any], value: float = 0.5) -> dict[str, Any]:
    """Take one action until the episode under way is over; the last `info`."""
    assert env.action_space.shape is not None
    while True:
        *_, done, _, info = env.step(np.full(env.action_space.shape, value, np.float32))
        if done:
            return dict(info)


@pytest.mark.parametrize("make", ENVS)
def test_every_episode_draws_a_budget_and_meets_it(make: type[PlanningEnv]) -> None:
    task = toy_task(width=50, budget=0.9)
    env = make(task, budgets=(0.3, 0.7))
    found = []
    for episode_number in range(20):
        observation, first = env.reset(seed=5 if episode_number == 0 else None)
        assert env.observation_space.contains(observation)
        last = finished(env)
        assert set(first) == {"budget"}
        assert last["budget"] == first["budget"] == env.current.budget
        assert last["budget"] - 0.02 < last["flops_ratio"] <= last["budget"] + 1e-12
        assert env.plan.levels == last["plan"]
        found.append(last["budget"])
    assert env.task is task
    assert min(found) >= 0.3
    assert max(found) <= 0.7
    assert max(found) - min(found) > 0.2
    again = make(task, budgets=[0.3, 0.7])
    redrawn = [again.reset(seed=5 if n == 0 else None)[1]["budget"] for n in range(20)]
    assert redrawn == found


@pytest.mark.parametrize("make", ENVS)
def test_a_reset_may_name_the_budget(make: type[PlanningEnv]) -> None:
    for env in (make(toy_task(width=50)), make(toy_task(width=50), budgets=(0.5, 0.6))):
        observation, info = env.reset(options={"budget": 0.4})
        assert info == {"budget": 0.4}
        budget = observation[-1 if len(observation) == 1 else FEATURES.index("budget")]
        assert budget == pytest.approx(0.4)
        assert 0.38 < finished(env)["flops_ratio"] <= 0.4
        _, info = env.reset()
        assert 0.5 <= info["budget"] <= 1.0


@pytest.mark.parametrize("make", ENVS)
def test_an_episode_under_a_budget_is_one_of_the_task_at_it(make: type[PlanningEnv]) -> None:
    task = real_task(budget=0.8)
    env, other = make(task), make(real_task(budget=0.5))
    env.reset(options={"budget": 0.5})
    other.reset()
    assert finished(env, 0.3) == finished(other, 0.3)
    assert env.network().state_dict().keys() == other.network().state_dict().keys()
    assert env.plan.levels == other.plan.levels


def test_the_task_at_another_budget_shares_what_does_not_depend_on_it() -> None:
    task = real_task(budget=0.8)
    twin = task.at(0.5)
    assert (twin.rules, twin.path) == (task.rules, task.path)
    assert (twin.budget, task.budget, task.at(0.8)) == (0.5, 0.8, task)
    assert twin.uniform_sparsity > task.uniform_sparsity
    assert twin.decode([0.0] * 4) == replace(task, budget=0.5).decode([0.0] * 4)


def test_budgets_are_json() -> None:
    env = gymnasium.make(ID, task="toy", budgets=(0.3, 0.7))
    assert env.spec is not None
    again = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()).make()
    budgets = [e.reset(seed=1)[1]["budget"] for e in (env, again)]
    assert budgets[0] == budgets[1] != 1.0


@pytest.mark.parametrize("make", ENVS)
@pytest.mark.parametrize(
    ("budgets", "error", "says"),
    [
        ((0.7, 0.3), ConfigError, r"budgets are \(0.7, 0.3\); give the lowest and the highest"),
        ((0.3,), ConfigError, "give the lowest and the highest"),
        ((0.3, 0.5, 0.7), ConfigError, "give the lowest and the highest"),
        (0.3, ConfigError, "budgets are 0.3; give"),
        ("0.3", ConfigError, "budgets are '0.3'; give"),
        ((0.3, math.nan), ConfigError, "give the lowest and the highest"),
        ((0.3, 1.2), BudgetError, r"budget is 1.2; give a fraction of the dense cost in \(0, 1\]"),
        ((1e-6, 0.5), BudgetError, "cannot be reached.*Raise the budget"),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    make: type[PlanningEnv], budgets: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(toy_task(), budgets=budgets)


@pytest.mark.parametrize("make", ENVS)
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"budget": "half"}, ConfigError, "the budget is 'half'; give a fraction"),
        ({"budget": [0.3, 0.4]}, ConfigError, "give a fraction"),
        ({"budget": 1e-6}, BudgetError, "cannot be reached"),
        ({"budget": math.nan}, BudgetError, "give a fraction"),
        ({"bugdet": 0.4}, ConfigError, "reset has no option 'bugdet'; there is 'budget' alone"),
    ],
)
def test_options_of_reset_that_cannot_be_are_refused(
    make: type[PlanningEnv], options: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(toy_task()).reset(options=options)


# ---- help for agents


def test_without_an_offset_the_prior_decides() -> None:
    task = real_task(budget=0.6)
    env = ResidualAction(PruneEnv(task))
    env.reset()
    state = State()
    for _ in task.groups:
        prior = task.prior(state)
        assert env.unwrapped.prior.tolist() == [prior]  # type: ignore[attr-defined]
        info = env.step(action(0.0))[4]
        state = task.advance(state, prior)
        assert info["asked"] == pytest.approx(prior, abs=1e-7)
    assert tuple(info["plan"].values()) == state.kept


@given(data=st.data())
def test_without_an_offset_a_whole_plan_is_the_paths_own(data: st.DataObject) -> None:
    task = data.draw(tasks())
    inner = PlanEnv(task)
    env = ResidualAction(inner)
    env.reset()
    assert inner.prior.shape == env.action_space.shape
    info = env.step(np.zeros(task.length, np.float32))[4]
    assert tuple(info["plan"].values()) == task.beside([0.0] * task.length)


def test_a_third_is_an_octave_of_what_is_kept() -> None:
    task = toy_task(budget=0.6)
    env = ResidualAction(PruneEnv(task))
    prior = task.prior(State())
    for offset, factor in ((-1.0, 8.0), (-1 / 3, 2.0), (1 / 3, 0.5), (1.0, 0.125), (4.0, 0.125)):
        env.reset()
        asked = env.step(action(offset))[4]["asked"]
        assert 1 - asked == pytest.approx(min(1.0, (1 - prior) * factor), abs=1e-6)


@given(data=st.data())
def test_offsets_are_monotone_and_lead_to_sparsities(data: st.DataObject) -> None:
    env = ResidualAction(PruneEnv(data.draw(tasks())))
    env.reset()
    offsets = np.sort(data.draw(st.lists(st.floats(-2, 2), min_size=5, max_size=5)))
    found = np.array([env.action(action(x)) for x in offsets])
    assert (np.diff(found, axis=0) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


@given(data=st.data())
@settings(max_examples=50)
def test_offsets_of_a_whole_plan_are_shifted_along_the_path(data: st.DataObject) -> None:
    task = replace(data.draw(tasks()), leftover=data.draw(st.sampled_from([give_back, leave])))
    offset = (2 * np.array(data.draw(asked_of(task))) - 1).astype(np.float32)
    env = ResidualAction(PlanEnv(task))
    env.reset()
    info = env.step(offset)[4]
    assert tuple(info["plan"].values()) == task.beside(offset.astype(float).tolist())
    assert info["taken"] == info["asked"]


@pytest.mark.parametrize("make", ENVS)
def test_wrappers_pass_on_what_is_wrong(make: type[PlanningEnv]) -> None:
    env = ResidualAction(ShapedReward(make(toy_task(length=1))))
    with pytest.raises(PruneEnvError, match=r"Call reset\(\) before step"):
        env.step(action(0.0))
    env.reset()
    with pytest.raises(PruneEnvError, match=r"the action is \[inf\]"):
        env.step(action(math.inf))
    with pytest.raises(PruneEnvError, match="holds 2 values; 1 are expected"):
        env.step(np.zeros(2, np.float32))
    assert env.step(action(0.0))[2]
    with pytest.raises(PruneEnvError, match=r"Call reset\(\) before step"):
        env.step(action(0.0))
    for wrapper in (ResidualAction, ShapedReward):
        with pytest.raises(ConfigError, match=r"CartPoleEnv has no prior. Wrap a PruneEnv"):
            wrapper(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]


def test_wrapped_environments_are_conformant_and_json() -> None:
    env = ResidualAction(ShapedReward(gymnasium.make(ID, task="toy", budgets=(0.3, 0.7))))
    check_env_sb3(env)
    assert env.spec is not None
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert episode(spec.make(), 4) == episode(env, 4)


def walked(env: gymnasium.Env[Any, Any], asked: list[float]) -> tuple[list[float], float]:
    """Rewards of the steps of an episode, and that of its plan."""
    env.reset()
    steps = [env.step(action(sparsity)) for sparsity in asked]
    assert [done for _, _, done, _, _ in steps] == [False] * (len(asked) - 1) + [True]
    return [float(step[1]) for step in steps], sum(steps[-1][4]["reward_terms"].values())


def own_potential(kept_NG: Units) -> Floats:
    return (np.sqrt(kept_NG) * np.arange(1, kept_NG.shape[1] + 1)).sum(1)


def of_one(worth: Potential, kept: tuple[int, ...]) -> float:
    return float(worth(np.array([kept]))[0])


@pytest.mark.parametrize("potential", [None, own_potential])
@given(data=st.data())
def test_shaping_adds_a_constant_to_every_plan(data: st.DataObject, potential: Any) -> None:
    """Hence the order of plans stays what it is."""
    task = data.draw(tasks())
    env = ShapedReward(PruneEnv(task), potential)
    worth = potential or expected_worth(task)
    env.reset()
    start = of_one(worth, task.complete(State()))
    for _ in range(2):
        paid, reward = walked(env, data.draw(asked_of(task)))
        assert math.fsum(paid) == pytest.approx(reward - start, abs=1e-9)


def test_every_step_is_paid_what_it_changes() -> None:
    task = real_task(budget=0.6)
    env, worth, state = ShapedReward(PruneEnv(task)), expected_worth(task), State()
    env.reset()
    changes = []
    for sparsity in (0.9, 0.0, 0.5):
        after = task.advance(state, sparsity)
        change = of_one(worth, task.complete(after)) - of_one(worth, task.complete(state))
        assert env.step(action(sparsity))[1] == pytest.approx(change)
        changes.append(change)
        state = after
    assert any(changes)
    _, paid, _, _, info = env.step(action(0.5))
    reward = sum(info["reward_terms"].values())
    assert paid == pytest.approx(reward - of_one(worth, task.complete(state)))


def test_shaping_of_a_whole_plan_is_its_lead_over_the_prior() -> None:
    task = real_task(budget=0.6)
    env = ShapedReward(PlanEnv(task))
    env.reset(options={"budget": 0.7})
    start = of_one(expected_worth(task), task.at(0.7).beside([0.0] * 4))
    _, paid, *_, info = env.step(np.full(4, 0.5, np.float32))
    assert paid == pytest.approx(sum(info["reward_terms"].values()) - start)


@pytest.mark.parametrize("make", [toy_task, real_task])
def test_expected_worth_goes_from_minus_one_to_nothing_lost(make: Any) -> None:
    task = make()
    worth = expected_worth(task)
    assert of_one(worth, tuple(task.rules.most_G)) == pytest.approx(0.0, abs=1e-12)
    assert of_one(worth, tuple(task.rules.least_G)) == pytest.approx(-1.0)
    for group, loss_L in zip(task.groups, expected_losses(task), strict=True):
        assert loss_L.shape == (len(group.levels),)
        assert (loss_L >= 0).all()
        assert (np.diff(loss_L) <= 1e-12).all()


def test_expected_losses_are_the_predicted_ones_or_the_mass_of_scores() -> None:
    task = real_task()
    assert task.evaluator.predicted_loss is not None
    for group, loss_L in zip(task.groups, expected_losses(task), strict=True):
        for place in (0, len(group.levels) - 1):
            predicted = task.evaluator.predicted_loss(group.name, group.levels[place])
            assert loss_L[place] == pytest.approx(max(0.0, predicted))
    (loss_L,) = expected_losses(toy_task(length=1, width=4))  # scores 4, 3, 2, 1
    assert loss_L.tolist() == pytest.approx([1.0, 0.6, 0.3, 0.1, 0.0])


def test_the_prior_is_the_tasks() -> None:
    """Another path, another 0."""
    task = toy_task(budget=0.51, length=2)
    first = path_of(task.rules, [np.arange(20.0), 100 + np.arange(20.0)])
    env = PruneEnv(task.around(first))
    env.reset()
    assert env.prior == pytest.approx(1.0)
    assert env.completed == (0, 20)


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
    text.reset(options={"budget": 0.8})
    assert "budget 80.0%" in text.render()
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
