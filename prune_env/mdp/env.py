"""The Gymnasium environments: one episode of what `prune_env.mdp.lockstep` steps, in their types.

Legend: F features, G groups, L levels of the group that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import nn

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.best import Best, better, found
from prune_env.mdp.budgets import Budgets, asked_budget, task_at
from prune_env.mdp.evaluator import Kept
from prune_env.mdp.info import FinalInfo, ResetInfo, StepInfo, finished_info
from prune_env.mdp.lockstep import Episodes, Walk
from prune_env.mdp.registry import make_task
from prune_env.mdp.render import bars, table
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Floats, as_kept
from prune_env.mdp.shapes import LEVELS, PLAN, WALK, Shape, masks
from prune_env.mdp.task import PruningTask
from prune_env.plan.plan import PruningPlan

Array = NDArray[np.float32]
CLOSED = "the episode is over (or not begun). Call reset() before step()."
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


class PlanningEnv(gymnasium.Env[Array, Any]):
    """What every shape of the decision process shares.

    Every `reset` takes up a budget: `options={"budget": 0.4}`, or one drawn from `budgets` with the
    environment's own `np_random`. `reset` says so (`prune_env.mdp.info.ResetInfo`), every `step`
    says what was asked and taken (`StepInfo`), the last one what the plan measured (`FinalInfo`).

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
    shape: ClassVar[Shape]

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
        self.observation_space: Space[Any] = self.shape.observations(self.task)
        self.action_space = self.shape.actions(self.task)
        self._begun: Episodes | None = None
        self._outcome: Outcome | None = None
        self._best: Best | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start with the dense network; but for its budget an episode is deterministic.

        Raises:
            ConfigError: an option that there is not, or a budget that is no number.
            BudgetError: the budget is out of range or cannot be reached.
        """
        super().reset(seed=seed)
        asked = asked_budget(options)
        budget = self.budgets.draw(self.np_random) if asked is None else asked
        self.current, self._outcome = task_at(self.task, budget), None
        self._begun = self.shape.episodes(self.current, np.array([self.current.budget]))
        said: ResetInfo = {"budget": self.current.budget}
        return self._begun.observation_NF[0], {**said}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide what is next; the last step measures the plan.

        Raises:
            PruneEnvError: the episode is over or not begun, or the action is malformed.
        """
        episodes = self.episodes
        asked_1A = self.shape.sparsities(episodes, action)
        taken_1A = episodes.advance(asked_1A)
        said: StepInfo = {"asked": _said(episodes, asked_1A), "taken": _said(episodes, taken_1A)}
        observation = episodes.observation_NF[0]
        if not episodes.finished:
            return observation, 0.0, False, False, {**said}
        outcome = self._finish(as_kept(episodes.kept_NG[0]))
        final: FinalInfo = {**said, **finished_info(self.current, outcome)}
        return observation, outcome.reward, True, False, {**final}

    @property
    def episodes(self) -> Episodes:
        """The one under way, as arrays of N = 1.

        Raises:
            PruneEnvError: there is none.
        """
        if self._begun is None or self._begun.finished:
            raise PruneEnvError(CLOSED)
        return self._begun

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
    def completed(self) -> Kept:
        """The plan, if the task's prior decided the rest."""
        return as_kept(self.episodes.completed_NG[0])

    @property
    def prior(self) -> Floats:
        """The action, in full precision, that the task's prior would take now."""
        episodes = self.episodes
        action: Floats = self.shape.of_sparsities(episodes, episodes.prior_NA)[0]
        return action

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
        return () if self._begun is None else as_kept(self._begun.kept_NG[0, : self._begun.number])

    def render(self) -> Any:
        """The decisions so far, in the chosen render mode."""
        return (
            None
            if self.render_mode is None
            else VIEWS[self.render_mode](self.current, self.decided)
        )

    def __str__(self) -> str:
        return f"<{type(self).__name__}({self.task!r})>"

    __repr__ = __str__


def _said(episodes: Episodes, value_1A: Floats) -> Any:
    """As JSON: a number, or a list where a step decides all groups."""
    return float(value_1A[0, 0]) if isinstance(episodes, Walk) else value_1A[0].tolist()


class PruneEnv(PlanningEnv):
    """Prune a network group by group: every step decides the sparsity of one group.

    Action: Box(0, 1, (1,)), the sparsity of the current group; what lies outside counts as the edge
    next to it, NaN is refused. Observation: Box(0, 1, (F,)), see `prune_env.mdp.task.FEATURES`. The
    reward is 0 until the last group, then that of the finished plan, which always meets the budget.
    `prior` is (1,). Arguments, infos and errors: see `PlanningEnv`.
    """

    shape = WALK


class PlanEnv(PlanningEnv):
    """The same task as one step: all sparsities at once, decoded to the budget together.

    Action: Box(0, 1, (G,)), the sparsity of every group, shifted together until the budget is met
    (`PruningTask.decode`), so no group is favoured by its place. Observation: Box(0, 1, (1,)), the
    budget. `prior` is (G,). Arguments, infos and errors: see `PlanningEnv`.
    """

    shape = PLAN


class DiscreteEnv(PlanningEnv):
    """Group by group, for agents that choose among actions: the action is a level of the group.

    Action: Discrete(L), from 0, the fewest units, to all that the group has. `action_masks()` says
    what may be chosen, in the convention of sb3-contrib's MaskablePPO; for agents without masks
    (DQN) any other number is read as the nearest level below that the budget allows. Observation
    and reward are those of `PruneEnv`. Arguments, infos and errors: see `PlanningEnv`.
    """

    shape = LEVELS

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions, (L,), are levels of the group at hand that leave the budget reachable.

        Raises:
            PruneEnvError: the episode is over or not begun.
        """
        walk = self.episodes
        assert isinstance(walk, Walk)
        allowed: NDArray[np.bool_] = masks(walk)[0]
        return allowed
