"""Agents from stable-baselines3 and sb3-contrib as searchers.

The first evaluation is the uniform plan, which rewards are measured from; the last one is spent on
the deterministic policy that was learned. What lies between is one evaluation per episode.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor

from agents.settings import settings
from agents.view import Account, Walk, Whole, make_view
from prune_env import Ledger
from prune_env.mdp.ledger import Exhausted
from prune_env.storage import write_bytes

POLICY = "policy.zip"
CHECKPOINTS = 10
"""Policies saved in the course of a search."""


@dataclass(frozen=True)
class Agent:
    """An algorithm of SB3, the shape of the task it sees, and its settings."""

    algorithm: type[BaseAlgorithm]
    view: type[Walk] | type[Whole] = Walk


AGENTS: dict[str, Agent] = {
    "ppo": Agent(sb3.PPO),
    "a2c": Agent(sb3.A2C),
    "sac": Agent(sb3.SAC),
    "td3": Agent(sb3.TD3),
    "ddpg": Agent(sb3.DDPG),
    "tqc": Agent(sb3_contrib.TQC),
    "ppo_plan": Agent(sb3.PPO, Whole),
}


def learn(name: str, ledger: Ledger, seed: int) -> None:
    """Train the agent `name` within the ledger's limit, then measure what it learned.

    With a folder, the policy is written to `policy.zip` there, ten times on the way and at the
    end. The random states of the process are left as they were.
    """
    account, agent_kind = Account(ledger, reserve=1), AGENTS[name]
    env = make_view(agent_kind.view, account)
    steps = ledger.task.length if agent_kind.view is Walk else 1
    chosen = settings(name, ledger.task.length, ledger.limit)
    with private_randomness():
        agent = agent_kind.algorithm("MlpPolicy", env, seed=seed, device="cpu", **chosen)  # type: ignore[call-arg]
        agent.set_logger(Logger(None, [_Figures(ledger)]))
        with contextlib.suppress(Exhausted):  # the last rollout may not fit
            # Plans given up early leave more to spend than one round of learning foresees.
            while (episodes := math.ceil(account.left)) > 0:
                agent.learn(
                    steps * episodes, callback=_Checkpoints(ledger), log_interval=1,
                    reset_num_timesteps=False,
                )  # fmt: skip
        account.reserve = 0
        _save(agent, ledger)
        walk(agent, env)


def walk(agent: BaseAlgorithm, env: Monitor) -> None:
    """One episode of the deterministic policy."""
    observation, _ = env.reset()
    done = False
    while not done:
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, done, _, _ = env.step(action)


class _Checkpoints(BaseCallback):
    """Keeps the policy safe; the search itself resumes from the ledger's journal."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger, self._saved = ledger, 0

    def _on_step(self) -> bool:
        part = int(CHECKPOINTS * self._ledger.charged // self._ledger.limit)
        if part > self._saved:
            self._saved = part
            _save(self.model, self._ledger)
        return True


class _Figures(KVWriter):
    """Hands SB3's own scalars to whoever listens to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self._ledger.figures.update(_losses(key_values))

    def close(self) -> None:
        """Nothing is open."""


def _losses(values: Mapping[str, Any]) -> dict[str, float]:
    """What training says of itself; episodes and times are logged elsewhere."""
    found = {key: value for key, value in values.items() if key.startswith("train/")}
    return {key.removeprefix("train/"): float(value) for key, value in found.items()}


def _save(agent: BaseAlgorithm, ledger: Ledger) -> None:
    if ledger.folder is not None:
        buffer = io.BytesIO()
        agent.save(buffer)
        write_bytes(ledger.folder / POLICY, buffer.getvalue())


@contextlib.contextmanager
def private_randomness() -> Iterator[None]:
    """SB3 seeds the generators of the whole process; this puts them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


ppo = partial(learn, "ppo")
a2c = partial(learn, "a2c")
sac = partial(learn, "sac")
td3 = partial(learn, "td3")
ddpg = partial(learn, "ddpg")
tqc = partial(learn, "tqc")
ppo_plan = partial(learn, "ppo_plan")
