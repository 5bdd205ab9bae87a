"""Settings of every agent, derived from the length of an episode G and the evaluations N.

SB3's defaults are made for millions of steps; a pruning search has a few hundred measured plans,
and some thousands that are practised. What holds for all of them: gamma is 1, since only the
finished plan counts and when a group is decided says nothing about its worth; two hidden layers of
64, since there are a dozen features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import LinearSchedule

from prune_env.search.acquisition import crowd
from prune_env.search.neighbours import SPREAD

LANES = 32
"""Episodes in lockstep."""

Settings = dict[str, Any]


def ppo(length: int, lanes: int) -> Settings:
    """One episode of every lane per update.

    The rate falls, since the last policy is what counts: fast at first, settled at the end.
    """
    steps = length * lanes
    return {
        "gamma": 1.0, "gae_lambda": 0.95, "n_steps": length, "batch_size": _batch(steps),
        "n_epochs": 4, "learning_rate": LinearSchedule(2e-3, 2e-4, 1.0), "ent_coef": 0.0,
        "policy_kwargs": _gaussian(),
    }  # fmt: skip


def ppo_plan(length: int, lanes: int) -> Settings:
    """All groups in one action: a bandit, whose policy is little more than a mean per group.

    With many groups each one's share in the worth of a plan is harder to see: first plans stray
    less from the prior, so that the whole of a plan strays as far, and the mean moves slower.
    """
    slower = 1.0 / math.sqrt(crowd(length))
    return {
        "gamma": 1.0, "gae_lambda": 1.0, "n_steps": 1, "batch_size": max(2, lanes),
        "n_epochs": 8, "ent_coef": 0.0,
        "learning_rate": LinearSchedule(2e-2 * slower, 4e-3 * slower, 1.0),
        "policy_kwargs": {"log_std_init": math.log(SPREAD * slower), "net_arch": []},
    }  # fmt: skip


def a2c(length: int, lanes: int) -> Settings:
    """One gradient step per update, a larger rate, and Adam."""
    return {
        "gamma": 1.0, "gae_lambda": 0.95, "n_steps": length, "learning_rate": 3e-3,
        "use_rms_prop": False, "normalize_advantage": True, "policy_kwargs": _gaussian(),
    }  # fmt: skip


def sac(length: int, lanes: int) -> Settings:
    """The entropy bonus starts small beside rewards that are about 1."""
    return {**_off_policy(length, lanes), "ent_coef": "auto_0.02"}


def tqc(length: int, lanes: int) -> Settings:
    """As SAC, with a few quantiles: returns are deterministic but for the agent's own noise."""
    return {
        **sac(length, lanes), "top_quantiles_to_drop_per_net": 2,
        "policy_kwargs": {"net_arch": [64, 64], "n_quantiles": 25},
    }  # fmt: skip


def td3(length: int, lanes: int) -> Settings:
    """A deterministic policy explores by noise, and profits from calmer steps."""
    noise = NormalActionNoise(np.zeros(1), np.full(1, SPREAD))
    return {
        **_off_policy(length, lanes), "learning_rate": 5e-4,
        "action_noise": VectorizedActionNoise(noise, lanes),
    }  # fmt: skip


SETTINGS: dict[str, Callable[[int, int], Settings]] = {
    "ppo": ppo, "ppo_plan": ppo_plan, "a2c": a2c, "sac": sac, "td3": td3, "ddpg": td3, "tqc": tqc,
}  # fmt: skip


def lanes_of(name: str, length: int) -> int:
    """Episodes in lockstep that suit an agent; more where whole plans have many groups."""
    return LANES * round(crowd(length)) if name == "ppo_plan" else LANES


def settings(name: str, length: int, lanes: int) -> Settings:
    """Keywords for SB3's class of the agent `name`.

    Args:
        name: a key of `SETTINGS`.
        length: steps of an episode, G.
        lanes: episodes in lockstep.
    """
    return SETTINGS[name](length, lanes)


def _batch(steps: int) -> int:
    """Four minibatches where they divide the steps."""
    return next((steps // m for m in (4, 2) if steps % m == 0 and steps // m >= 16), steps)


def _off_policy(length: int, lanes: int) -> Settings:
    """Learn once for every vector step, from what all lanes saw lately.

    Potential-based pay makes one-step bootstrapping work: what a decision is worth is paid at once.
    """
    return {
        "gamma": 1.0, "buffer_size": max(20_000, 40 * length * lanes), "batch_size": 256,
        "learning_starts": 0, "train_freq": (1, "step"), "gradient_steps": 1,
        "learning_rate": 2e-3, "tau": 0.02, "policy_kwargs": {"net_arch": [64, 64]},
    }  # fmt: skip


def _gaussian() -> Settings:
    return {"log_std_init": math.log(SPREAD), "net_arch": [64, 64]}
