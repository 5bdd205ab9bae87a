"""The Gymnasium shells around `PruningTask`: they convert types and nothing else.

Legend: F features, G groups.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import nn

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.best import Best, better, found
from prune_env.mdp.budgets import Budgets, asked_budget, task_at
from prune_env.mdp.registry import make_task
from prune_env.mdp.render import bars, table
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Floats
from prune_env.mdp.task import FEATURES, Kept, PruningTask, State
from prune_env.plan.plan import PruningPlan

Array = NDArray[np.float32]
VIEWS: dict[str, Callable[[PruningTask, Sequence[int]], Any]] = {"ansi": table, "rgb_array": bars}
"""Pictures of a plan in the making, by render mode."""


def opened(
    task: str | PruningTask, options: Mapping[str, Any], render_mode: str | None
) -> PruningTask:
    """The task that an environment was asked for.

    Raises:
        ConfigError: options beside a finished task, or an unknown render mode.
        PruneEnvError: the task cannot be made; see `PruningTask.from_model`.
    """
    if isinstance(task, PruningTask) and options:
        raise ConfigError(
            f"options {sorted(options)} have no effect on a finished PruningTask. Give them to "
            "PruningTask.from_model, or give the task by name."
        )
    if not isinstance(task, str | PruningTask):
        raise ConfigError(f"the task is a {type(task).__name__}; give a PruningTask or a name.")
    if render_mode is not None and render_mode not in VIEWS:
        raise ConfigError(f"there is no render mode '{render_mode}'; use 'ansi' or 'rgb_array'.")
    return task if isinstance(task, PruningTask) else make_task(task, **options)


class PlanningEnv(gymnasium.Env[Array, Array]):
    """What every shape of the decision process shares: the task, the finished plan, pictures.

    Every `reset` takes up a budget: `options={"budget": 0.4}`, or one drawn from `budgets` with the
    environment's own `np_random`. It says so in `info["budget"]`, and so does the last step.

    Args:
        task: a `PruningTask`, the name of a registered task, or "package.module:function".
        budgets: lowest and highest budget that episodes draw theirs from, uniformly; by default all
            have the task's.
        render_mode: "ansi" (a table) or "rgb_array" (bars per layer).
        options: options of a task given by name; see `TaskOptions`.

    Attributes:
        task: as it was given.
        current: the same under the budget of this episode.

    Raises:
        ConfigError: `budgets` are not two numbers, the lower first.
        BudgetError: a budget is out of range or cannot be reached.
        PruneEnvError: the task cannot be made; see `PruningTask.from_model`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(VIEWS),
        "render_fps": 4,
    }

    def __init__(
        self,
        task: str | PruningTask = "digits",
        *,
        budgets: Sequence[float] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.task = opened(task, options, render_mode)
        self.budgets = Budgets.of(self.task, budgets)
        self.current = self.task
        self.render_mode = render_mode
        self._outcome: Outcome | None = None
        self._best: Best | None = None

    def _begin(self, seed: int | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take up the budget of a new episode; returns what `reset` has to say."""
        super().reset(seed=seed)
        asked = asked_budget(options)
        budget = self.budgets.draw(self.np_random) if asked is None else asked
        self.current, self._outcome = task_at(self.task, budget), None
        return {"budget": self.current.budget}

    def measure(self, kept: Kept) -> Outcome:
        """What a finished plan is worth; override to charge for it or to pay otherwise."""
        return self.current.outcome(kept)

    @property
    def best(self) -> Best:
        """The best finished episode, whoever played it; a reset does not lose it.

        Raises:
            PruneEnvError: no episode is finished.
        """
        return found(self._best)

    def _finish(self, kept: Kept) -> Outcome:
        """Measure the plan that ends an episode, and remember the best."""
        self._outcome = outcome = self.measure(kept)
        self._best = better(self._best, Best(self.current, outcome))
        return outcome

    @property
    @abstractmethod
    def completed(self) -> Kept:
        """The plan, if the task's prior decided the rest."""

    @property
    @abstractmethod
    def prior(self) -> Floats:
        """The action, in full precision, that the task's prior would take now."""

    @property
    def plan(self) -> PruningPlan:
        """The plan of the finished episode.

        Raises:
            PruneEnvError: the episode is not finished.
        """
        if self._outcome is None:
            raise PruneEnvError("there is no plan before the last step of an episode.")
        return self.current.plan(self._outcome.kept, reward=self._outcome.reward)

    def network(self) -> nn.Module:
        """The pruned and repaired network of the finished episode, a copy.

        Raises:
            PruneEnvError: the episode is not finished.
        """
        if self._outcome is None:
            raise PruneEnvError("there is no pruned network before the last step of an episode.")
        return self.current.network(self._outcome.kept)

    @property
    def decided(self) -> Kept:
        """Kept units of the groups decided so far."""
        return () if self._outcome is None else self._outcome.kept

    def render(self) -> Any:
        """The decisions so far, in the chosen render mode."""
        return (
            None
            if self.render_mode is None
            else VIEWS[self.render_mode](self.current, self.decided)
        )


class PruneEnv(PlanningEnv):
    """Prune a network group by group: every step decides the sparsity of one group.

    Action: Box(0, 1, (1,)), the sparsity of the current group; what lies outside counts as the edge
    next to it, NaN is refused. Observation: Box(0, 1, (F,)), see
    `prune_env.mdp.task.FEATURES`. The reward is 0 until the last group, then that of the finished
    plan, which always meets the budget. The `info` of `reset` holds the `budget`, that of every
    step the `asked` and `taken` sparsity of the group just decided; the last one also holds

    - `budget`: of this episode,
    - `accuracy`, `kl`, `loss`: quality on the reward samples,
    - `flops_ratio`, `params_ratio`: cost left as a fraction of the dense network,
    - `plan`: kept units per group, `reward_terms`: the reward by name.

    Arguments and errors: see `PlanningEnv`.
    """

    def __init__(
        self,
        task: str | PruningTask = "digits",
        *,
        budgets: Sequence[float] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task, budgets=budgets, render_mode=render_mode, **options)
        self.observation_space = Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = Box(0.0, 1.0, (1,), np.float32)
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start with the dense network; but for its budget an episode is deterministic."""
        info = self._begin(seed, options)
        self._state = State()
        return self.current.observe(self._state), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide the sparsity of the next group."""
        state = self._open_state()
        (asked,) = numbers(action, 1).tolist()
        group = self.task.groups[len(state.kept)]
        self._state = state = self.current.advance(state, min(max(asked, 0.0), 1.0))
        taken = 1.0 - state.kept[len(state.asked) - 1] / group.units
        info: dict[str, Any] = {"asked": asked, "taken": taken}
        observation = self.current.observe(state)
        if len(state.kept) < self.task.length:
            return observation, 0.0, False, False, info
        outcome = self._finish(state.kept)
        info.update(terminal_info(self.current, outcome))
        return observation, outcome.reward, True, False, info

    def _open_state(self) -> State:
        if self._state is None or len(self._state.kept) == self.task.length:
            raise PruneEnvError(CLOSED)
        return self._state

    @property
    def completed(self) -> Kept:
        """The plan, if the task's path decided the groups that are left."""
        return self.current.complete(self._open_state())

    @property
    def prior(self) -> Floats:
        """Sparsity, (1,), that the task's path asks of the current group under what is left."""
        return np.array([self.current.prior(self._open_state())])

    @property
    def decided(self) -> Kept:
        """Kept units of the groups decided so far."""
        return () if self._state is None else self._state.kept


class PlanEnv(PlanningEnv):
    """The same task as one step: all sparsities at once, decoded to the budget together.

    Action: Box(0, 1, (G,)), the sparsity of every group, shifted together until the budget is met
    (`PruningTask.decode`), so no group is favoured by its place. Observation: Box(0, 1, (1,)), the
    budget. The `info` of `step` holds what the last one of `PruneEnv` does, `asked` and `taken` as
    lists. Arguments and errors: see `PlanningEnv`.
    """

    def __init__(
        self,
        task: str | PruningTask = "digits",
        *,
        budgets: Sequence[float] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task, budgets=budgets, render_mode=render_mode, **options)
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Box(0.0, 1.0, (self.task.length,), np.float32)
        self._open = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Show the budget; but for it an episode is deterministic."""
        info = self._begin(seed, options)
        self._open = True
        return self._observation(), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide everything."""
        self._require_open()
        asked = numbers(action, self.task.length).tolist()
        plan = self.current.decode(np.clip(asked, 0.0, 1.0).tolist())
        outcome, self._open = self._finish(plan), False
        units = [group.units for group in self.task.groups]
        taken = [1.0 - kept / n for kept, n in zip(outcome.kept, units, strict=True)]
        info = {"asked": asked, "taken": taken, **terminal_info(self.current, outcome)}
        return self._observation(), outcome.reward, True, False, info

    def _require_open(self) -> None:
        if not self._open:
            raise PruneEnvError(CLOSED)

    def _observation(self) -> Array:
        return np.array([self.current.budget], dtype=np.float32)

    @property
    def completed(self) -> Kept:
        """The plan of the task's path at the budget."""
        self._require_open()
        return self.current.beside([0.0] * self.task.length)

    @property
    def prior(self) -> Floats:
        """Sparsities, (G,), of the plan of the task's path at the budget."""
        return self.task.rules.sparsity(np.array(self.completed))


CLOSED = "the episode is over (or not begun). Call reset() before step()."


def numbers(action: Array, count: int) -> Floats:
    """An action as numbers.

    Raises:
        PruneEnvError: it holds another number of values, or one that is not finite.
    """
    try:
        values = np.asarray(action, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise PruneEnvError(f"the action is no array of numbers: {error}.") from None
    if len(values) != count:
        raise PruneEnvError(f"the action holds {len(values)} values; {count} are expected.")
    if not np.isfinite(values).all():
        raise PruneEnvError(f"the action is {values.tolist()}; finite numbers are expected.")
    return values


def terminal_info(task: PruningTask, outcome: Outcome) -> dict[str, Any]:
    """What the last `info` of an episode says about the finished plan."""
    names = (group.name for group in task.groups)
    return {
        "budget": task.budget,
        "accuracy": outcome.metrics.accuracy,
        "kl": outcome.metrics.kl,
        "loss": outcome.metrics.loss,
        "flops_ratio": outcome.flops_ratio,
        "params_ratio": outcome.params_ratio,
        "plan": dict(zip(names, outcome.kept, strict=True)),
        "reward_terms": dict(outcome.terms),
    }
