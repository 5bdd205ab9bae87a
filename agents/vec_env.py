"""A Gymnasium vector environment as stable-baselines3 sees it.

vec_env = AsVecEnv(gymnasium.make_vec("PruneEnv/Layerwise-v0", num_envs=32))
PPO("MlpPolicy", vec_env, gamma=1.0).learn(10_000)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from prune_env.errors import ConfigError

Array = NDArray[np.float32]
Step = tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]


class AsVecEnv(VecEnv):
    """N episodes of a Gymnasium vector environment whose episodes begin anew in the same step.

    Seeds and options given to SB3 (`seed`, `set_options`) are handed on at the next reset; what
    episodes ended with is in the `infos`, in SB3's layout.

    Args:
        env: the vector environment, wrapped or not.

    Raises:
        ConfigError: its episodes do not begin anew in the same step, as SB3's do.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"{env} does not begin episodes in the step that ends one, as stable-baselines3 "
                "expects. Make it with autoreset_mode=AutoresetMode.SAME_STEP."
            )
        self.env, self._actions = env, np.zeros(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Array:
        """Begin N episodes."""
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        options = _together(self._options)
        seen, infos = self.env.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        self.reset_infos = [_row(infos, number) for number in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return seen  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Note the actions, (N, A)."""
        self._actions = actions

    def step_wait(self) -> Step:
        """Take them."""
        seen, reward_N, ended_N, truncated_N, infos = self.env.step(self._actions)
        done_N = ended_N | truncated_N
        rows = [_row(infos, number) for number in range(self.num_envs)]
        for number in np.flatnonzero(done_N):
            last = rows[number].pop("final_obs")
            rows[number] = {
                **rows[number].pop("final_info"),
                "terminal_observation": last,
                "TimeLimit.truncated": bool(truncated_N[number] and not ended_N[number]),
            }
        return seen, np.asarray(reward_N, np.float32), done_N, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[Any]:
        """A picture of every episode."""
        return self.env.render() or []

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment or a wrapper, the same for every episode."""
        return [getattr(self._owner(attr_name), attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute where it is, for all episodes."""
        setattr(self._owner(attr_name), attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        """What a method says of every episode: a row of its array, or the same for all."""
        said = getattr(self._owner(method_name), method_name)(*args, **kw)
        apart = isinstance(said, np.ndarray) and len(said) == self.num_envs
        return [said[number] if apart else said for number in self._indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No episode has a wrapper of its own."""
        return [False] * len(self._indices(indices))

    def _owner(self, name: str) -> Any:
        """The outermost of wrappers and environment that has an attribute."""
        env: Any = self.env
        while not hasattr(env, name):
            if not hasattr(env, "env"):
                raise AttributeError(f"{env} has no '{name}'")
            env = env.env
        return env

    def _indices(self, indices: Any) -> Sequence[int]:
        return range(self.num_envs) if indices is None else list(np.atleast_1d(indices))


def _row(infos: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a vector environment says of one episode."""
    return {
        key: _row(value, number) if isinstance(value, Mapping) else value[number]
        for key, value in infos.items()
        if not key.startswith("_") and infos[f"_{key}"][number]
    }


def _together(options: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Options of N episodes as Gymnasium takes them: a list for each name."""
    names = {name for given in options for name in given}
    return {name: [given[name] for given in options] for name in names} or None
