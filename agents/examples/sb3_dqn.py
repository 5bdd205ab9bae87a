"""DQN of stable-baselines3 on levels: `python -m agents.examples.sb3_dqn`.

DQN knows no masks: a level that the budget forbids is read as the nearest below it.
"""

from __future__ import annotations

import gymnasium
from stable_baselines3 import DQN

from prune_env.mdp.best import Best
from prune_env.mdp.wrappers import ShapedReward


def main(task: str = "digits", steps: int = 4000, seed: int = 0) -> Best:
    """Learn to choose a level for every group."""
    env = gymnasium.make("PruneEnv/Discrete-v0", task=task)
    model = DQN("MlpPolicy", ShapedReward(env), gamma=1.0, learning_starts=100, seed=seed)
    model.learn(steps)
    best: Best = env.unwrapped.best  # type: ignore[attr-defined]
    return best


if __name__ == "__main__":
    print(main())
