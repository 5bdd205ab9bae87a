"""Settings of every agent, derived from the length of an episode G and the evaluations N.

SB3's defaults are made for millions of steps; a pruning search has a few hundred episodes. What
holds for all of them: gamma is 1, since only the finished plan is paid and when a group is decided
says nothing about its worth; two hidden layers of 64, since there are a dozen features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

Settings = dict[str, Any]


def ppo(length: int, evaluations: int) -> Settings:
    """Whole episodes per update, at least twelve updates, four minibatches where they fit.

    A rollout that cut an episode would see no reward for it. Actions start with a standard
    deviation of 0.37, within reach of every level but centred on the uniform plan. The rate falls,
    since the last policy is what counts: fast at first, settled at the end.
    """
    episodes = _episodes(evaluations)
    steps = length * episodes
    parts = next(m for m in (4, 2, 1) if episodes % m == 0 and (m == 1 or steps // m >= 8))
    return {
        "gamma": 1.0, "gae_lambda": 0.95, "n_steps": steps, "batch_size": steps // parts,
        "n_epochs": 10, "learning_rate": LinearSchedule(2e-3, 1e-4, 1.0),
        "ent_coef": 0.0, "policy_kwargs": _gaussian(),
    }  # fmt: skip


def ppo_plan(length: int, evaluations: int) -> Settings:
    """All groups in one action: a bandit, whose policy is little more than a mean per group.

    Steps are small against the number of groups, so that a plan stays near the ones measured; the
    rate is high, since a mean has to move by a few tenths within a few dozen updates.
    """
    episodes = _episodes(evaluations)
    return {
        "gamma": 1.0, "gae_lambda": 1.0, "n_steps": episodes, "batch_size": episodes,
        "n_epochs": 10, "learning_rate": LinearSchedule(1e-2, 2e-3, 1.0), "ent_coef": 0.0,
        "policy_kwargs": {"log_std_init": -1.2, "net_arch": []},
    }  # fmt: skip


def a2c(length: int, evaluations: int) -> Settings:
    """One gradient step per update: fewer episodes each, a larger rate, and Adam.

    With RMSprop, SB3's default, its last plan was no better than the uniform one (digits task,
    40 % of the MACs, 200 evaluations, two seeds).
    """
    episodes = min(4, _episodes(evaluations))
    return {
        "gamma": 1.0, "gae_lambda": 0.95, "n_steps": length * episodes, "learning_rate": 3e-3,
        "use_rms_prop": False, "normalize_advantage": True, "policy_kwargs": _gaussian(),
    }  # fmt: skip


def sac(length: int, evaluations: int) -> Settings:
    """The entropy bonus starts small beside a reward that is about 1 (see agents/view.py)."""
    return {**_off_policy(length, evaluations), "ent_coef": "auto_0.05"}


def tqc(length: int, evaluations: int) -> Settings:
    """As SAC, with a few quantiles: returns are deterministic but for the agent's own noise."""
    return {
        **sac(length, evaluations), "top_quantiles_to_drop_per_net": 2,
        "policy_kwargs": {"net_arch": [64, 64], "n_quantiles": 25},
    }  # fmt: skip


def td3(length: int, evaluations: int) -> Settings:
    """A deterministic policy explores by noise, and profits from calmer steps on larger batches."""
    return {
        **_off_policy(length, evaluations), "batch_size": 256, "learning_rate": 5e-4,
        "action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.25)),
    }  # fmt: skip


SETTINGS: dict[str, Callable[[int, int], Settings]] = {
    "ppo": ppo, "ppo_plan": ppo_plan, "a2c": a2c, "sac": sac, "td3": td3, "ddpg": td3, "tqc": tqc,
}  # fmt: skip


def settings(name: str, length: int, evaluations: int) -> Settings:
    """Keywords for SB3's class of the agent `name`.

    Args:
        name: a key of `SETTINGS`.
        length: steps of an episode, G.
        evaluations: finished plans that may be measured, N.
    """
    return SETTINGS[name](length, evaluations)


def _episodes(evaluations: int) -> int:
    """Episodes per update: at least twelve updates, 2 to 16 episodes, in fours if possible."""
    wanted = evaluations // 20
    return min(16, wanted // 4 * 4) if wanted >= 4 else max(2, min(4, evaluations // 12))


def _off_policy(length: int, evaluations: int) -> Settings:
    """Learn after every episode from all of them, the first tenth being random.

    The reward comes after G steps, too far for one-step bootstrapping to carry within a few
    hundred episodes (TD3 ended below the uniform plan): returns over G steps are the plan's reward
    itself.
    """
    steps = length * evaluations
    return {
        "gamma": 1.0, "n_steps": length, "buffer_size": max(1000, steps), "batch_size": 128,
        "learning_starts": max(length, steps // 10), "train_freq": (1, "episode"),
        "gradient_steps": min(2 * length, 60), "learning_rate": 1e-3, "tau": 0.02,
        "policy_kwargs": {"net_arch": [64, 64]},
    }  # fmt: skip


def _gaussian() -> Settings:
    return {"log_std_init": -1.0, "net_arch": [64, 64]}
