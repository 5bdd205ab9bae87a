"""The whole decision process of pruning a network group by group, without gymnasium in it.

Legend: N plans, G groups, F features of an observation. The arithmetic is in rules.py.

A state is the tuple of kept units decided so far. Each action is the sparsity of the next group;
it is projected to what keeps the budget reachable, so a finished plan always meets the budget. What
the last levels leave over is then given back to the groups that lost most against what was asked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_env.checks import refuse
from prune_env.costs.model import CostModel, Metric, metric_index
from prune_env.errors import PlanError
from prune_env.fingerprint import NUMERICS, Identity, identity_of
from prune_env.mdp.borders import Sets, levels_of, value_of, values_of
from prune_env.mdp.candidates import TaskKeywords, TaskOptions, prepare
from prune_env.mdp.evaluator import Kept, PlanEvaluator
from prune_env.mdp.leftover import Leftover, decoded, give_back, leftover_named
from prune_env.mdp.options import BUDGET
from prune_env.mdp.path import Path, uniform_path
from prune_env.mdp.rewards import Outcome, Reward, divergence, reward_named
from prune_env.mdp.rules import SLACK, Floats, Rules, Units, as_kept, require_reachable
from prune_env.plan.plan import PruningPlan
from prune_env.quality.evaluators import Metrics
from prune_env.quality.objectives import Objective
from prune_env.recovery.training import Tuning
from prune_env.structure.groups import PrunableGroup

SHARES = (0.25, 0.5, 0.75)
"""Sparsities at which features describe a group."""

DOUBT = 2.0
"""Standard errors by which a plan must be behind the best before it is given up."""

FEATURES = (
    "position", "units", "cost_share", "cost_removable", "mass_lost_25", "mass_lost_50",
    "mass_lost_75", "loss_25", "loss_50", "loss_75", "cost_now", "cost_excess", "last_sparsity",
    "budget", "prior",
)  # fmt: skip
"""Names of the observation's entries: mass_lost is of the scores, loss is what ladders predict,
prior is the sparsity that the path asks for under the budget that is left. All are unit-free, so a
policy can move between networks."""


@dataclass(frozen=True)
class State:
    """Where an episode stands: kept units and asked sparsities of the groups decided so far."""

    kept: Kept = ()
    asked: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class PruningTask:
    """A network to prune, as a deterministic decision process.

    Attributes:
        groups: the prunable groups, in the order they are decided.
        costs: cost of a plan, over the same groups in the same order.
        evaluator: quality of a finished plan, the expensive part, and its network.
        origin: the prior that offsets start from; None is the uniform path.
        scores: importance of every unit, by group name, in the shape of the group's grid.
        budget: fraction of the dense cost that may remain.
        on: the cost that the budget limits.
        reward: terms of the reward of a finished plan.
        frozen: groups that are left alone, with their reasons, for tables.
        leftover: what is done with the budget that a finished plan has not spent.
        name: for logs.
    """

    groups: tuple[PrunableGroup, ...]
    costs: CostModel
    evaluator: PlanEvaluator
    scores: Mapping[str, Tensor]
    budget: float = 0.5
    on: Metric = "macs"
    reward: Reward = divergence
    frozen: tuple[PrunableGroup, ...] = ()
    leftover: Leftover = give_back
    origin: Path | None = None
    name: str = "task"

    def __repr__(self) -> str:
        return (
            f"PruningTask({self.name!r}, {self.length} groups, "
            f"budget={self.budget:.4g} of {self.on})"
        )

    def __post_init__(self) -> None:
        metric_index(self.on)
        BUDGET("budget", self.budget)
        require_reachable(self.groups, self.costs, self.on, self.budget)

    @staticmethod
    def from_model(
        model: nn.Module,
        data: Iterable[Any],
        *,
        groups: Sequence[PrunableGroup] | None = None,
        name: str = "task",
        **options: Unpack[TaskKeywords],
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
                repair_samples, stages, precision, batch_size, objective, output, batch, seed.

        Raises:
            ConfigError: an unknown option, criterion, reward or repair.
            GroupError: an `ignore` glob that matches nothing; bounds that leave no level.
            BudgetError: the budget is out of range or below what can be reached.
            DataError: an empty loader or malformed batches.
            ModelError: the model does not run on the data, or holds or gives NaN or infinity.
        """
        chosen = TaskOptions.of(options)
        parts = prepare(model, data, chosen, groups)
        reward = chosen.reward
        if isinstance(reward, str):
            reward = reward_named(reward, parts.evaluator.objective)
        return PruningTask(
            groups=parts.outline.groups,
            costs=parts.outline.costs,
            evaluator=parts.evaluator,
            scores=parts.scores,
            budget=chosen.budget,
            on=chosen.on,
            reward=reward,
            frozen=parts.outline.frozen,
            leftover=leftover_named(chosen.leftover),
            name=name,
        )

    @property
    def objective(self) -> Objective:
        """What quality means, and how outputs are read; `finetune` takes it too."""
        return self.evaluator.objective

    @property
    def dense(self) -> Metrics | None:
        """Quality of the dense network on the same samples; None where there is none (a toy)."""
        return self.evaluator.dense

    @property
    def length(self) -> int:
        """Steps of an episode: one per group."""
        return len(self.groups)

    @cached_property
    def orders(self) -> dict[str, Tensor]:
        """Units of each group, the last to be removed first."""
        return {group.name: group.pattern.order(self.scores[group.name]) for group in self.groups}

    @cached_property
    def fingerprint(self) -> Identity:
        """All that decides what plans are worth, by the name of the part; see `described`.

        What measures them is known by its own `fingerprint`. A callable of your own without one is
        known by its name, its code and what it encloses; give it a `fingerprint` (a mapping of
        names to texts) where that does not tell it from others.
        """
        said = getattr(self.evaluator, "fingerprint", None)
        measured = said or identity_of(evaluator=self.evaluator)
        if "dense weights" not in measured:  # which the scores follow from
            measured = {**measured, **identity_of(scores=self.scores)}
        return {
            "numerics": str(NUMERICS),
            **measured,
            **identity_of(
                budget=self.budget, on=self.on, reward=self.reward, leftover=self.leftover,
                prior=self.origin, groups=self.groups, costs=self.costs,
            ),
        }  # fmt: skip

    def plan(self, kept: Sequence[int], **notes: object) -> PruningPlan:
        """The plan that keeps the best `kept[g]` units of every group.

        Raises:
            PlanError: `kept` is not a level of every group.
        """
        plan = PruningPlan.of_levels(self.groups, self._levels(kept), self.orders)
        return PruningPlan(plan.groups, plan.kept, notes, self.evaluator.recipe)

    def network(self, kept: Sequence[int]) -> nn.Module:
        """The pruned network of a plan, repaired on all calibration data, to keep and tune.

        Bit for bit what `prune_env.apply` makes of `plan(kept)`, the dense network and the data.

        Raises:
            PlanError: `kept` is no plan of this task, or the task has no network (a toy).
        """
        return self.evaluator.network(self._checked(kept))

    def within_budget(self, kept: Sequence[int] | NDArray[np.int64]) -> bool:
        """Whether a full vector of kept units meets the budget.

        Raises:
            PlanError: `kept` is not a level of every group.
        """
        return self._fits(self._levels(kept))

    def _fits(self, kept: Kept) -> bool:
        return bool(self.costs.ratio(kept, self.on) <= self.budget + SLACK)

    @cached_property
    def rules(self) -> Rules:
        """Levels and costs as arrays, for many plans at once."""
        return Rules(self.groups, self.costs, self.on)

    @cached_property
    def path(self) -> Path:
        """The prior: `origin`, or the uniform path."""
        return self.origin or uniform_path(self.rules)

    def at(self, budget: float) -> PruningTask:
        """The same task under another budget; what does not depend on it is shared.

        Raises:
            BudgetError: it is out of range or cannot be reached.
        """
        BUDGET("budget", budget)
        if budget == self.budget:
            return self
        twin = dataclasses.replace(self, budget=budget)
        shared = {name: getattr(self, name) for name in ("rules", "path", "_static_features")}
        if "orders" in vars(self):  # sorting millions of scores is worth waiting for
            shared["orders"] = self.orders
        vars(twin).update(shared)
        return twin

    def unraced(self) -> PruningTask:
        """The same task, every plan measured in full."""
        return dataclasses.replace(self, evaluator=self.evaluator.unstaged())

    def tuned_by(self, tuning: Tuning) -> PruningTask:
        """The same task, its plans tuned as you will tune the one that is kept.

        Only where they are measured tuned at all (`goal="tuned"`); otherwise the task itself.
        """
        evaluator = self.evaluator.tuned_by(tuning)
        return (
            self if evaluator is self.evaluator else dataclasses.replace(self, evaluator=evaluator)
        )

    def as_measured(self, network: nn.Module) -> nn.Module:
        """`network(kept)` as rewards are of it: itself or, with `goal="tuned"`, a tuned copy."""
        return self.evaluator.as_measured(network)

    @property
    def tunes(self) -> bool:
        """Whether plans are tuned before they are measured."""
        return self.evaluator.tunes

    def around(self, path: Path) -> PruningTask:
        """The same task with another prior."""
        return dataclasses.replace(self, origin=path)

    def complete(self, state: State) -> Kept:
        """The plan, if the path decided the rest under the budget that is left.

        Raises:
            PlanError: the state is none of this task, or decided already.
        """
        kept, budget_1 = self._open(state), np.array([self.budget])
        number = len(kept)
        place = int(self.path.under(self.rules, self._row(kept), number, budget_1)[0])
        return (*kept, *as_kept(self.path.kept_TG[place, number:]))

    def prior(self, state: State) -> float:
        """What the path asks of the next group under the budget that is left.

        Raises:
            PlanError: as for `complete`.
        """
        number = len(self._open(state))
        return 1.0 - self.complete(state)[number] / self.groups[number].units

    def project(self, state: State, sparsity: float) -> int:
        """The level for the next group: nearest to `sparsity` that keeps the budget reachable.

        Raises:
            PlanError: as for `advance`.
        """
        return self._projected(self._open(state), sparsity)

    def _projected(self, kept: Kept, sparsity: float) -> int:
        sparsity_1 = values_of([sparsity], 1, "sparsity", 0.0, 1.0)
        budget_1 = np.array([self.budget])
        return int(self.rules.project(self._row(kept), len(kept), sparsity_1, budget_1)[0])

    def advance(self, state: State, sparsity: float) -> State:
        """The state after deciding the next group; `sparsity` in [0, 1].

        Raises:
            PlanError: the sparsity is no number in [0, 1]; the state is none of this task, or
                decided already.
        """
        before = self._open(state)
        asked_g = values_of(state.asked, len(before), "sparsities asked before", 0.0, 1.0)
        kept = (*before, self._projected(before, sparsity))
        asked = (*asked_g.tolist(), float(sparsity))
        if len(kept) == self.length:
            kept = self._finished(np.array([kept]), np.array([asked]))
        return State(kept, asked)

    def fill(self, kept: Sequence[int], asked: Sequence[float]) -> Kept:
        """Give back what the budget still allows, level by level.

        First to the group that lost most against what was asked, so that being late in the walk
        is no disadvantage. Afterwards no single group can be raised within the budget.

        Raises:
            PlanError: `kept` is not a level of every group or exceeds the budget, or `asked` is
                not one sparsity per group in [0, 1].
        """
        want_1G = (1.0 - self._sparsities(asked)) * self.rules.units_G
        kept_1G = np.array([self._checked(kept)])
        return as_kept(self.rules.fill(kept_1G, want_1G, np.array([self.budget]))[0])

    def decode(self, asked: Sequence[float]) -> Kept:
        """A whole plan at once: asked sparsities, shifted together until the budget is met.

        No group is favoured by its place. `decode([0] * length)` is the uniform plan. A task that
        leaves budget unspent (`leftover`) does not shift what meets it already.

        Raises:
            PlanError: not one sparsity per group in [0, 1].
        """
        asked_1G, budget_1 = self._sparsities(asked), np.array([self.budget])
        return as_kept(decoded(self.rules, self.leftover, asked_1G, budget_1)[0])

    def beside(self, offset: Sequence[float]) -> Kept:
        """A whole plan at once: offsets in [-1, 1] from the path, shifted along it to the budget.

        `beside([0] * length)` is the path's own plan. See `prune_env.mdp.path.beside`.

        Raises:
            PlanError: not one offset per group in [-1, 1].
        """
        offset_1G = values_of(offset, self.length, "offsets", -1.0, 1.0)[None]
        asked_1G = self.path.decode(self.rules, offset_1G, np.array([self.budget]))
        return self._finished(self.rules.snap(asked_1G), asked_1G)

    def finish(self, kept: Sequence[int], asked: Sequence[float]) -> Kept:
        """A plan after `leftover` dealt with what it has not spent of the budget.

        Raises:
            PlanError: as for `fill`.
        """
        return self._finished(np.array([self._checked(kept)]), self._sparsities(asked))

    def _finished(self, kept_1G: Units, asked_1G: Floats) -> Kept:
        kept_1G = self.leftover(self.rules, kept_1G, asked_1G, np.array([self.budget]))
        return as_kept(kept_1G[0])

    def _row(self, kept: Kept) -> Units:
        """The state as one plan; what is not decided is whole."""
        return np.array([[*kept, *self.rules.most_G[len(kept) :]]])

    @cached_property
    def uniform_sparsity(self) -> float:
        """The sparsity that, asked of every group, meets the budget."""
        kept = np.array(self.decode([0.0] * self.length))
        return float(1.0 - (kept / self.costs.units).mean())

    def outcome(self, kept: Sequence[int], rival: float | None = None) -> Outcome:
        """Measure a finished plan: one charged evaluation.

        Args:
            kept: kept units per group.
            rival: the best reward so far; a plan that falls behind it by more than chance explains
                may be given up before all samples are measured (if the task has stages).

        Raises:
            PlanError: `kept` is not a level of every group, or exceeds the budget.
        """
        kept = self._checked(kept)
        if rival is None or not self.races:
            return self._rewarded(kept, self.evaluator.measure(kept))
        best, figure = rival, self.objective.figure

        def hopeless(metrics: Metrics) -> bool:
            return self._rewarded(kept, metrics.at_best(DOUBT, figure)).reward < best

        return self._rewarded(kept, self.evaluator.measure(kept, hopeless=hopeless))

    @property
    def races(self) -> bool:
        """Whether a plan that falls behind may be given up before all samples are measured."""
        return bool(self.evaluator.stages)

    def probe(self, kept: Sequence[int], share: float = 1.0) -> Outcome:
        """Measure any levels, beyond the budget too, to learn about the network.

        They are measured on the first samples, about a `share` of all. The outcome is eligible only
        if these were all, and it meets the budget. A task that cannot measure a part measures all.

        Of a task with `goal="tuned"` they are measured as they are, which costs far less.

        Raises:
            PlanError: `kept` is not a level of every group, or `share` is no number in (0, 1].
        """
        return self._as_is(self._levels(kept), value_of(share, "share", 1e-9, 1.0))

    def _as_is(self, kept: Kept, share: float) -> Outcome:
        """What levels measure on the first samples, without tuning."""
        samples = None
        if self.dense is not None and (share < 1 or self.tunes):
            samples = math.ceil(share * self.dense.samples)
        return self._rewarded(kept, self.evaluator.measure(kept, samples))

    def glimpse(self, kept: Sequence[int], share: float) -> Outcome:
        """Measure a plan, as it is, on about a `share` of the samples; it is not eligible.

        With `fresh_samples` the plan decides which of them it is measured on, and it is measured
        beside the `reference` plan, which is known on all of them once it was glimpsed at with a
        share of `widest`: figures are estimates of what all would say. Without, the first samples
        are measured. A task that cannot measure a part measures all.

        Raises:
            PlanError: `kept` is not a level of every group, or exceeds the budget; or `share` is
                no number in (0, 1], or `widest`.
        """
        kept = self._checked(kept)
        share = value_of(share, "share", 1e-9, max(1.0, self.widest))
        if self.dense is None or not self.evaluator.fresh_samples:
            return self._as_is(kept, share)
        samples = math.ceil(share * self.dense.samples)
        looked = self.evaluator.look(kept, samples, self.reference)
        return dataclasses.replace(self._rewarded(kept, looked), eligible=False)

    @property
    def widest(self) -> float:
        """All fresh samples, as a share of those that pay; 0: there are none."""
        return self.evaluator.fresh_samples / self.dense.samples if self.dense else 0.0

    @cached_property
    def reference(self) -> Kept:
        """The uniform plan, which glimpses stand beside."""
        return self.decode([0.0] * self.length)

    @cached_property
    def dense_reward(self) -> float:
        """What the dense network would be paid; 0 where it was not measured (a toy)."""
        whole = as_kept(self.rules.most_G)
        return 0.0 if self.dense is None else self._rewarded(whole, self.dense).reward

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
        eligible = metrics.share == 1 and self._fits(kept)
        return Outcome(**{**vars(outcome), "terms": terms, "eligible": eligible})

    def _levels(self, kept: Sequence[int] | NDArray[np.int64]) -> Kept:
        row = levels_of(kept, self.groups, self._level_sets)
        if len(row) != self.length:
            raise PlanError(f"{len(row)} numbers of kept units for {self.length} groups.")
        return row

    @cached_property
    def _level_sets(self) -> Sets:
        return tuple(frozenset(group.levels) for group in self.groups)

    def _sparsities(self, asked: Sequence[float]) -> Floats:
        """The plan's asked sparsities, checked, shape (1, G)."""
        return values_of(asked, self.length, "sparsities", 0.0, 1.0)[None]

    def _decided(self, state: State) -> Kept:
        if not isinstance(state, State):
            refuse("the state", state, "a State", PlanError)
        return levels_of(state.kept, self.groups, self._level_sets)

    def _open(self, state: State) -> Kept:
        """The levels decided so far, checked, where at least one group is open."""
        kept = self._decided(state)
        if len(kept) >= self.length:
            raise PlanError(f"all {self.length} groups are decided. Begin again with State().")
        return kept

    def _checked(self, kept: Sequence[int]) -> Kept:
        kept = self._levels(kept)
        if not self._fits(kept):
            ratio = float(self.costs.ratio(kept, self.on))
            raise PlanError(
                f"the plan leaves {ratio:.3f} of the {self.on}, the budget is {self.budget:.3f}. "
                "Use task.decode(...) to meet it."
            )
        return kept

    def observe(self, state: State) -> NDArray[np.float32]:
        """What an agent sees before the next decision: `FEATURES`, shape (F,), in [0, 1].

        Raises:
            PlanError: the state is none of this task.
        """
        kept, budget_1 = self._decided(state), np.array([self.budget])
        row_F: NDArray[np.float32] = self.observe_all(self._row(kept), len(kept), budget_1)[0]
        return row_F

    def observe_all(
        self, kept_NG: Units, number: int, budget_N: Floats, place_N: Units | None = None
    ) -> NDArray[np.float32]:
        """The same for N plans of which `number` groups are decided, shape (N, F).

        `place_N` is where on the path they are, if that is known already.
        """
        rules, shown, count = self.rules, min(number, self.length - 1), len(kept_NG)
        now_NG = np.where(np.arange(self.length) < number, kept_NG, rules.most_G)
        ratio_N = rules.ratio(now_NG)
        last_N = np.zeros(count)
        if number:
            last_N = 1.0 - now_NG[:, number - 1] / rules.units_G[number - 1]
        if place_N is None:
            place_N = self.path.under(rules, now_NG, shown, budget_N)
        prior_N = 1.0 - self.path.kept_TG[place_N, shown] / rules.units_G[shown]
        fixed_NF = np.tile(self._static_features[shown], (count, 1))
        excess_N = np.maximum(0.0, ratio_N - budget_N)
        moving = np.stack([ratio_N, excess_N, last_N, budget_N, prior_N], axis=1)
        seen: NDArray[np.float32] = np.concatenate([fixed_NF, moving], 1).astype(np.float32)
        return seen.clip(0.0, 1.0)

    @cached_property
    def _static_features(self) -> Floats:
        rules, rows = self.rules, []
        for number, group in enumerate(self.groups):
            later = rules.most_G.copy()
            later[number:] = rules.least_G[number:]
            removable = 1.0 - float(self.costs.ratio(later, self.on))
            position = number / max(1, self.length - 1)
            units = math.log2(group.units) / 16.0  # 65,536 units and more read as 1
            scores_U = self.scores[group.name].double().flatten().abs().sort().values
            scores_U = scores_U[len(scores_U) - group.units :]  # absent units are no mass
            lost = [_mass_lost(scores_U, share) for share in SHARES]
            rows.append([position, units, self.costs.share(number, self.on), removable, *lost])
        return np.concatenate([np.array(rows), self._predicted_features()], axis=1)

    def _predicted_features(self) -> Floats:
        """Predicted loss of each group at three sparsities, as a share of the greatest, (G, 3)."""
        predicted = self.evaluator.predicted_loss
        if predicted(self.groups[0].name, self.groups[0].levels[0]) is None:
            return np.zeros((self.length, len(SHARES)))
        rows = [[predicted(group.name, group.nearest_level((1 - share) * group.units)) or 0.0
                 for share in SHARES] for group in self.groups]  # fmt: skip
        rows_G3: Floats = np.array(rows) / max(float(np.max(rows)), 1e-300)
        return rows_G3


def _mass_lost(scores_U: Tensor, share: float) -> float:
    """Fraction of a group's score, ascending by unit, that its weakest `share` of units holds."""
    total = float(scores_U.sum())
    return float(scores_U[: int(share * len(scores_U))].sum()) / total if total > 0 else 0.0
