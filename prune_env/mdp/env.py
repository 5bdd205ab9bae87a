"""The Gymnasium shells around `PruningTask`: they convert types and nothing else."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import nn

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.registry import make_task
from prune_env.mdp.render import bars, table
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import FEATURES, Kept, PruningTask, State
from prune_env.surgery.plan import PruningPlan

Array = NDArray[np.float32]


class PlanningEnv(gymnasium.Env[Array, Array]):
    """What every shape of the decision process shares: the task, the finished plan, pictures.

    Args:
        task: a `PruningTask`, the name of a registered task, or "package.module:function".
        render_mode: "ansi" (a table) or "rgb_array" (bars per layer).
        options: options of a task given by name; see `TaskOptions`.

    Raises:
        PruneEnvError: the task cannot be made; see `PruningTask.from_model`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self, task: str | PruningTask = "digits", *, render_mode: str | None = None, **options: Any
    ) -> None:
        if isinstance(task, PruningTask) and options:
            raise ConfigError(
                f"options {sorted(options)} have no effect on a finished PruningTask. Give them to "
                "PruningTask.from_model, or give the task by name."
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ConfigError(
                f"there is no render mode '{render_mode}'; use 'ansi' or 'rgb_array'."
            )
        self.task = task if isinstance(task, PruningTask) else make_task(task, **options)
        self.render_mode = render_mode
        self._outcome: Outcome | None = None

    def measure(self, kept: Kept) -> Outcome:
        """What a finished plan is worth; override to charge for it (see agents/view.py)."""
        return self.task.outcome(kept)

    @property
    def plan(self) -> PruningPlan:
        """The plan of the finished episode.

        Raises:
            PruneEnvError: the episode is not finished.
        """
        if self._outcome is None:
            raise PruneEnvError("there is no plan before the last step of an episode.")
        return self.task.plan(self._outcome.kept, reward=self._outcome.reward)

    def network(self) -> nn.Module:
        """The pruned and repaired network of the finished episode, a copy.

        Raises:
            PruneEnvError: the episode is not finished.
        """
        if self._outcome is None:
            raise PruneEnvError("there is no pruned network before the last step of an episode.")
        return self.task.network(self._outcome.kept)

    @property
    def decided(self) -> Kept:
        """Kept units of the groups decided so far."""
        return () if self._outcome is None else self._outcome.kept

    def render(self) -> Any:
        """The decisions so far, in the chosen render mode."""
        views = {"ansi": table, "rgb_array": bars}
        return (
            views[self.render_mode](self.task, self.decided) if self.render_mode in views else None
        )


class PruneEnv(PlanningEnv):
    """Prune a network group by group: every step decides the sparsity of one group.

    Action: Box(0, 1, (1,)), the sparsity of the current group. Observation: Box(0, 1, (F,)), see
    `prune_env.mdp.task.FEATURES`. The reward is 0 until the last group, then that of the finished
    plan, which always meets the budget. Every `info` holds `asked` and `taken` sparsity of the
    group just decided; the last one also holds

    - `accuracy`, `kl`, `loss`: quality on the reward samples,
    - `flops_ratio`, `params_ratio`: cost left as a fraction of the dense network,
    - `plan`: kept units per group, `reward_terms`: the reward by name.

    Arguments and errors: see `PlanningEnv`.
    """

    def __init__(
        self, task: str | PruningTask = "digits", *, render_mode: str | None = None, **options: Any
    ) -> None:
        super().__init__(task, render_mode=render_mode, **options)
        self.observation_space = Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = Box(0.0, 1.0, (1,), np.float32)
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start with the dense network; the task itself is deterministic."""
        super().reset(seed=seed)
        self._state, self._outcome = State(), None
        return self.task.observe(self._state), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide the sparsity of the next group."""
        if self._state is None or len(self._state.kept) == self.task.length:
            raise PruneEnvError("the episode is over (or not begun). Call reset() before step().")
        (asked,) = _sparsities(action, 1)
        group = self.task.groups[len(self._state.kept)]
        self._state = self.task.advance(self._state, asked)
        taken = 1.0 - self._state.kept[len(self._state.asked) - 1] / group.units
        info: dict[str, Any] = {"asked": asked, "taken": taken}
        observation = self.task.observe(self._state)
        if len(self._state.kept) < self.task.length:
            return observation, 0.0, False, False, info
        self._outcome = self.measure(self._state.kept)
        info.update(terminal_info(self.task, self._outcome))
        return observation, self._outcome.reward, True, False, info

    @property
    def decided(self) -> Kept:
        """Kept units of the groups decided so far."""
        return () if self._state is None else self._state.kept


class PlanEnv(PlanningEnv):
    """The same task as one step: all sparsities at once, decoded to the budget together.

    Action: Box(0, 1, (G,)), the sparsity of every group, shifted together until the budget is met
    (`PruningTask.decode`), so no group is favoured by its place. Observation: Box(0, 1, (1,)), the
    budget. The only `info` holds what the last one of `PruneEnv` does, with `asked` and `taken` as
    lists. Arguments and errors: see `PlanningEnv`.
    """

    def __init__(
        self, task: str | PruningTask = "digits", *, render_mode: str | None = None, **options: Any
    ) -> None:
        super().__init__(task, render_mode=render_mode, **options)
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Box(0.0, 1.0, (self.task.length,), np.float32)
        self._open = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Show the budget; the task itself is deterministic."""
        super().reset(seed=seed)
        self._open, self._outcome = True, None
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide everything."""
        if not self._open:
            raise PruneEnvError("the episode is over (or not begun). Call reset() before step().")
        asked = _sparsities(action, self.task.length)
        self._outcome, self._open = self.measure(self.task.decode(asked)), False
        units = [group.units for group in self.task.groups]
        taken = [1.0 - kept / n for kept, n in zip(self._outcome.kept, units, strict=True)]
        info = {"asked": asked, "taken": taken, **terminal_info(self.task, self._outcome)}
        return self._observation(), self._outcome.reward, True, False, info

    def _observation(self) -> Array:
        return np.array([self.task.budget], dtype=np.float32)


def _sparsities(action: Array, count: int) -> list[float]:
    """An action as numbers.

    Raises:
        PruneEnvError: it holds another number of values, or one that is not finite.
    """
    asked = np.asarray(action, dtype=np.float64).reshape(-1)
    if len(asked) != count:
        raise PruneEnvError(f"the action holds {len(asked)} values; {count} are expected.")
    if not np.isfinite(asked).all():
        raise PruneEnvError(f"the action is {asked.tolist()}; sparsities in [0, 1] are expected.")
    return [float(value) for value in asked]


def terminal_info(task: PruningTask, outcome: Outcome) -> dict[str, Any]:
    """What the last `info` of an episode says about the finished plan."""
    names = (group.name for group in task.groups)
    return {
        "accuracy": outcome.metrics.accuracy,
        "kl": outcome.metrics.kl,
        "loss": outcome.metrics.loss,
        "flops_ratio": outcome.flops_ratio,
        "params_ratio": outcome.params_ratio,
        "plan": dict(zip(names, outcome.kept, strict=True)),
        "reward_terms": dict(outcome.terms),
    }


class CenteredAction(gymnasium.ActionWrapper[Array, Array, Array]):
    """Actions in [-1, 1] whose 0 is the uniform plan's sparsity; -1 and 1 are none and all.

    Every agent starts near 0, so an untrained policy searches around the uniform plan.
    """

    def __init__(self, env: gymnasium.Env[Array, Array], center: float) -> None:
        super().__init__(env)
        self.action_space = Box(-1.0, 1.0, env.action_space.shape, np.float32)
        self.center = center

    def action(self, action: Array) -> Array:
        """Piecewise linear through (-1, 0), (0, center), (1, 1)."""
        room = np.where(action < 0, self.center, 1.0 - self.center)
        return np.asarray(np.clip(self.center + action * room, 0.0, 1.0), dtype=np.float32)


gymnasium.register(id="PruneEnv/Layerwise-v0", entry_point="prune_env.mdp.env:PruneEnv")
gymnasium.register(id="PruneEnv/Plan-v0", entry_point="prune_env.mdp.env:PlanEnv")
