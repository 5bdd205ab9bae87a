"""A trained policy as a file: weights and a few numbers, never code.

What stable-baselines3 saves holds pickled objects, which run whatever they like when they are read.
Here an agent is built anew from its name and its settings, and takes up the weights of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from prune_env.agents.settings import LANES
from prune_env.errors import ConfigError, RunError
from prune_env.mdp.transforms import LIMIT
from prune_env.storage import load_described, parse, save_tensors

POLICY = "policy.safetensors"
FACTS = "policy"
ZIP = b"PK"
ADAM = {"step", "exp_avg", "exp_avg_sq"}
"""What the optimiser of every agent keeps for a parameter."""
CURE = "Give the policy.safetensors of a search by the same agent."


@dataclass(frozen=True)
class Policy:
    """What a file of a policy holds.

    Attributes:
        agent: whose it is, a key of `AGENTS`.
        seen, acted: how many numbers it observes and decides.
        steps, updates: how long it learned, for schedules that go on.
        weights: of its networks, its optimisers and its variables, by "part/name".
    """

    agent: str
    seen: int
    acted: int
    steps: int
    updates: int
    weights: Mapping[str, Tensor] = field(repr=False)


def write_policy(path: Path, name: str, agent: BaseAlgorithm) -> None:
    """Keep the policy of the agent called `name`.

    Raises:
        RunError: the file cannot be written.
    """
    seen, acted = agent.observation_space.shape, agent.action_space.shape
    assert seen is not None
    assert acted is not None
    facts = {
        "agent": name, "seen": seen[0], "acted": acted[0], "steps": agent.num_timesteps,
        "updates": agent._n_updates,
    }  # fmt: skip
    save_tensors(path, _weights(agent), {FACTS: json.dumps(facts)})


def read_policy(path: Path) -> Policy:
    """The policy in a file; nothing of it is run.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        _refuse_zip(path)
        weights, described = load_described(path)
        policy = Policy(**parse(described.get(FACTS, "")), weights=weights)
        _check(policy)
    except (OSError, ValueError, TypeError, RunError) as error:
        said = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigError(f"'{path}' holds no policy: {said}. {CURE}") from error
    return policy


def _refuse_zip(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            raise ValueError(
                "it is a zip of stable-baselines3, which runs code when it is read. Search again: "
                f"a policy is kept as {POLICY} now"
            )


def _check(policy: Policy) -> None:
    """Raise a ValueError where the facts cannot be those of the weights."""
    numbers = (policy.seen, policy.acted, policy.steps, policy.updates)
    if not isinstance(policy.agent, str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("its facts are not an agent's name and whole numbers")
    size = sum(value.numel() for value in policy.weights.values())
    if not 1 <= max(policy.seen, policy.acted) <= size:
        raise ValueError(f"{size} weights for {policy.seen} numbers seen, {policy.acted} decided")
    plain = (value for value in policy.weights.values() if value.dtype == torch.float32)
    if sum(bool(torch.isfinite(value).all()) for value in plain) < len(policy.weights):
        raise ValueError("it has weights that are not finite float32")


def rebuilt(
    policy: Policy,
    algorithm: type[BaseAlgorithm],
    env: VecEnv | None,
    seed: int | None,
    chosen: Mapping[str, Any],
) -> BaseAlgorithm:
    """An agent with `chosen` settings that goes on from a policy; without `env` it only decides.

    Raises:
        ValueError, RuntimeError: the policy does not fit the algorithm, or the environment.
    """
    alike = DummyVecEnv([partial(_Unplayed, policy)] * LANES)
    if env is not None:
        check_for_correct_spaces(env, alike.observation_space, alike.action_space)
    build: Any = algorithm  # SB3's base class does not say what all of its algorithms take
    agent: BaseAlgorithm = build("MlpPolicy", env or alike, seed=seed, device="cpu", **chosen)
    _take_up(agent, policy.weights)
    agent.num_timesteps, agent._n_updates = policy.steps, policy.updates
    return agent


class _Unplayed(gymnasium.Env[Any, Any]):
    """The spaces of what a policy was trained on."""

    def __init__(self, policy: Policy) -> None:
        self.observation_space = Box(-LIMIT, LIMIT, (policy.seen,), np.float32)
        self.action_space = Box(-1.0, 1.0, (policy.acted,), np.float32)


def _weights(agent: BaseAlgorithm) -> dict[str, Tensor]:
    """Every tensor that the agent has learned, by "part/name"."""
    _, variables = agent._get_torch_save_params()
    found = {f"{name}/": getattr(agent, name).detach() for name in variables}
    for part, content in agent.get_parameters().items():
        found |= {f"{part}/{name}": value for name, value in _flat(content).items()}
    return found


def _flat(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """A state dict of a network as it is, one of an optimiser with "number/name" for keys."""
    if "param_groups" not in content:
        return content
    states = content["state"].items()
    return {f"{number}/{name}": value for number, s in states for name, value in s.items()}


def _take_up(agent: Any, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a new agent: all of them, each where one of its shape belongs."""
    _, variables = agent._get_torch_save_params()
    wanted, parts = agent.get_parameters(), _by_part(weights)
    if strange := set(parts) - {*wanted, *variables}:
        raise ValueError(f"it has {', '.join(sorted(strange))}")
    for name in variables:
        getattr(agent, name).data.copy_(parts[name][""])
    for part, content in wanted.items():
        if "param_groups" in content:
            shapes = [p.shape for group in _of(agent, part).param_groups for p in group["params"]]
            content["state"] = _states(parts.get(part, {}), shapes)
        else:
            wanted[part] = parts.get(part, {})
    agent.set_parameters(wanted, exact_match=True, device="cpu")


def _of(agent: Any, part: str) -> Any:
    for name in part.split("."):
        agent = getattr(agent, name)
    return agent


def _by_part(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return parts


def _states(
    weights: Mapping[str, Tensor], shapes: list[torch.Size]
) -> dict[int, dict[str, Tensor]]:
    """An optimiser's state of each parameter; PyTorch itself would not look at the shapes."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in weights.items():
        number, _, name = key.partition("/")
        if not number.isdecimal() or int(number) >= len(shapes):
            raise ValueError(f"its optimiser has a state '{key}' of no parameter")
        if value.shape != (() if name == "step" else shapes[int(number)]):
            raise ValueError(f"its optimiser's state '{key}' has another shape")
        states.setdefault(int(number), {})[name] = value
    if any(set(state) != ADAM for state in states.values()):
        raise ValueError("its optimiser's states are not Adam's")
    return states
