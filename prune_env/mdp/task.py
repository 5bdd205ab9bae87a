"""The whole decision process of pruning a network group by group, without gymnasium in it.

Legend: G groups, L levels of a group, F features of an observation.

A state is the tuple of kept units decided so far. Each action is the sparsity of the next group;
it is projected to what keeps the budget reachable, so a finished plan always meets the budget. What
the last levels leave over is then given back to the groups that lost most against what was asked.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_env.errors import BudgetError, PlanError, look_up
from prune_env.mdp.candidates import TaskOptions, prepare
from prune_env.mdp.rewards import Outcome, Reward, kl, reward_named
from prune_env.measure.costs import CostModel, Metric, metric_index
from prune_env.measure.evaluators import Hopeless, Metrics
from prune_env.structure.groups import PrunableGroup
from prune_env.surgery.plan import PruningPlan

Kept = tuple[int, ...]
Units = NDArray[np.int64]
Evaluate = Callable[[Kept], Metrics]
Race = Callable[[Kept, Hopeless], Metrics]

DOUBT = 2.0
"""Standard errors by which a plan must be behind the best before it is given up."""

FEATURES = (
    "position", "units", "cost_share", "cost_removable", "mass_lost_25", "mass_lost_50",
    "mass_lost_75", "cost_now", "cost_excess", "last_sparsity", "budget",
)  # fmt: skip
"""Names of the observation's entries; all unit-free, so a policy can move between networks."""


@dataclass(frozen=True)
class State:
    """Where an episode stands: kept units and asked sparsities of the groups decided so far."""

    kept: Kept = ()
    asked: tuple[float, ...] = ()


def give_back(task: PruningTask, kept: Kept, asked: Sequence[float]) -> Kept:
    """Spend the budget to the last level; see `PruningTask.fill`."""
    return task.fill(kept, asked)


def leave(task: PruningTask, kept: Kept, asked: Sequence[float]) -> Kept:
    """Leave the plan as it is: for rewards that pay for every FLOP saved, like AMC's."""
    return kept


Leftover = Callable[["PruningTask", Kept, Sequence[float]], Kept]
LEFTOVERS: dict[str, Leftover] = {"give_back": give_back, "leave": leave}


def leftover_named(name: str) -> Leftover:
    """The treatment of unspent budget called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("leftover", name, LEFTOVERS)


@dataclass(frozen=True, eq=False)
class PruningTask:
    """A network to prune, as a deterministic decision process.

    Attributes:
        groups: the prunable groups, in the order they are decided.
        costs: cost of a plan, over the same groups in the same order.
        evaluate: quality of a finished plan; the expensive part.
        race: the same, given up early where it is hopeless; None measures every plan in full.
        scores: importance of every unit, by group name, in the shape of the group's grid.
        budget: fraction of the dense cost that may remain.
        on: the cost that the budget limits.
        reward: terms of the reward of a finished plan.
        dense: quality of the dense network on the same samples.
        frozen: groups that are left alone, with their reasons, for tables.
        leftover: what is done with the budget that a finished plan has not spent.
        build: the repaired network of a plan, valid until the next call.
        name: for logs.
    """

    groups: tuple[PrunableGroup, ...]
    costs: CostModel
    evaluate: Evaluate
    scores: Mapping[str, Tensor]
    budget: float = 0.5
    on: Metric = "macs"
    reward: Reward = kl
    dense: Metrics | None = None
    frozen: tuple[PrunableGroup, ...] = ()
    leftover: Leftover = give_back
    build: Callable[[Kept], nn.Module] | None = None
    race: Race | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        metric_index(self.on)
        if not self.groups:
            raise BudgetError(
                "the task has no prunable group. Print format_groups(...) for the reasons; a model "
                "without any, or an `ignore` that covers all, leaves nothing to decide."
            )
        if not 0 < self.budget <= 1:
            raise BudgetError(
                f"budget is {self.budget}; give a fraction of the dense cost in (0, 1]."
            )
        least = float(self.costs.ratio(self._least, self.on))
        if least > self.budget:
            raise BudgetError(
                f"budget {self.budget:.3f} of the dense {self.on} cannot be reached: with every "
                f"group at its smallest level {least:.3f} remain. Raise the budget, raise "
                "max_sparsity, or let more groups be pruned."
            )

    @staticmethod
    def from_model(
        model: nn.Module,
        data: Iterable[Any],
        *,
        groups: Sequence[PrunableGroup] | None = None,
        name: str = "task",
        **options: Any,
    ) -> PruningTask:
        """The task of pruning `model`, measured on samples of its training data.

        Args:
            model: the trained dense network; it is copied, never changed.
            data: a loader over *training* data yielding (inputs, targets) or dicts with "labels";
                the first samples re-estimate statistics, the next ones pay the reward.
            groups: what `find_groups` returned, when it is at hand.
            name: for logs.
            options: fields of `TaskOptions`: budget, on, units, criterion, reward, repair, ignore,
                min_sparsity, max_sparsity, multiple_of, calibration_samples, reward_samples,
                repair_samples, stages, precision, batch_size, seed.

        Raises:
            ConfigError: an unknown option, criterion, reward or repair.
            GroupError: an `ignore` glob that matches nothing; bounds that leave no level.
            BudgetError: the budget is out of range or below what can be reached.
            DataError: an empty loader or malformed batches.
            ModelError: the model does not run on the data, or holds or gives NaN or infinity.
        """
        chosen = TaskOptions.of(options)
        reward = reward_named(chosen.reward) if isinstance(chosen.reward, str) else chosen.reward
        parts = prepare(model, data, chosen, groups)
        return PruningTask(
            groups=parts.groups,
            costs=parts.costs,
            evaluate=parts.evaluate,
            scores=parts.scores,
            budget=chosen.budget,
            on=chosen.on,
            reward=reward,
            dense=parts.evaluate.dense,
            frozen=parts.frozen,
            leftover=leftover_named(chosen.leftover),
            build=parts.evaluate.build,
            race=parts.evaluate if chosen.stages else None,
            name=name,
        )

    @property
    def length(self) -> int:
        """Steps of an episode: one per group."""
        return len(self.groups)

    @cached_property
    def orders(self) -> dict[str, Tensor]:
        """Units of each group, the last to be removed first."""
        return {group.name: group.pattern.order(self.scores[group.name]) for group in self.groups}

    @cached_property
    def _least(self) -> NDArray[np.int64]:
        return np.array([group.levels[0] for group in self.groups])

    @cached_property
    def _most(self) -> NDArray[np.int64]:
        return np.array([group.levels[-1] for group in self.groups])

    def plan(self, kept: Sequence[int], **notes: object) -> PruningPlan:
        """The plan that keeps the best `kept[g]` units of every group."""
        plan = PruningPlan.of_levels(self.groups, kept, self.orders)
        return PruningPlan(plan.groups, plan.kept, notes)

    def network(self, kept: Sequence[int]) -> nn.Module:
        """The pruned network of a plan, repaired on all calibration data: a copy to keep and tune.

        Raises:
            PlanError: `kept` is no plan of this task, or the task has no network (a toy).
        """
        if self.build is None:
            raise PlanError(f"task '{self.name}' has no network. Use PruningTask.from_model.")
        return copy.deepcopy(self.build(self._checked(kept))).requires_grad_(True)

    def within_budget(self, kept: Sequence[int] | NDArray[np.int64]) -> bool:
        """Whether a full vector of kept units meets the budget."""
        return bool(self.costs.ratio(kept, self.on) <= self.budget + 1e-12)

    def project(self, state: State, sparsity: float) -> int:
        """The level for the next group: nearest to `sparsity` that keeps the budget reachable."""
        number = len(state.kept)
        group = self.groups[number]
        levels_L = np.array(group.levels)
        kept_LG = np.tile(self._least, (len(levels_L), 1))
        kept_LG[:, :number] = state.kept
        kept_LG[:, number] = levels_L
        reachable = self.costs.ratio(kept_LG, self.on) <= self.budget + 1e-12
        top = int(levels_L[np.flatnonzero(reachable)[-1]])  # cost is monotone in kept units
        return min(top, group.nearest_level((1.0 - sparsity) * group.units))

    def advance(self, state: State, sparsity: float) -> State:
        """The state after deciding the next group; `sparsity` in [0, 1]."""
        sparsity = min(max(float(sparsity), 0.0), 1.0)
        kept = (*state.kept, self.project(state, sparsity))
        asked = (*state.asked, sparsity)
        if len(kept) == self.length:
            kept = self.leftover(self, kept, asked)
        return State(kept, asked)

    def fill(self, kept: Sequence[int], asked: Sequence[float]) -> Kept:
        """Give back what the budget still allows, level by level.

        First to the group that lost most against what was asked, so that being late in the walk
        is no disadvantage. Afterwards no single group can be raised within the budget.
        """
        now = np.array(kept)
        group_R, level_R = self._raises(now, asked)
        while len(group_R):
            # Cost is monotone: what fits is a prefix of the raises. The group of the first that
            # does not fit is full, the others go on.
            exceeds = partial(self._exceeds, now, group_R, level_R)
            count = bisect_left(range(1, len(group_R) + 1), True, key=exceeds)
            now[group_R[:count]] = level_R[:count]
            rest = group_R[count:] != (group_R[count] if count < len(group_R) else -1)
            group_R, level_R = group_R[count:][rest], level_R[count:][rest]
        return tuple(now.tolist())

    def _raises(self, now: Units, asked: Sequence[float]) -> tuple[Units, Units]:
        """Every raise of a group to its next level: R groups and levels, greatest loss first."""
        group, level, loss = [], [], []
        for number, (kept, sparsity) in enumerate(zip(now.tolist(), asked, strict=True)):
            units, levels = self.groups[number].units, self.groups[number].levels
            steps = levels[levels.index(kept) :]
            for before, after in pairwise(steps):
                group.append(number)
                level.append(after)
                loss.append(((1.0 - sparsity) * units - before) / units)
        order = np.argsort(-np.array(loss), kind="stable")
        return np.array(group, dtype=np.int64)[order], np.array(level, dtype=np.int64)[order]

    def _exceeds(self, now: Units, group_R: Units, level_R: Units, count: int) -> bool:
        trial = now.copy()
        trial[group_R[:count]] = level_R[:count]  # of several raises of a group the last holds
        return not self.within_budget(trial)

    def decode(self, asked: Sequence[float]) -> Kept:
        """A whole plan at once: asked sparsities, shifted together until the budget is met.

        No group is favoured by its place. `decode([0] * length)` is the uniform plan.

        Raises:
            PlanError: not one sparsity per group.
        """
        if len(asked) != self.length:
            raise PlanError(f"{len(asked)} sparsities for {self.length} groups.")
        want = np.clip(np.array(asked, dtype=np.float64), 0.0, 1.0)
        low, high = -1.0, 1.0
        for _ in range(30):
            shift = (low + high) / 2
            if self.within_budget(self._snap(want + shift)):
                high = shift
            else:
                low = shift
        shifted = np.clip(want + high, 0.0, 1.0)
        return self.leftover(self, self._snap(shifted), shifted.tolist())

    def _snap(self, sparsity_G: NDArray[np.float64]) -> Kept:
        keep_G = 1.0 - np.clip(sparsity_G, 0.0, 1.0)
        pairs = zip(self.groups, keep_G, strict=True)
        return tuple(group.nearest_level(float(keep) * group.units) for group, keep in pairs)

    @cached_property
    def uniform_sparsity(self) -> float:
        """The sparsity that, asked of every group, meets the budget."""
        kept = np.array(self.decode([0.0] * self.length))
        return float(1.0 - (kept / self.costs.units).mean())

    def outcome(self, kept: Sequence[int], rival: Outcome | None = None) -> Outcome:
        """Measure a finished plan: one charged evaluation.

        Args:
            kept: kept units per group.
            rival: the best so far; a plan that falls behind it by more than chance explains may be
                given up before all samples are measured (if the task has stages).

        Raises:
            PlanError: `kept` is not a level of every group, or exceeds the budget.
        """
        kept = self._checked(kept)
        if rival is None or self.race is None:
            return self._rewarded(kept, self.evaluate(kept))
        best = rival.reward

        def hopeless(metrics: Metrics) -> bool:
            return self._rewarded(kept, metrics.at_best(DOUBT)).reward < best

        return self._rewarded(kept, self.race(kept, hopeless))

    def _rewarded(self, kept: Kept, metrics: Metrics) -> Outcome:
        values = self.costs(kept)
        ratios = values / self.costs.dense
        outcome = Outcome(
            kept=kept,
            metrics=metrics,
            flops=2.0 * float(values[0]),
            flops_ratio=float(ratios[0]),
            params_ratio=float(ratios[1]),
        )
        terms = {name: float(value) for name, value in self.reward(outcome).items()}
        return Outcome(**{**vars(outcome), "terms": terms})

    def _checked(self, kept: Sequence[int]) -> Kept:
        if len(kept) != self.length:
            raise PlanError(f"{len(kept)} numbers of kept units for {self.length} groups.")
        for group, level in zip(self.groups, kept, strict=True):
            if level not in group.levels:
                raise PlanError(
                    f"{level} kept units is not a level of group '{group.name}' ({group.units} "
                    f"units, levels {group.levels[0]} to {group.levels[-1]}). Use task.decode(...)."
                )
        if not self.within_budget(kept):
            ratio = float(self.costs.ratio(kept, self.on))
            raise PlanError(
                f"the plan leaves {ratio:.3f} of the {self.on}, the budget is {self.budget:.3f}. "
                "Use task.decode(...) to meet it."
            )
        return tuple(int(level) for level in kept)

    def observe(self, state: State) -> NDArray[np.float32]:
        """What an agent sees before the next decision: `FEATURES`, shape (F,), in [0, 1]."""
        number = min(len(state.kept), self.length - 1)
        fixed = self._static_features[number]
        now = self._most.copy()
        now[: len(state.kept)] = state.kept
        ratio = float(self.costs.ratio(now, self.on))
        excess = max(0.0, ratio - self.budget)
        last = 1.0 - state.kept[-1] / self.groups[len(state.kept) - 1].units if state.kept else 0.0
        moving = [ratio, excess, last, self.budget]
        return np.concatenate([fixed, moving]).clip(0.0, 1.0).astype(np.float32)

    @cached_property
    def _static_features(self) -> NDArray[np.float64]:
        rows = []
        for number, group in enumerate(self.groups):
            later = self._most.copy()
            later[number:] = self._least[number:]
            removable = 1.0 - float(self.costs.ratio(later, self.on))
            position = number / max(1, self.length - 1)
            units = math.log2(group.units) / 16.0  # 65,536 units and more read as 1
            scores_U = self.scores[group.name].double().flatten().abs().sort().values
            scores_U = scores_U[len(scores_U) - group.units :]  # absent units are no mass
            lost = [_mass_lost(scores_U, share) for share in (0.25, 0.5, 0.75)]
            rows.append([position, units, self.costs.share(number, self.on), removable, *lost])
        return np.array(rows)


def _mass_lost(scores_U: Tensor, share: float) -> float:
    """Fraction of a group's score, ascending by unit, that its weakest `share` of units holds."""
    total = float(scores_U.sum())
    return float(scores_U[: int(share * len(scores_U))].sum()) / total if total > 0 else 0.0
