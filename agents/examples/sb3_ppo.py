"""PPO of stable-baselines3, group by group: `python -m agents.examples.sb3_ppo`."""

from __future__ import annotations

import gymnasium
from stable_baselines3 import PPO

from prune_env.mdp.best import Best
from prune_env.mdp.wrappers import ResidualAction, ShapedReward


def main(task: str = "digits", steps: int = 4000, seed: int = 0) -> Best:
    """Learn with actions around the prior and a reward for every step; the best plan."""
    env = gymnasium.make("PruneEnv/Layerwise-v0", task=task)
    length = env.unwrapped.task.length  # type: ignore[attr-defined]
    shaped = ResidualAction(ShapedReward(env))
    rollout = 8 * length
    model = PPO("MlpPolicy", shaped, gamma=1.0, n_steps=rollout, batch_size=rollout, seed=seed)
    model.learn(steps)
    best: Best = env.unwrapped.best  # type: ignore[attr-defined]
    return best


if __name__ == "__main__":
    print(main())
