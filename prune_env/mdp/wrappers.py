"""What helps any agent in the environments, as wrappers to be stacked or left out.

env = PruneEnv("digits", budgets=(0.3, 0.7))  # one policy, many budgets
env = ShapedReward(env)                       # pays every step what it changes
env = ResidualAction(env)                     # 0 is what the prior would do
env = StandardObservation(env)                # mean 0, spread 1 along the prior's plan

The same names for vector environments are in `prune_env.mdp.vector_wrappers`; the arithmetic of
both is in `prune_env.mdp.transforms`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import RecordConstructorArgs

from prune_env.errors import ConfigError
from prune_env.mdp.env import Array, PlanningEnv
from prune_env.mdp.losses import expected_worth
from prune_env.mdp.shapes import numbers
from prune_env.mdp.transforms import LIMIT, Credit, Potential


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

    Potential-based shaping, see `prune_env.mdp.transforms.Credit`: the rewards of an episode sum to
    the plan's reward minus the potential at the start. Under one budget the latter is a constant,
    so the order of plans, and with it the best one, is the same as without; but a group that costs
    much is known for it at once, not at the end.

    Args:
        env: a `PruneEnv`, `PlanEnv` or `DiscreteEnv`, wrapped or not.
        potential: of whole plans, from kept units (N, G) to (N,); by default what the predicted
            losses say, from -1 to 0 (`prune_env.mdp.losses.expected_worth`).

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
        self._credit = Credit.begin(np.zeros(1))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Note the potential of the prior's own plan."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._credit = Credit.begin(self._potential(self._planning.episodes.completed_NG))
        return observation, info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide, and be paid at once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            paid_1 = self._credit.end(np.array([reward]))
        else:
            completed_1G = self._planning.episodes.completed_NG
            paid_1, self._credit = self._credit.step(self._potential(completed_1G))
        return observation, float(paid_1[0]), terminated, truncated, info


class StandardObservation(gymnasium.ObservationWrapper[Array, Array, Array], RecordConstructorArgs):
    """Observations less their mean, in units of their spread along the prior's plan.

    Groups differ by little in most features, so that a network sees next to no difference between
    them otherwise. Nothing is learned on the way (as `NormalizeObservation` does): see
    `prune_env.mdp.transforms.Standard`.

    Args:
        env: an environment of ours, wrapped or not.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, env: gymnasium.Env[Array, Array]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ObservationWrapper.__init__(self, env)
        planning = planning_env(env)
        self._standard = planning.shape.standard(planning.task)
        self.observation_space = Box(-LIMIT, LIMIT, env.observation_space.shape, np.float32)

    def observation(self, observation: Array) -> Array:
        """As an agent sees it."""
        return self._standard(observation)


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
