"""Agents from stable-baselines3 and sb3-contrib as searchers.

    ledger --prior--> path --lanes--> N episodes in lockstep --payment--> worths --SB3--> policy

The plans of the prior are measured first, the deterministic policy's plan last; what lies between
is spent by the payment (see payments.py).
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

from prune_env import Ledger
from prune_env.agents.lanes import HELP, Array, Help, lanes, plans_of
from prune_env.agents.payments import PRACTICE, Measured, Payment, Practice, Practised
from prune_env.agents.policy import POLICY, read_policy, rebuilt, write_policy
from prune_env.agents.settings import LANES, lanes_of, settings
from prune_env.errors import ConfigError
from prune_env.mdp.env import PlanEnv, PlanningEnv, PruneEnv
from prune_env.mdp.evaluator import Kept
from prune_env.mdp.path import Path
from prune_env.mdp.rules import Floats, as_kept
from prune_env.mdp.task import PruningTask
from prune_env.mdp.vector import Draw
from prune_env.search.allocators import best_prior
from prune_env.search.neighbours import SPREAD

CHECKPOINTS = 10
"""Policies saved in the course of a search."""


@dataclass(frozen=True)
class Agent:
    """An algorithm of SB3, and the environment that it learns on."""

    algorithm: type[BaseAlgorithm]
    env: type[PlanningEnv] = PruneEnv


AGENTS: dict[str, Agent] = {
    "ppo": Agent(sb3.PPO),
    "a2c": Agent(sb3.A2C),
    "sac": Agent(sb3.SAC),
    "td3": Agent(sb3.TD3),
    "ddpg": Agent(sb3.DDPG),
    "tqc": Agent(sb3_contrib.TQC),
    "ppo_plan": Agent(sb3.PPO, PlanEnv),
}


@dataclass(frozen=True)
class Course:
    """How an agent is helped to learn from few evaluations; every field is a value to replace.

    Attributes:
        prior: measures what it needs and gives the path that offsets start from.
        practice: on a surrogate, or None: every plan is measured.
        help: how steps and plans are paid.
        lanes: episodes in lockstep; 0: as many as suit the agent, see agents/settings.py.
        budgets: makes the draw of budgets from the search's seed; None is the task's budget.
        policy: a saved policy to go on from.
        finals: budgets of the deterministic policy's plans, measured last; none: the task's alone.
    """

    prior: Callable[[Ledger], Path] = best_prior
    practice: Practice | None = PRACTICE
    help: Help = HELP
    lanes: int = 0
    budgets: Callable[[int], Draw] | None = None
    policy: FilePath | None = None
    finals: tuple[float, ...] = ()


COURSE = Course()


def learn(name: str, ledger: Ledger, seed: int, course: Course = COURSE) -> None:
    """Train the agent `name` within the ledger's limit, then measure what it learned.

    The prior's plans are measured first and the deterministic policy's plan last. With a folder,
    the policy is written there, ten times on the way and at the end. The random states of the
    process are left as they were.
    """
    kind, finals = AGENTS[name], course.finals or (ledger.task.budget,)
    course = replace(course, lanes=course.lanes or lanes_of(name, ledger.task.length))
    task = ledger.task.around(course.prior(ledger))
    payment = _payment(ledger, course, seed)
    budgets = course.budgets(seed) if course.budgets else None
    env = lanes(task, payment, course.lanes, kind.env, course.help, budgets)
    steps = (task.length if kind.env is PruneEnv else 1) * course.lanes
    with private_randomness():
        agent = _agent(name, env, task.length, seed, course)
        agent.set_logger(Logger(None, [_Figures(ledger)]))
        with ledger.reserved(len(finals)):
            while ledger.left > 0:  # the first round ends it, unless plans are given up early
                agent.learn(
                    steps * _groups(ledger.left, course), callback=_Checkpoints(name, ledger),
                    log_interval=1, reset_num_timesteps=False,
                )  # fmt: skip
        _save(name, agent, ledger)
        ledger.measure(plan_by(agent, task, kind.env, budget) for budget in finals)


def _payment(ledger: Ledger, course: Course, seed: int) -> Payment:
    if course.practice is None:
        return Measured(ledger)
    return Practised(ledger, course.practice, seed)


def _agent(name: str, env: VecEnv, length: int, seed: int, course: Course) -> BaseAlgorithm:
    kind, chosen = AGENTS[name], settings(name, length, course.lanes)
    if course.policy is not None:
        return load_policy(name, course.policy, env, seed, **chosen)
    agent = kind.algorithm("MlpPolicy", env, seed=seed, device="cpu", **chosen)  # type: ignore[call-arg]
    _start_at_prior(agent)
    return agent


def _start_at_prior(agent: BaseAlgorithm) -> None:
    """Make an off-policy actor's first action 0, with the spread of PPO's; PPO starts so itself."""
    actor: Any = getattr(agent.policy, "actor", None)
    for name, bias in (("mu", 0.0), ("log_std", math.log(SPREAD))):
        part = getattr(actor, name, None)
        layers = [m for m in part.modules() if isinstance(m, torch.nn.Linear)] if part else []
        for layer in layers[-1:]:
            with torch.no_grad():
                layer.weight.mul_(0.001)
                layer.bias.fill_(bias)
    target: Any = getattr(agent.policy, "actor_target", None)
    if target is not None:
        target.load_state_dict(actor.state_dict())


def load_policy(
    name: str, path: FilePath, env: VecEnv | None = None, seed: int | None = None, **chosen: Any
) -> BaseAlgorithm:
    """The agent `name` with a saved policy; `chosen` are its settings, if it is to learn.

    Raises:
        ConfigError: there is none in `path`, or it is of another agent or sees other features.
    """
    policy = read_policy(path)
    try:
        if policy.agent != name:
            raise ValueError(f"it is of '{policy.agent}'")
        chosen = chosen or settings(name, 1, LANES)
        return rebuilt(policy, AGENTS[name].algorithm, env, seed, chosen)
    except (ValueError, RuntimeError, KeyError, AssertionError) as error:
        raise ConfigError(
            f"'{path}' holds no policy of '{name}' for this task: {error}. Give the policy of a "
            "search by the same agent; those that decide whole plans fit one network only."
        ) from error


def _groups(left: float, course: Course) -> int:
    """Groups of finished plans until nothing is left to spend, for schedules of learning."""
    if course.practice is None:
        return math.ceil(left / course.lanes)
    rounds = math.ceil(left / course.practice.measured)
    return rounds * (course.practice.rehearsals + 1)


def plan_by(
    agent: BaseAlgorithm, task: PruningTask, kind: type[PlanningEnv], budget: float
) -> Kept:
    """The plan of the deterministic policy under a budget."""

    def act(seen: Array) -> Floats:
        action, _ = agent.predict(seen, deterministic=True)
        return action.astype(np.float64)

    return as_kept(plans_of(task, kind, act, np.array([budget]))[0])


class _Checkpoints(BaseCallback):
    """Keeps the policy safe; the search itself resumes from the ledger's journal."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        super().__init__()
        self._name, self._ledger, self._saved = name, ledger, 0

    def _on_step(self) -> bool:
        part = int(CHECKPOINTS * self._ledger.charged // self._ledger.limit)
        if part > self._saved:
            self._saved = part
            _save(self._name, self.model, self._ledger)
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


def _save(name: str, agent: BaseAlgorithm, ledger: Ledger) -> None:
    if ledger.folder is not None:
        write_policy(ledger.folder / POLICY, name, agent)


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
