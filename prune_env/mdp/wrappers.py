"""What helps any agent in the environments, as wrappers to be stacked or left out.

env = PruneEnv("digits", budgets=(0.3, 0.7))  # one policy, many budgets
env = ShapedReward(env)                       # pays every step what it changes
env = ResidualAction(env)                     # 0 is what the prior would do
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import RecordConstructorArgs

from prune_env.errors import ConfigError
from prune_env.mdp.env import Array, PlanningEnv
from prune_env.mdp.losses import expected_worth
from prune_env.mdp.shapes import numbers
from prune_env.mdp.task import Kept

Potential = Callable[[Kept], float]
"""What a whole plan is worth before it is measured."""


class ResidualAction(gymnasium.ActionWrapper[Array, Array, Array], RecordConstructorArgs):
    """Actions in [-1, 1] around the prior: 0 is the sparsity that the task's path asks for.

    Actions are offsets in octaves of kept units: x multiplies what the prior would keep by 2^(-3x)
    (`prune_env.mdp.path.beside`), so -1/3 keeps twice as much, 1/3 half, and 0 leaves the decision
    to the allocator behind the path. An untrained policy, whose actions lie around 0, is thus about
    as good as that allocator. What the prior removes to the last unit no offset brings back.

    Args:
        env: a `PruneEnv` or `PlanEnv`, wrapped or not, with sparsities as actions.

    Raises:
        ConfigError: it is no environment of ours, or its actions are levels.
    """

    def __init__(self, env: gymnasium.Env[Array, Array]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ActionWrapper.__init__(self, env)
        self._planning = planning_env(env)
        require_sparsities(env.action_space)
        self.action_space = Box(-1.0, 1.0, env.action_space.shape, np.float32)

    def action(self, action: Array) -> Any:
        """The sparsities beside the prior's.

        Raises:
            PruneEnvError: the action is malformed, or the episode is over.
        """
        episodes = self._planning.episodes
        offset_1A = np.clip(numbers(action, episodes.width), -1.0, 1.0)[None]
        return episodes.beside(offset_1A)[0]


class ShapedReward(gymnasium.Wrapper[Array, Array, Array, Array], RecordConstructorArgs):
    """Pays every step what it changes about the potential of the plan the prior would complete.

    Potential-based shaping (Ng, Harada, Russell 1999) with gamma 1 and a terminal potential of 0:
    the rewards of an episode sum to the plan's reward minus the potential at the start. Under one
    budget the latter is a constant, so the order of plans, and with it the best one, is the same
    as without; but a group that costs much is known for it at once, not at the end.

    Args:
        env: a `PruneEnv` or `PlanEnv`, wrapped or not.
        potential: of a whole plan; by default what the predicted losses say, from -1 to 0
            (`prune_env.mdp.losses.expected_worth`).

    Raises:
        ConfigError: it is no environment of ours.
    """

    def __init__(
        self, env: gymnasium.Env[Array, Array], potential: Potential | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, potential=potential, _disable_deepcopy=True)
        gymnasium.Wrapper.__init__(self, env)
        self._planning = planning_env(env)
        self._potential = potential or expected_worth(self._planning.task)
        self._before = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Note the potential of the prior's own plan."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = self._potential(self._planning.completed)
        return observation, info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide, and be paid at once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        now = 0.0 if terminated else self._potential(self._planning.completed)
        paid, self._before = float(reward) + now - self._before, now
        return observation, paid, terminated, truncated, info


def planning_env(env: gymnasium.Env[Array, Array]) -> PlanningEnv:
    """The environment of ours beneath wrappers.

    Raises:
        ConfigError: there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, PlanningEnv):
        raise ConfigError(
            f"{type(inner).__name__} has no prior. Wrap a PruneEnv or a PlanEnv; in a vector of "
            "environments wrap each."
        )
    return inner


def require_sparsities(space: gymnasium.Space[Any]) -> None:
    """Check that actions are sparsities.

    Raises:
        ConfigError: they are not.
    """
    if not isinstance(space, Box):
        raise ConfigError(
            f"ResidualAction needs sparsities as actions; these are {space}. Wrap "
            "PruneEnv/Layerwise-v0 or PruneEnv/Plan-v0."
        )
