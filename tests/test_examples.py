"""Other people's agents train on the shipped ids and end with the best plan."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import stable_baselines3
import yaml

from prune_env.mdp.best import Best

FOLDER = Path(__file__).parents[1] / "agents" / "examples"
SIZES: dict[str, dict[str, int]] = {
    "sb3_ppo": {"steps": 64}, "sb3_sac": {"steps": 30}, "sb3_dqn": {"steps": 120},
    "maskable_ppo": {"steps": 64}, "contrib_tqc": {"steps": 60},
    "cleanrl_ppo": {"rounds": 3, "envs": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_an_example_ends_with_its_best_plan(name: str) -> None:
    module = importlib.import_module(f"prune_env.agents.examples.{name}")
    best = module.main(task="toy", **SIZES[name])
    assert isinstance(best, Best)
    assert best.task.within_budget(best.outcome.kept)
    assert best.plan.kept.keys() == {group.name for group in best.task.groups}
    assert len(Path(module.__file__).read_text().splitlines()) < 80


def hyperparameters() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "rl_zoo3_ppo.yml").read_text())
    return found


@pytest.mark.parametrize("name", hyperparameters())
def test_the_hyperparameters_of_rl_zoo3_train(name: str) -> None:
    """As rl-zoo3 reads them: what is left after its own keys goes to the algorithm."""
    chosen = dict(hyperparameters()[name])
    wrappers, steps = chosen.pop("env_wrapper"), chosen.pop("n_timesteps")
    env = inner = gymnasium.make(name, task="toy")
    for path in wrappers:
        module, _, kind = path.rpartition(".")
        env = getattr(importlib.import_module(module), kind)(env)
    assert steps > 0
    model = stable_baselines3.PPO(chosen.pop("policy"), env, seed=0, **chosen)
    model.learn(64)
    assert isinstance(inner.unwrapped.best, Best)  # type: ignore[attr-defined]
