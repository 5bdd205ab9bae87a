"""N episodes in lockstep, as Gymnasium's own vector API: arrays in, arrays out.

What `SyncVectorEnv` makes of N `PruneEnv`s, number for number, without N Python loops: one call
decides a group everywhere, and N finished plans are measured together.

Legend: N episodes, A what an action holds, G groups, F features, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prune_env.checks import whole
from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.best import Best, better, found
from prune_env.mdp.budgets import Budgets, asked_budget, task_at
from prune_env.mdp.env import (
    CLOSED,
    VIEWS,
    Array,
    DiscreteEnv,
    PlanEnv,
    PlanningEnv,
    PruneEnv,
    opened,
)
from prune_env.mdp.info import finished_info
from prune_env.mdp.lockstep import Episodes, Walk
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Floats, Units, as_kept
from prune_env.mdp.shapes import masks
from prune_env.mdp.task import PruningTask

Seeds = int | Sequence[int | None] | None
Draw = Callable[[int], Floats]
"""Draws the budgets of N episodes."""
Pay = Callable[[Units, Floats], Floats]
"""What finished plans (N, G) under their budgets (N,) are paid, (N,)."""


class PlanningVectorEnv(VectorEnv[Array, Any, NDArray[Any]]):
    """N episodes of an environment side by side; all end in the same step.

    Spaces, rewards and infos are those of `SyncVectorEnv` over N of them with
    `AutoresetMode.SAME_STEP`: the last step returns the first observations of the next episodes,
    `infos["final_obs"]` and `infos["final_info"]` hold what ended.

    Args:
        task: a `PruningTask`, the name of a registered task, or "package.module:function".
        num_envs: N.
        budgets: lowest and highest budget that every episode draws its own from, or what draws
            those of N episodes; by default all have the task's.
        pay: pays finished plans in place of measuring them, such as a surrogate does; `final_info`
            and `best` then know nothing of them.
        render_mode: "ansi" or "rgb_array"; `render` gives N pictures.
        options: options of a task given by name; see `TaskOptions`.

    Attributes:
        task: as it was given.

    Raises:
        ConfigError: no episode at all; otherwise see `PlanningEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        **PlanningEnv.metadata,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    single: ClassVar[type[PlanningEnv]]

    def __init__(
        self,
        task: str | PruningTask = "digits",
        num_envs: int = 1,
        *,
        budgets: Sequence[float] | Draw | None = None,
        pay: Pay | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        whole(1)("num_envs", num_envs)
        self.task = opened(task, options, render_mode)
        self._draw = budgets if callable(budgets) else self._drawn
        self.budgets = Budgets.of(self.task, None if callable(budgets) else budgets)
        self.pay = pay
        self.num_envs, self.render_mode = num_envs, render_mode
        self.shape = self.single.shape
        self.single_observation_space = self.shape.observations(self.task)
        self.single_action_space = self.shape.actions(self.task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self._begun: Episodes | None = None
        self._best: Best | None = None

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin N episodes.

        Args:
            seed: of the draws of budgets: `seed + n` in episode n, or one for each.
            options: {"budget": 0.4} for all, or a sequence of N budgets.

        Raises:
            ConfigError: not N seeds or budgets.
            BudgetError: a budget is out of range or cannot be reached.
        """
        for number, own in enumerate(self._seeds(seed)):
            if own is not None:
                self._randoms[number] = seeding.np_random(own)[0]
        return self._begin(asked_budget(options))

    def step(
        self, actions: Any
    ) -> tuple[Array, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Decide what is next in every episode, actions (N, A).

        Raises:
            PruneEnvError: nothing is begun, or the actions are malformed.
        """
        episodes = self.episodes
        asked_NA = self.shape.sparsities(episodes, actions)
        taken_NA = episodes.advance(asked_NA)
        said = self._of_all(asked=_said(episodes, asked_NA), taken=_said(episodes, taken_NA))
        never = np.zeros(self.num_envs, np.bool_)
        if not episodes.finished:
            return episodes.observation_NF, np.zeros(self.num_envs), never, never.copy(), said
        reward_N = self._finish(said)
        last_N = _each(episodes.observation_NF)
        observations, infos = self._begin(None)
        infos |= self._of_all(final_obs=last_N, final_info=said)
        return observations, reward_N, ~never, never, infos

    def _finish(self, said: dict[str, Any]) -> Floats:
        """Pay the plans that end N episodes, (N,), and add to `said` what they measured."""
        episodes = self.episodes
        if self.pay is not None:
            return self.pay(episodes.kept_NG, episodes.budget_N)
        outcomes = self.measure(episodes.kept_NG)
        for number, outcome in enumerate(outcomes):
            task = self.task.at(float(episodes.budget_N[number]))
            self._add_info(said, {**finished_info(task, outcome)}, number)
            self._best = better(self._best, Best(task, outcome))
        return np.array([outcome.reward for outcome in outcomes])

    @property
    def episodes(self) -> Episodes:
        """Those under way, as arrays.

        Raises:
            PruneEnvError: there are none.
        """
        if self._begun is None:
            raise PruneEnvError(CLOSED)
        return self._begun

    def measure(self, kept_NG: Units) -> list[Outcome]:
        """What N finished plans are worth, each under its budget; override to charge for it."""
        budgets = self.episodes.budget_N.tolist()
        tasks = {budget: self.task.at(budget) for budget in set(budgets)}
        plans = zip(kept_NG, budgets, strict=True)
        return [tasks[budget].outcome(as_kept(kept_G)) for kept_G, budget in plans]

    @property
    def best(self) -> Best:
        """The best finished episode of all; a reset does not lose it.

        Raises:
            PruneEnvError: no episode is finished.
        """
        return found(self._best)

    def render(self) -> tuple[Any, ...] | None:
        """The decisions so far of every episode, in the chosen render mode."""
        if self.render_mode is None:
            return None
        view, episodes = VIEWS[self.render_mode], self.episodes
        rows = zip(episodes.kept_NG[:, : episodes.number], episodes.budget_N, strict=True)
        return tuple(view(self.task.at(float(b)), as_kept(kept_g)) for kept_g, b in rows)

    @property
    def prior(self) -> Floats:
        """Actions, (N, A), that the task's path asks for under the budgets that are left."""
        return self.shape.of_sparsities(self.episodes, self.episodes.prior_NA)

    def _begin(self, asked: Any) -> tuple[Array, dict[str, Any]]:
        if asked is None:
            budget_N = self._draw(self.num_envs)
        else:
            tasks = [task_at(self.task, budget) for budget in self._for_each(asked)]
            budget_N = np.array([task.budget for task in tasks])
        self._begun = self.shape.episodes(self.task, budget_N)
        return self._begun.observation_NF, self._of_all(budget=budget_N.copy())

    def _drawn(self, count: int) -> Floats:
        return np.array([self.budgets.draw(random) for random in self._randoms])

    def _of_all(self, **values: Any) -> dict[str, Any]:
        """Infos that every episode has, as Gymnasium lays them out."""
        masks = {f"_{name}": np.ones(self.num_envs, np.bool_) for name in values}
        return {**values, **masks}

    def _seeds(self, seed: Seeds) -> Sequence[int | None]:
        if seed is None or isinstance(seed, int):
            return [None if seed is None else seed + n for n in range(self.num_envs)]
        return self._for_each(seed)

    def _for_each(self, values: Any) -> list[Any]:
        """One value for each episode.

        Raises:
            ConfigError: there are more of them than episodes, or fewer.
        """
        if isinstance(values, Sequence | np.ndarray) and not isinstance(values, str):
            if len(values) != self.num_envs:
                raise ConfigError(
                    f"{len(values)} values for {self.num_envs} episodes. Give one for all or one "
                    "for each."
                )
            return list(values)
        return [values] * self.num_envs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task!r}, num_envs={self.num_envs})"


class LockstepVectorEnv(PlanningVectorEnv):
    """N episodes of `PruneEnv`; see `PlanningVectorEnv`."""

    single = PruneEnv


class PlanVectorEnv(PlanningVectorEnv):
    """N episodes of `PlanEnv`; see `PlanningVectorEnv`."""

    single = PlanEnv


class DiscreteVectorEnv(PlanningVectorEnv):
    """N episodes of `DiscreteEnv`; see `PlanningVectorEnv`."""

    single = DiscreteEnv

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions, (N, L), are levels of the group at hand that leave budgets reachable."""
        walk = self.episodes
        assert isinstance(walk, Walk)
        return masks(walk)


VECTORS: dict[type[PlanningEnv], type[PlanningVectorEnv]] = {
    kind.single: kind for kind in (LockstepVectorEnv, PlanVectorEnv, DiscreteVectorEnv)
}
"""An environment -> N episodes of it."""


def _said(episodes: Episodes, value_NA: Floats) -> NDArray[Any]:
    """As `SyncVectorEnv` stacks it: numbers, or lists where a step decides all groups."""
    return value_NA[:, 0] if isinstance(episodes, Walk) else _each(value_NA.tolist())


def _each(rows: Any) -> NDArray[Any]:
    """An array of N objects; Gymnasium wants them apart."""
    each = np.empty(len(rows), object)
    for number, row in enumerate(rows):
        each[number] = row
    return each
