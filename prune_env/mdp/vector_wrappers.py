"""The wrappers of `prune_env.mdp.wrappers`, for vector environments.

envs = gymnasium.make_vec("PruneEnv/Layerwise-v0", num_envs=32)
envs = StandardObservation(ResidualAction(ShapedReward(envs)))

or, by name, `make_vec(..., num_envs=32, vector_wrappers=["ShapedReward", "ResidualAction"])`.
Gymnasium's own `make_vec(wrappers=...)` is for loops over single environments, which take those.

Legend: N episodes, A what an action holds, G groups, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Space
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prune_env.errors import ConfigError, look_up
from prune_env.mdp.losses import expected_worth
from prune_env.mdp.shapes import numbers
from prune_env.mdp.transforms import LIMIT, Credit, Potential, Standing, absolute
from prune_env.mdp.vector import (
    DiscreteVectorEnv,
    LockstepVectorEnv,
    PlanningVectorEnv,
    PlanVectorEnv,
)
from prune_env.mdp.wrappers import require_sparsities

Envs = VectorEnv[Any, Any, NDArray[Any]]
Step = tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class ResidualAction(VectorActionWrapper[Any, Any, Any, Any]):
    """Actions in [-1, 1] around the prior; see `prune_env.mdp.wrappers.ResidualAction`."""

    def __init__(self, env: Envs) -> None:
        super().__init__(env)
        self._planning = planning_envs(env)
        require_sparsities(env.single_action_space)
        self.single_action_space: Space[Any] = Box(
            -1.0, 1.0, env.single_action_space.shape, np.float32
        )
        self.action_space: Space[Any] = batch_space(self.single_action_space, env.num_envs)

    def actions(self, actions: Any) -> Any:
        """The sparsities, (N, A), beside the prior's.

        Raises:
            PruneEnvError: the actions are malformed, or nothing is begun.
        """
        episodes = self._planning.episodes
        shape = (self.num_envs, episodes.width)
        offset_NA = np.clip(numbers(actions, shape[0] * shape[1]), -1.0, 1.0).reshape(shape)
        return episodes.beside(offset_NA)


class ShapedReward(VectorWrapper[Any, Any, Any, Any, NDArray[Any]]):
    """Pays every step what it changes; see `prune_env.mdp.wrappers.ShapedReward`.

    Args:
        env: N episodes, wrapped or not.
        potential: of whole plans, from kept units (N, G) to (N,).
        standing: what the worths of N plans that ended together count, (N,) to (N,); by default
            as they are. `group_relative` ranks them among each other.
    """

    def __init__(
        self, env: Envs, potential: Potential | None = None, standing: Standing = absolute
    ) -> None:
        super().__init__(env)
        self._planning = planning_envs(env)
        self._potential = potential or expected_worth(self._planning.task)
        self._standing = standing
        self._credit = Credit.begin(np.zeros(env.num_envs))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Note the potentials of the prior's own plans."""
        answer = self.env.reset(seed=seed, options=options)
        self._credit = Credit.begin(self._now())
        return answer

    def step(self, actions: Any) -> Step:
        """Decide, and be paid at once."""
        seen, reward_N, ended_N, truncated_N, infos = self.env.step(actions)
        if ended_N.all():  # and the next episodes have begun
            paid_N = self._credit.end(reward_N, self._standing)
            self._credit = Credit.begin(self._now())
        else:
            paid_N, self._credit = self._credit.step(self._now())
        return seen, paid_N, ended_N, truncated_N, infos

    def _now(self) -> Any:
        return self._potential(self._planning.episodes.completed_NG)


class StandardObservation(VectorWrapper[Any, Any, Any, Any, NDArray[Any]]):
    """Standardised observations; see `prune_env.mdp.wrappers.StandardObservation`."""

    def __init__(self, env: Envs) -> None:
        # Not Gymnasium's VectorObservationWrapper: it refuses episodes that begin in the same step.
        super().__init__(env)
        planning = planning_envs(env)
        self._standard = planning.shape.standard(planning.task)
        shape = env.single_observation_space.shape
        self.single_observation_space: Space[Any] = Box(-LIMIT, LIMIT, shape, np.float32)
        self.observation_space: Space[Any] = batch_space(
            self.single_observation_space, env.num_envs
        )

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begin N episodes."""
        seen, infos = self.env.reset(seed=seed, options=options)
        return self._standard(seen), infos

    def step(self, actions: Any) -> Step:
        """Also what ended is standardised, in `infos["final_obs"]`."""
        seen, reward_N, ended_N, truncated_N, infos = self.env.step(actions)
        for number, last_F in enumerate(infos.get("final_obs", ())):
            infos["final_obs"][number] = self._standard(last_F)
        return self._standard(seen), reward_N, ended_N, truncated_N, infos


def planning_envs(env: Envs) -> PlanningVectorEnv:
    """The vector environment of ours beneath wrappers.

    Raises:
        ConfigError: there is none.
    """
    inner = env.unwrapped
    if not isinstance(inner, PlanningVectorEnv):
        raise ConfigError(
            f"{type(inner).__name__} has no prior. Wrap what make_vec makes of an id of PruneEnv; "
            "in a loop over environments wrap each (prune_env.mdp.wrappers)."
        )
    return inner


WRAPPERS: dict[str, Callable[[Envs], Envs]] = {
    "ShapedReward": ShapedReward,
    "ResidualAction": ResidualAction,
    "StandardObservation": StandardObservation,
}
"""By name, so that what makes an environment stays JSON."""


def wrapped(
    kind: type[PlanningVectorEnv],
    num_envs: int = 1,
    vector_wrappers: Sequence[str | Callable[[Envs], Envs]] = (),
    **keywords: Any,
) -> Envs:
    """A vector environment in wrappers, the first innermost: what `gymnasium.make_vec` makes.

    Raises:
        ConfigError: there is no wrapper of that name; otherwise see `kind`.
    """
    chosen = [look_up("wrapper", w, WRAPPERS) if isinstance(w, str) else w for w in vector_wrappers]
    envs: Envs = kind(num_envs=num_envs, **keywords)
    for wrapper in chosen:
        envs = wrapper(envs)
    return envs


layerwise = partial(wrapped, LockstepVectorEnv)
plan = partial(wrapped, PlanVectorEnv)
discrete = partial(wrapped, DiscreteVectorEnv)
