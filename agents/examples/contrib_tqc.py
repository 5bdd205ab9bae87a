"""TQC of sb3-contrib, group by group, many budgets: `python -m agents.examples.contrib_tqc`."""

from __future__ import annotations

import gymnasium
from sb3_contrib import TQC

from prune_env.mdp.best import Best
from prune_env.mdp.wrappers import ResidualAction, ShapedReward


def main(task: str = "digits", steps: int = 2000, seed: int = 0) -> Best:
    """Learn one policy for budgets from 40 to 70 %; the best plan of any of them."""
    env = gymnasium.make("PruneEnv/Layerwise-v0", task=task, budgets=(0.4, 0.7))
    shaped = ResidualAction(ShapedReward(env))
    model = TQC("MlpPolicy", shaped, gamma=1.0, learning_starts=50, seed=seed)
    model.learn(steps)
    best: Best = env.unwrapped.best  # type: ignore[attr-defined]
    return best


if __name__ == "__main__":
    print(main())
