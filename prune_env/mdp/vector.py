"""N episodes of the walk in lockstep, as Gymnasium's own vector API: arrays in, arrays out.

What `SyncVectorEnv` makes of N `PruneEnv`s, number for number, without N Python loops: one call
decides a group everywhere, and N finished plans are measured together.

Legend: N episodes, G groups, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prune_env.checks import whole
from prune_env.errors import ConfigError, PruneEnvError
from prune_env.mdp.best import Best, better, found
from prune_env.mdp.budgets import Budgets, asked_budget, task_at
from prune_env.mdp.env import CLOSED, VIEWS, Array, PruneEnv, numbers, opened, terminal_info
from prune_env.mdp.lockstep import Lockstep
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.rules import Floats, Units, as_kept
from prune_env.mdp.task import PruningTask

Seeds = int | Sequence[int | None] | None


class LockstepVectorEnv(VectorEnv[Array, Array, NDArray[Any]]):
    """N episodes of `PruneEnv` side by side; all end in the same step.

    Spaces, rewards and infos are those of `SyncVectorEnv` over N `PruneEnv`s with
    `AutoresetMode.SAME_STEP`: the last step returns the first observations of the next episodes,
    `infos["final_obs"]` and `infos["final_info"]` hold what ended.

    Args:
        task: a `PruningTask`, the name of a registered task, or "package.module:function".
        num_envs: N.
        budgets: lowest and highest budget that every episode draws its own from; by default all
            have the task's.
        render_mode: "ansi" or "rgb_array"; `render` gives N pictures.
        options: options of a task given by name; see `TaskOptions`.

    Attributes:
        task: as it was given.

    Raises:
        ConfigError: no episode at all; otherwise see `PruneEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        **PruneEnv.metadata,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: str | PruningTask = "digits",
        num_envs: int = 1,
        *,
        budgets: Sequence[float] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        whole(1)("num_envs", num_envs)
        self.task = opened(task, options, render_mode)
        self.budgets = Budgets.of(self.task, budgets)
        self.num_envs, self.render_mode = num_envs, render_mode
        single = PruneEnv(self.task)
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        self.action_space = batch_space(single.action_space, num_envs)
        self._randoms = [seeding.np_random()[0] for _ in range(num_envs)]
        self._walk: Lockstep | None = None
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
        self, actions: Array
    ) -> tuple[Array, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Decide the sparsity of the next group, actions (N, 1), in every episode."""
        walk, count = self._open_walk(), self.num_envs
        asked_N = numbers(actions, count)
        group = self.task.groups[walk.number]
        walk.advance(asked_N)
        taken_N = 1.0 - walk.kept_NG[:, walk.number - 1] / group.units
        never = np.zeros(count, np.bool_)
        if not walk.finished:
            infos = self._of_all(asked=asked_N, taken=taken_N)
            return walk.observation_NF, np.zeros(count), never, never.copy(), infos
        ended, outcomes = self._of_all(asked=asked_N, taken=taken_N), self.measure(walk.kept_NG)
        for number, outcome in enumerate(outcomes):
            info = {**terminal_info(self.task, outcome), "budget": float(walk.budget_N[number])}
            ended = self._add_info(ended, info, number)
            self._best = better(self._best, Best(self.task.at(info["budget"]), outcome))
        last_N = np.empty(count, object)  # Gymnasium wants them apart
        for number, row_F in enumerate(walk.observation_NF):
            last_N[number] = row_F
        observations, infos = self._begin(None)
        infos |= self._of_all(final_obs=last_N, final_info=ended)
        rewards = np.array([outcome.reward for outcome in outcomes])
        return observations, rewards, ~never, never, infos

    def measure(self, kept_NG: Units) -> list[Outcome]:
        """What N finished plans are worth, each under its budget; override to pay otherwise."""
        budgets = self._open_walk().budget_N.tolist()
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
        view, walk = VIEWS[self.render_mode], self._open_walk()
        rows = zip(walk.kept_NG[:, : walk.number], walk.budget_N, strict=True)
        return tuple(view(self.task.at(float(b)), as_kept(kept_g)) for kept_g, b in rows)

    @property
    def prior(self) -> Floats:
        """Actions, (N, 1), that the task's path asks for under the budgets that are left."""
        return self._open_walk().prior_N[:, None]

    def _begin(self, asked: Any) -> tuple[Array, dict[str, Any]]:
        if asked is None:
            budgets = [self.budgets.draw(random) for random in self._randoms]
        else:
            budgets = [task_at(self.task, budget).budget for budget in self._for_each(asked)]
        self._walk = Lockstep(self.task, np.array(budgets))
        return self._walk.observation_NF, self._of_all(budget=np.array(budgets))

    def _open_walk(self) -> Lockstep:
        if self._walk is None:
            raise PruneEnvError(CLOSED)
        return self._walk

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
