"""Both checkers of environments, run on ours: what must be accepted before anything trains."""

from __future__ import annotations

import warnings

import gymnasium
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from prune_env.mdp.env import PruneEnv

ID = "PruneEnv/Layerwise-v0"


def check_environments() -> str:
    """What both accepted.

    Raises:
        Exception: whatever one of them complains of.
    """
    env = gymnasium.make(ID, task="toy").unwrapped
    assert isinstance(env, PruneEnv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sparsity lies in [0, 1]: agents wrap the environment
        check_env(env, skip_render_check=True)
        check_env_sb3(env)
    return f"gymnasium's and stable-baselines3's accept {ID}"
