"""From a trained network and its data to what a task is made of."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from prune_env.calibration.gradients import loss_gradients
from prune_env.calibration.statistics import Calibration
from prune_env.checks import check_fields
from prune_env.costs.model import CostModel, Metric
from prune_env.criteria.elementwise import Criterion, require_finite
from prune_env.criteria.scorers import Evidence, score_groups
from prune_env.errors import ConfigError, DataError, ModelError
from prune_env.fingerprint import DIGEST, Identity, fingerprint, identity_of
from prune_env.mdp.options import AS_IS, CHECKS, TUNED, unknown_option
from prune_env.mdp.rewards import Reward, require_reward
from prune_env.mdp.rules import require_reachable
from prune_env.plan.cut import Candidates
from prune_env.plan.delivery import calibration_batches, fingerprint_of, repaired
from prune_env.plan.plan import PruningPlan
from prune_env.plan.recipe import CALIBRATION_SAMPLES, Recipe
from prune_env.quality.batches import (
    Batch,
    channels_last,
    first_samples,
    loader_of,
    parted,
    take_batches,
    take_then,
)
from prune_env.quality.choosing import Wish
from prune_env.quality.evaluators import Evaluator, Hopeless, Metrics
from prune_env.quality.fresh import Fresh, beside
from prune_env.quality.inference import Inference, fitting_batch
from prune_env.quality.objectives import Objective, Rows
from prune_env.quality.outputs import AUTO, Said
from prune_env.recovery.short import ShortTuning
from prune_env.recovery.training import Tuning
from prune_env.repair.build import build_ladders
from prune_env.repair.ladder import Ladders
from prune_env.repair.repairs import Repair, repair_named
from prune_env.structure.blame import naming_layer
from prune_env.structure.copies import copied, sharing
from prune_env.structure.entry import require_loaded
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, device_of
from prune_env.structure.options import PerGroup, constrain
from prune_env.structure.rewrite import tensors_of
from prune_env.units import groups_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskOptions:
    """What a user may choose about a task.

    Attributes:
        budget: fraction of the dense cost that may remain.
        on: the cost it limits: "macs", "params" or "bytes".
        units: what may be removed: "structured" (all that makes tensors smaller), "sublayers",
            "unstructured", "2:4", ..., joined by "+"; see `groups_of`.
        criterion: which units go first; a name in `SCORERS` or a `Criterion`.
        repair: what is done to a candidate before it is measured; a name in `REPAIRS` or a
            function.
        reward: "divergence" (from the dense network), "figure" (what people read), "loss",
            "amc", or the objective's own word ("kl", "accuracy"); or a function from `Outcome` to
            named terms.
        leftover: what is done with unspent budget: "give_back" or "leave".
        calibration_samples: training samples for statistics and gradients.
        reward_samples: further training samples that the reward is measured on.
        fresh_samples: training samples beyond these, of which every plan that is only glimpsed at
            sees a part of its own; see `PruningTask.glimpse`.
        repair_samples: how many of the calibration samples a repair that needs data sees for
            every plan measured; the network of the final plan is repaired on all.
        goal: what plans are for: "as_is", to be used as they are cut and repaired, or "tuned", to
            be tuned: then they are measured after the first steps of a tuning.
        tuned_steps: of that, on training samples of which none pays; see `ShortTuning`, and
            `PruningTask.tuned_by` for how.
        stages: numbers of reward samples after which a search may give up a plan that cannot
            become its best; none by default, so every plan is measured on all.
        precision: of the measurement, "float32", "bfloat16", or "auto": see `Inference.of`.
        batch_size: of both; 0 chooses one whose activations fit the processor's cache.
        objective: what quality means: "auto" (by the first batch, said aloud), a name in
            `OBJECTIVES`, an `Objective`, or a function from a network to a number.
        output: name or index of the part of the model's outputs that is its logits, where that is
            not clear; an `Output` says all there is to know.
        batch: a function from what the loader gives to (inputs, targets), where it gives neither a
            pair nor a dict with "labels".
        ignore: names or globs of layers to leave alone: they keep every row and column.
        min_sparsity, max_sparsity: bounds on the fraction of units removed, for all groups or by
            layer name or glob.
        multiple_of: kept units are a multiple of this, for all groups or by name or glob.
        seed: of random criteria and of the verification of groups.

    Raises:
        ConfigError, GroupError, BudgetError: an option is of a wrong kind or out of range; the
            message names it and what to give.
    """

    budget: float = 0.5
    on: Metric = "macs"
    units: str = "structured"
    criterion: str | Criterion = "obs"
    repair: str | Repair = "least_squares+batchnorm"
    reward: str | Reward = "divergence"
    leftover: str = "give_back"
    calibration_samples: int = CALIBRATION_SAMPLES
    reward_samples: int = 1000
    fresh_samples: int = 0
    repair_samples: int = 128
    goal: str = AS_IS
    tuned_steps: int = 30
    stages: Sequence[int] = ()
    precision: str = "auto"
    batch_size: int = 0
    objective: Wish = AUTO
    output: Said = AUTO
    batch: Callable[[Any], Any] | None = None
    ignore: Sequence[str] = ()
    min_sparsity: PerGroup[float] = 0.0
    max_sparsity: PerGroup[float] = 0.9
    multiple_of: PerGroup[int] = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, CHECKS)
        if isinstance(self.reward, str):
            require_reward(self.reward, self.objective)
        if self.goal == TUNED and self.stages:
            raise ConfigError(
                "stages give plans up while they are measured, and with goal='tuned' nearly all of "
                "the time goes into tuning them before. Leave stages out."
            )

    @staticmethod
    def of(options: Mapping[str, Any]) -> TaskOptions:
        """Options from keywords.

        Raises:
            ConfigError: names an unknown option and the nearest known ones.
        """
        known = [f.name for f in dataclasses.fields(TaskOptions)]
        for name in options:
            if name not in known:
                raise ConfigError(unknown_option(name, known))
        return TaskOptions(**options)


class TaskKeywords(TypedDict, total=False):
    """The fields of `TaskOptions` as keywords, for editors and type checkers."""

    budget: float
    on: Metric
    units: str
    criterion: str | Criterion
    repair: str | Repair
    reward: str | Reward
    leftover: str
    calibration_samples: int
    reward_samples: int
    fresh_samples: int
    repair_samples: int
    goal: str
    tuned_steps: int
    stages: Sequence[int]
    precision: str
    batch_size: int
    objective: Wish
    output: Said
    batch: Callable[[Any], Any] | None
    ignore: Sequence[str]
    min_sparsity: PerGroup[float]
    max_sparsity: PerGroup[float]
    multiple_of: PerGroup[int]
    seed: int


@dataclass
class Clock:
    """Seconds spent in the parts of candidate evaluation, for benchmarks."""

    build: float = 0.0
    repair: float = 0.0
    measure: float = 0.0
    calls: int = 0


@dataclass(frozen=True, eq=False)
class CandidateEvaluator:
    """Quality of a plan: cut the network, repair it, measure it; each plan is measured once.

    Attributes:
        model: the dense network.
        candidates: the builder of smaller networks.
        groups: live groups, in the task's order.
        orders: units of each group, the last to be removed first.
        ladders: all levels of every group.
        repair: what is done to a candidate before measuring.
        recipe: how the network of a plan that is kept is made, in this process or another.
        calibration: batches for the repair of the network of a plan that is kept.
        quick: batches for the repair of a plan that is only measured.
        quality: what measures a network.
        fresh: further samples, for plans that are only glimpsed at.
        short: the tuning that plans are measured after; None: they are measured as they are.
        inference: how networks are run for the repair.
        dense: what the dense network measures.
        made_of: what else decides what is measured, see `fingerprint`.
    """

    model: nn.Module
    candidates: Candidates
    groups: tuple[PrunableGroup, ...]
    orders: Mapping[str, Tensor]
    ladders: Ladders
    repair: Repair
    recipe: Recipe
    calibration: tuple[Batch, ...]
    quick: tuple[Batch, ...]
    quality: Evaluator
    inference: Inference
    dense: Metrics
    fresh: Fresh | None = None
    short: ShortTuning | None = None
    made_of: Identity = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    cache: dict[tuple[tuple[int, ...], int | None], Metrics] = field(
        default_factory=dict, repr=False
    )
    references: dict[tuple[int, ...], list[Rows]] = field(default_factory=dict, repr=False)

    @cached_property
    def fingerprint(self) -> Identity:
        """All that decides what a plan measures, by the name of the part."""
        further = {} if self.fresh is None else {"fresh_samples": self.fresh.evaluator}
        return {
            **self.made_of,
            **({} if self.short is None else self.short.fingerprint),
            **identity_of(
                **further,
                dense_weights=DIGEST + self.ladders.made_of.model,
                calibration_samples=[self.calibration, [len(batch) for batch in self.quick]],
                reward_samples_and_dense_outputs=self.quality,
                precision="bfloat16" if self.inference.bfloat16 else "float32",
                repair=self.repair,
            ),
        }

    @property
    def objective(self) -> Objective:
        """What is measured, and how outputs are read."""
        return self.quality.objective

    @property
    def stages(self) -> Sequence[int]:
        """Numbers of samples after which a hopeless plan may be given up."""
        return self.quality.stages

    def unstaged(self) -> CandidateEvaluator:
        """The same, without stages: every plan is measured in full."""
        return dataclasses.replace(self, quality=dataclasses.replace(self.quality, stages=()))

    @property
    def passes(self) -> float:
        """Predictions that a full measurement makes; one that is trained on counts threefold."""
        tuning = 0 if self.short is None else self.short.passes
        return self.quality.samples + self._repairing + tuning

    @cached_property
    def _repairing(self) -> float:
        """Predictions that the repair of a candidate makes."""
        if not self.repair.reads_data(self.model) or self.objective.evaluate is not None:
            return 0.0
        of_a_sample = self.quality.samples / sum(map(len, self.quality.batches))
        return of_a_sample * sum(map(len, self.quick))

    def tuned_by(self, tuning: Tuning) -> CandidateEvaluator:
        """The same, plans tuned in another way before they are measured, if they are."""
        if self.short is None:
            return self
        short = dataclasses.replace(self.short, tuning=tuning)
        return dataclasses.replace(self, short=short, cache={}, references={})

    @property
    def tunes(self) -> bool:
        """Whether plans are tuned before they are measured in full."""
        return self.short is not None

    def as_measured(self, network: nn.Module) -> nn.Module:
        """What a full measurement makes of a network that is cut and repaired; itself, or tuned."""
        return network if self.short is None else self.short(network)

    def measure(
        self,
        kept: tuple[int, ...],
        samples: int | None = None,
        hopeless: Hopeless | None = None,
    ) -> Metrics:
        """Quality of a plan; of one that is to be tuned, after the first steps of it.

        With `samples` it is measured as it is, on about so many first predictions, whole batches.
        """
        if hopeless is not None:  # when it is given up depends on its rival: not to be kept
            return self._measure(kept, hopeless)
        key = (kept, samples)
        if key not in self.cache:
            some = None if samples is None else (lambda metrics: True)
            self.cache[key] = self._measure(kept, some, None if samples is None else (samples,))
        return self.cache[key]

    def _charged(self, found: Metrics) -> Metrics:
        """The same, as the part that it is of a full measurement."""
        return dataclasses.replace(found, share=(found.samples + self._repairing) / self.passes)

    @property
    def fresh_samples(self) -> int:
        """Samples that `look` draws from."""
        return 0 if self.fresh is None else self.fresh.samples

    def look(self, kept: tuple[int, ...], samples: int, reference: tuple[int, ...]) -> Metrics:
        """What about so many fresh samples say of a plan, beside a reference plan.

        Which samples, the plan decides. See `quality.fresh.beside`.
        """
        assert self.fresh is not None
        if reference not in self.references:
            self.references[reference] = self._rows(
                reference, range(len(self.fresh.evaluator.counts))
            )
        part, known = self.fresh.part(kept, samples), self.references[reference]
        rows = [known[n] for n in part] if kept == reference else self._rows(kept, part)
        found = beside(self.fresh, part, rows, known)
        return self._charged(found)

    def _rows(self, kept: tuple[int, ...], numbers: Sequence[int]) -> list[Rows]:
        assert self.fresh is not None
        with naming_layer(), _naming_plan(kept, self.objective):
            return self.fresh.evaluator.rows(self.candidate(kept), numbers)

    def forget(self) -> None:
        """Measure every plan anew, for honest times; levels that were solved stay."""
        self.cache.clear()

    def predicted_loss(self, group: str, kept: int) -> float:
        """Loss that the repair predicts for a group, by name, at a number of kept units."""
        return self.ladders.predicted_loss(group, kept)

    def network(self, kept: Sequence[int]) -> nn.Module:
        """The network of a plan that is kept, repaired on all calibration data: see `apply`."""
        plan = PruningPlan.of_levels(self.groups, kept, self.orders)
        return repaired(plan, self.model, self.calibration, self.repair, self.recipe.seed)

    def candidate(self, kept: Sequence[int]) -> nn.Module:
        """The candidate as it is measured, repaired on `quick`; valid until the next call."""
        start = time.perf_counter()
        counts = {group.name: k for group, k in zip(self.groups, kept, strict=True)}
        overlay = self.repair.overlay(self.ladders, counts)
        units = {name: self.orders[name][:k] for name, k in counts.items()}
        model = self.candidates.build(units, overlay)
        built = time.perf_counter()
        with self.inference.precision(model):
            self.repair.finish(model, self.quick)
        self.clock.build += built - start
        self.clock.repair += time.perf_counter() - built
        return model

    def _measure(
        self,
        kept: tuple[int, ...],
        hopeless: Hopeless | None,
        stages: Sequence[int] | None = None,
    ) -> Metrics:
        with naming_layer(), _naming_plan(kept, self.objective):
            model = self.candidate(kept)
            start = time.perf_counter()
            if stages is None and self.short is not None:
                model = self.short(model)
            metrics = self.quality(model, hopeless, stages)
        if stages is not None or metrics.share < 1:
            metrics = self._charged(metrics)
        self.clock.measure += time.perf_counter() - start
        self.clock.calls += 1
        return metrics


@contextmanager
def _naming_plan(kept: Sequence[int], objective: Objective) -> Iterator[None]:
    """Errors of the user's own evaluation say which plan it met."""
    try:
        yield
    except ModelError as error:
        if objective.evaluate is None:
            raise
        raise ModelError(f"{error} The plan keeps {list(kept)} units.") from error


@dataclass(frozen=True, eq=False)
class Outline:
    """What can be decided of a network: `groups` are live, `frozen` cannot be pruned."""

    groups: tuple[PrunableGroup, ...]
    frozen: tuple[PrunableGroup, ...]
    costs: CostModel


def outline(
    model: nn.Module,
    examples: Sequence[Inputs],
    options: TaskOptions,
    groups: Sequence[PrunableGroup] | None = None,
) -> Outline:
    """What a task would decide. Weights do not matter: a network can be asked before it is trained.

    Args:
        model: in eval mode.
        examples: a few samples of one batch or of several; at least one.
        options: of the task.
        groups: what `find_groups` returned, when it is at hand.

    Raises:
        GroupError: units, an `ignore` glob or bounds that do not fit the network.
        BudgetError: the budget cannot be reached, or nothing can be pruned.
    """
    example, *more = examples
    if groups is None:
        groups = groups_of(options.units, model, example, more_inputs=more, seed=options.seed)
    bounded = _constrained(groups, options)
    live = tuple(group for group in bounded if not group.frozen)
    frozen = tuple(group for group in bounded if group.frozen)
    costs = CostModel.of(model, example, live)
    require_reachable(live, costs, options.on, options.budget)
    return Outline(live, frozen, costs)


@dataclass(frozen=True, eq=False)
class Parts:
    """What `prepare` found out about a network."""

    outline: Outline
    scores: Mapping[str, Tensor]
    evaluator: CandidateEvaluator


def prepare(
    model: nn.Module,
    data: Iterable[Any],
    options: TaskOptions,
    groups: Sequence[PrunableGroup] | None = None,
) -> Parts:
    """Discover, score and price a network, and make the evaluator of its candidates.

    See `PruningTask.from_model` for the arguments and errors.
    """
    require_loaded(model)
    require_finite(tensors_of(model))
    repair = repair_named(options.repair) if isinstance(options.repair, str) else options.repair
    untouched = copied(model)
    dense = sharing(untouched)  # a pass may write to buffers
    samples = _split(dense, data, options)
    calibration, rewarding = samples.calibration, samples.rewarding
    quality = Evaluator.of(
        dense, rewarding, stages=sorted(options.stages), objective=options.objective,
        output=options.output,
    )  # fmt: skip
    objective, first = quality.objective, quality.batches[0]
    inference = Inference.of(dense, first, options.precision, objective)
    examples = [first_samples(batch, 2).inputs for batch in calibration]
    sketch = outline(dense, examples, options, groups)
    live = sketch.groups
    gradients = functools.cache(lambda: loss_gradients(dense, samples.graded, objective))

    def score(portion: Sequence[PrunableGroup], statistics: Calibration) -> dict[str, Tensor]:
        seed = options.seed + (live.index(portion[0]) if portion else 0)  # a draw for each portion
        evidence = Evidence(statistics, gradients, seed, calibration)
        return score_groups(options.criterion, dense, portion, evidence)

    built = build_ladders(dense, calibration, live, score, seed=options.seed)
    start = time.perf_counter()
    measured = quality(dense)
    _tell(sketch, time.perf_counter() - start)
    evaluator = CandidateEvaluator(
        model=untouched,
        candidates=Candidates(untouched, live),
        groups=live,
        orders=built.ladders.orders,
        ladders=built.ladders,
        repair=repair,
        recipe=_recipe(options, untouched, calibration),
        calibration=tuple(calibration),
        quick=tuple(take_batches(calibration, options.repair_samples)),
        quality=dataclasses.replace(quality, inference=inference),
        fresh=_fresh(dense, samples.fresh, quality.objective, inference),
        short=_short(untouched, samples, options, objective),
        inference=inference,
        dense=measured,
        made_of=_made_of(untouched, options, objective),
    )
    return Parts(sketch, built.scores, evaluator)


def _fresh(
    dense: nn.Module, batches: Sequence[Batch], objective: Objective, inference: Inference
) -> Fresh | None:
    if not batches or objective.evaluate is not None:  # a function has its own samples
        return None
    return Fresh(Evaluator.of(dense, batches, inference, objective=objective))


def _short(
    dense: nn.Module, samples: _Samples, options: TaskOptions, objective: Objective
) -> ShortTuning | None:
    if options.goal != TUNED:
        return None
    return ShortTuning(dense, tuple(samples.tuning), options.tuned_steps, objective)


def _tell(found: Outline, seconds: float) -> None:
    """Say once what was found; to be seen with `logging.basicConfig(level=logging.INFO)`."""
    reasons = Counter(group.frozen for group in found.frozen)
    left = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    _log.info(
        "%d groups of %d units can be pruned, %d are left alone%s. Measuring the dense "
        "network takes %.3g s, a plan about as long.",
        len(found.groups), sum(group.units for group in found.groups), len(found.frozen),
        f" ({left})" if left else "", seconds,
    )  # fmt: skip


def _recipe(options: TaskOptions, dense: nn.Module, calibration: Sequence[Batch]) -> Recipe:
    return Recipe(
        repair=options.repair if isinstance(options.repair, str) else None,
        calibration_samples=sum(map(len, calibration)),
        batch_size=max(map(len, calibration)),
        seed=options.seed,
        model=fingerprint(dense),
        data=fingerprint_of(calibration),
    )


def _made_of(dense: nn.Module, options: TaskOptions, objective: Objective) -> Identity:
    """What decides measurements beside tensors."""
    device = next((parameter.device.type for parameter in dense.parameters()), "cpu")
    return identity_of(
        network=[type(dense).__name__, str(dense)],
        criterion=options.criterion,
        output=repr(objective.output),
        objective=objective,
        stages=list(options.stages),
        seed=options.seed,
        threads=f"{torch.get_num_threads()} on {device}",
        torch=torch.__version__.partition("+")[0],
    )


def _constrained(
    groups: Sequence[PrunableGroup], options: TaskOptions
) -> tuple[PrunableGroup, ...]:
    return constrain(
        groups,
        ignore=options.ignore,
        min_sparsity=options.min_sparsity,
        max_sparsity=options.max_sparsity,
        multiple_of=options.multiple_of,
    )


@dataclass(frozen=True)
class _Samples:
    """What training samples are used for; no sample twice.

    Attributes:
        calibration: statistics of inputs are collected on these.
        graded: the same samples, in batches that the objective understands, for gradients.
        rewarding: plans are measured on these.
        fresh: plans that are only glimpsed at, each on a part of these.
        tuning: plans are tuned on these before they are measured, where they are.
    """

    calibration: list[Batch]
    graded: list[Batch]
    rewarding: list[Batch]
    fresh: list[Batch]
    tuning: list[Batch]


def _split(model: nn.Module, data: Iterable[Any], options: TaskOptions) -> _Samples:
    """The first samples calibrate, the next ones pay, the last ones are fresh; as many as asked.

    What a loader does not have is missing of the fresh ones first; one too short for the others is
    shared out among them in the same proportion.

    Raises:
        DataError: fewer than two samples, or than two batches where these must stay whole.
    """
    cut = not getattr(options.objective, "batchwise", False)
    wanted = options.calibration_samples + options.reward_samples
    device, loader = device_of(model), loader_of(data, options.batch)
    steps = options.tuned_steps if options.goal == TUNED else 0
    parts = take_then(loader, wanted + options.fresh_samples, steps, cut=cut)
    taken, tuning = ([batch.to(device) for batch in part] for part in parts)
    found = sum(map(len, taken))
    if found < 2:
        raise DataError("the loader has one sample; statistics and reward need one each at least.")
    count = _calibrating(found, options)
    first, rest = parted(taken, count, cut)
    if not rest:
        raise DataError(
            f"the loader has {len(taken)} batch(es), and the objective is of whole ones: "
            "statistics and reward need one each at least."
        )
    rest, further = parted(rest, options.reward_samples, cut)
    size = options.batch_size or fitting_batch(model, first_samples(first[0], 2).inputs)
    calibration = calibration_batches(model, first, sum(map(len, first)), size)
    rewarding, fresh = (
        [channels_last(batch) for batch in take_batches(part, None, size if cut else None)]
        if part else [] for part in (rest, further)
    )  # fmt: skip
    graded = calibration if cut else first
    if len(tuning) < steps:
        tuning += graded  # tuned on too, but never measured on
        _log.warning(
            "%d batches are left to tune on, calibration samples included, for %d tuned_steps: "
            "they are met %.1f times.", len(tuning), steps, max(1.0, steps / len(tuning)),
        )  # fmt: skip
    return _Samples(calibration, graded, rewarding, fresh, tuning)


def _calibrating(found: int, options: TaskOptions) -> int:
    """How many of the samples calibrate; says what is less than was asked for."""
    count = options.calibration_samples
    wanted = count + options.reward_samples
    if found < wanted:
        count = min(max(1, round(count * found / wanted)), found - 1)
        _log.warning(
            "the loader has %d samples, %d were asked for (calibration_samples %d and "
            "reward_samples %d): %d are used for calibration and the other %d for the reward.",
            found, wanted, options.calibration_samples, options.reward_samples, count,
            found - count,
        )  # fmt: skip
    if options.fresh_samples and found < wanted + options.fresh_samples:
        _log.warning(
            "%d of the %d fresh_samples asked for are left: plans see the same ones more often.",
            max(0, found - wanted), options.fresh_samples,
        )  # fmt: skip
    return count
