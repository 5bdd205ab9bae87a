"""What a stable-baselines3 agent of one's own is told of pruning, and what it leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.logger import configure

from prune_env import PruningPlan
from prune_env.agents.prune_callback import PruneCallback
from prune_env.agents.vec_env import AsVecEnv

ID = "PruneEnv/Layerwise-v0"


def alone() -> Any:
    return gymnasium.make(ID, task="toy", budget=0.5)


def lockstep() -> Any:
    return AsVecEnv(gymnasium.make_vec(ID, num_envs=4, task="toy", budget=0.5))


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "agent", "settings"),
    [
        (alone, PPO, {"n_steps": 8, "batch_size": 8}),
        (lockstep, PPO, {"n_steps": 8, "batch_size": 8}),
        (alone, SAC, {"learning_starts": 4, "batch_size": 4}),
    ],
    ids=["ppo", "lockstep", "sac"],
)
def test_the_log_has_quality_and_cost_and_the_folder_the_best_plan(
    make: Any, agent: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    env, callback = make(), PruneCallback(tmp_path / "best")
    model = agent("MlpPolicy", env, gamma=1.0, seed=0, **settings)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, callback=callback, log_interval=1)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    seen = [row for row in rows if "prune/flops_ratio" in row]
    assert seen
    assert all(0 < row["prune/flops_ratio"] <= 0.5 for row in seen)
    assert all({"prune/accuracy", "prune/divergence"} <= set(row) for row in seen)
    best = [row["prune/best_reward"] for row in seen]
    assert best == sorted(best)
    assert callback.best is not None
    assert callback.best.outcome.reward == pytest.approx(best[-1], abs=1e-6)
    assert PruningPlan.load(tmp_path / "best" / "plan.json") == callback.best.plan


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = PruneCallback()
    PPO("MlpPolicy", alone(), n_steps=8, batch_size=8).learn(16, callback=callback)
    assert callback.best is not None
    assert list(tmp_path.iterdir()) == []
