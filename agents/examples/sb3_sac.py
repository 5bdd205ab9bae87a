"""SAC of stable-baselines3, all groups in one step: `python -m agents.examples.sb3_sac`."""

from __future__ import annotations

import gymnasium
from stable_baselines3 import SAC

from prune_env.mdp.best import Best
from prune_env.mdp.wrappers import ResidualAction


def main(task: str = "digits", steps: int = 300, seed: int = 0) -> Best:
    """Learn; one step is a whole plan, so it is measured at every step."""
    env = gymnasium.make("PruneEnv/Plan-v0", task=task)
    model = SAC("MlpPolicy", ResidualAction(env), gamma=1.0, learning_starts=20, seed=seed)
    model.learn(steps)
    best: Best = env.unwrapped.best  # type: ignore[attr-defined]
    return best


if __name__ == "__main__":
    print(main())
