"""MaskablePPO of sb3-contrib on levels: `python -m agents.examples.maskable_ppo`.

The environment's `action_masks()` says which levels keep the budget within reach.
"""

from __future__ import annotations

import gymnasium
from sb3_contrib import MaskablePPO

from prune_env.mdp.best import Best


def main(task: str = "digits", steps: int = 4000, seed: int = 0) -> Best:
    """Learn to choose a level for every group, of those that may be chosen."""
    env = gymnasium.make("PruneEnv/Discrete-v0", task=task)
    rollout = 8 * env.unwrapped.task.length  # type: ignore[attr-defined]
    model = MaskablePPO("MlpPolicy", env, gamma=1.0, n_steps=rollout, batch_size=rollout, seed=seed)
    model.learn(steps)
    best: Best = env.unwrapped.best  # type: ignore[attr-defined]
    return best


if __name__ == "__main__":
    print(main())
