"""The decision process: the budget holds whatever is asked, and none of it is left lying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import NAMES, asked_of, dense_task, figures, tasks, toy

from prune_env.errors import (
    BudgetError,
    ConfigError,
    DataError,
    GroupError,
    ModelError,
    PlanError,
)
from prune_env.mdp.candidates import CandidateEvaluator
from prune_env.mdp.rewards import REWARDS, Outcome, reward_named
from prune_env.mdp.task import FEATURES, PruningTask, State
from prune_env.plan.cut import compact
from prune_env.quality.batches import Batch, channels_last
from prune_env.quality.evaluators import Evaluator, Metrics
from prune_env.quality.objectives import REGRESSION
from prune_env.repair.repairs import Repair, reestimate_batchnorm
from prune_env.testing import toy_inputs, toy_model, toy_task

CLASSIFIERS = [name for name in NAMES if name != "pixel_shuffle"]


def is_tight(task: PruningTask, kept: tuple[int, ...]) -> bool:
    """Within the budget, and no single group can be raised by a level within it."""
    assert all(level in group.levels for level, group in zip(kept, task.groups, strict=True))
    assert task.costs.ratio(kept, task.on) <= task.budget + 1e-12
    for number, group in enumerate(task.groups):
        higher = [level for level in group.levels if level > kept[number]]
        if higher:
            raised = (*kept[:number], higher[0], *kept[number + 1 :])
            if task.costs.ratio(raised, task.on) <= task.budget + 1e-12:
                return False
    return True


def walk(task: PruningTask, asked: list[float]) -> State:
    state = State()
    for sparsity in asked:
        state = task.advance(state, sparsity)
    return state


@given(data=st.data())
@settings(max_examples=100)
def test_every_walk_meets_the_budget_and_wastes_none(data: st.DataObject) -> None:
    task = data.draw(tasks())
    asked = data.draw(asked_of(task))
    end = walk(task, asked)
    assert end.asked == tuple(asked)
    assert is_tight(task, end.kept)
    assert task.outcome(end.kept).kept == end.kept


@given(data=st.data())
@settings(max_examples=100)
def test_every_decode_meets_the_budget_and_wastes_none(data: st.DataObject) -> None:
    task = data.draw(tasks())
    assert is_tight(task, task.decode(data.draw(asked_of(task))))


@given(data=st.data())
def test_what_is_asked_is_done_where_the_budget_allows(data: st.DataObject) -> None:
    task = replace(data.draw(tasks()), budget=1.0)
    wanted = [data.draw(st.sampled_from(group.levels)) for group in task.groups]
    state = State()
    for number, (group, level) in enumerate(zip(task.groups, wanted, strict=True)):
        assert task.project(state, 1 - level / group.units) == level
        state = State((*state.kept, level), (*state.asked, 1 - level / group.units))
        assert len(state.kept) == number + 1


def greedy_fill(task: PruningTask, kept: tuple[int, ...], asked: list[float]) -> tuple[int, ...]:
    """`fill` as its docstring says it: one level at a time, to the group that lost most."""
    now = list(kept)
    while True:
        best, loss = None, -math.inf
        for number, group in enumerate(task.groups):
            place = group.levels.index(now[number]) + 1
            if place < len(group.levels):
                raised = [*now[:number], group.levels[place], *now[number + 1 :]]
                lost = ((1 - asked[number]) * group.units - now[number]) / group.units
                if task.within_budget(raised) and lost > loss:
                    best, loss, level = number, lost, group.levels[place]
        if best is None:
            return tuple(now)
        now[best] = level


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=100)
def test_fill_is_its_definition(data: st.DataObject) -> None:
    task = data.draw(tasks())
    asked = data.draw(asked_of(task))
    kept = tuple(group.levels[0] for group in task.groups)
    assert task.fill(kept, asked) == greedy_fill(task, kept, asked)


@given(data=st.data())
def test_observations_lie_in_the_box(data: st.DataObject) -> None:
    task = data.draw(tasks())
    state = State()
    for sparsity in [*data.draw(asked_of(task)), None]:
        seen = task.observe(state)
        assert seen.shape == (len(FEATURES),)
        assert seen.dtype == np.float32
        assert ((seen >= 0) & (seen <= 1)).all()
        named = dict(zip(FEATURES, seen.tolist(), strict=True))
        now = [*state.kept, *(g.units for g in task.groups[len(state.kept) :])]
        assert named["cost_now"] == pytest.approx(float(task.costs.ratio(now, task.on)))
        assert named["budget"] == pytest.approx(task.budget)
        if sparsity is not None:
            state = task.advance(state, sparsity)


def test_features_of_a_state_by_hand() -> None:
    task = toy_task(length=4, width=20, budget=0.6)
    seen = dict(zip(FEATURES, task.observe(State((10, 20), (0.5, 0.0))).tolist(), strict=True))
    total = 4 * 400 + 1
    assert seen == pytest.approx(
        {
            "position": 2 / 3,
            "units": math.log2(20) / 16,
            "cost_share": 400 / total,
            "cost_removable": 800 / total,
            "mass_lost_25": 15 / 210,
            "mass_lost_50": 55 / 210,
            "mass_lost_75": 120 / 210,
            "loss_25": 0.0,
            "loss_50": 0.0,
            "loss_75": 0.0,
            "prior": 0.6,  # 8 and 9 of 20 units meet what is left
            "cost_now": (200 + 3 * 400 + 1) / total,
            "cost_excess": (200 + 3 * 400 + 1) / total - 0.6,
            "last_sparsity": 0.0,
            "budget": 0.6,
        }
    )


@given(data=st.data())
def test_uniform_is_uniform(data: st.DataObject) -> None:
    """Equal groups in a chain: no two differ by more than the one level that is left over."""
    task = toy_task(width=data.draw(st.integers(5, 40)), budget=data.draw(st.floats(0.1, 1.0)))
    kept = task.decode([0.0] * task.length)
    assert max(kept) - min(kept) <= 1
    assert task.uniform_sparsity == pytest.approx(1 - sum(kept) / len(kept) / task.groups[0].units)


def test_a_plan_keeps_the_units_with_the_highest_scores() -> None:
    task = dense_task("residual")
    kept = task.decode([0.5] * task.length)
    plan = task.plan(kept, searcher="hand")
    assert tuple(plan.levels.values()) == kept
    assert plan.notes == {"searcher": "hand"}
    for group in task.groups:
        chosen = task.scores[group.name][list(plan.kept[group.name])]
        assert torch.equal(
            chosen.sort().values, task.scores[group.name].sort().values[-len(chosen) :]
        )


# ---- errors


def test_a_budget_that_cannot_be_reached_says_what_can() -> None:
    task = dense_task("residual")
    least = float(task.costs.ratio([g.levels[0] for g in task.groups]))
    assert replace(task, budget=least).decode([0.0] * 4) == tuple(g.levels[0] for g in task.groups)
    with pytest.raises(BudgetError, match=f"cannot be reached.*smallest level {least:.4g} remain"):
        replace(task, budget=least * 0.99)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, math.nan])
def test_a_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(BudgetError, match=r"give a fraction of the dense cost in \(0, 1\]"):
        replace(dense_task("residual"), budget=budget)


def test_other_nonsense_is_refused() -> None:
    task = dense_task("residual")
    with pytest.raises(BudgetError, match="no cost 'flops'"):
        replace(task, on="flops")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="no prunable group"):
        replace(task, groups=())


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((8, 6, 12), "3 numbers of kept units for 4 groups"),
        (
            (8, 6, 12, 99),
            r"99 kept units is not a level of group 'b1.0' \(10 units, levels 1 to 10",
        ),
        ((8, 6, 12, 10), "leaves 1.000 of the macs, the budget is 0.500"),
    ],
)
def test_plans_that_are_not_the_tasks_are_refused(kept: tuple[int, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replace(dense_task("residual"), budget=0.5).outcome(kept)


def test_asking_for_too_few_groups_is_refused() -> None:
    with pytest.raises(PlanError, match="2 sparsities for 4 groups"):
        dense_task("residual").decode([0.5, 0.5])


# ---- rewards


def outcome(**changes: Any) -> Outcome:
    metrics = Metrics(figure=0.8, loss=0.6, divergence=0.25, samples=10)
    return replace(Outcome((3,), metrics, 2e6, 0.5, 0.4), **changes)


def test_rewards_by_hand() -> None:
    assert REWARDS["figure"](outcome()) == {"figure": 0.8}
    assert REWARDS["divergence"](outcome()) == {"divergence": -0.25}
    assert REWARDS["loss"](outcome()) == {"loss": -0.6}
    assert reward_named("rmse", REGRESSION)(outcome()) == {"figure": -0.8}
    assert REWARDS["amc"](outcome())["amc"] == pytest.approx(-0.2 * math.log(2e6))
    assert outcome(terms={"a": 0.5, "b": -2.0}).reward == -1.5
    assert reward_named("kl") is REWARDS["divergence"]
    assert reward_named("accuracy") is reward_named("figure") is REWARDS["figure"]
    with pytest.raises(ConfigError, match="'amc' is made for a fraction"):
        reward_named("amc", REGRESSION)
    with pytest.raises(ConfigError, match=r"no reward .*'regression'.* 'kl'"):
        reward_named("kl", REGRESSION)
    with pytest.raises(
        ConfigError, match=r"no reward .*'KL'.*divergence, figure, loss, amc, kl, accuracy"
    ):
        reward_named("KL")


def test_an_outcome_carries_costs_and_terms() -> None:
    task = replace(dense_task("residual"), reward=REWARDS["amc"], budget=0.5)
    kept = task.decode([0.2, 0.4, 0.6, 0.8])
    found = task.outcome(kept)
    macs, params, _ = task.costs(kept)
    dense = task.costs.dense
    assert found.flops == 2 * macs
    assert (found.flops_ratio, found.params_ratio) == (macs / dense[0], params / dense[1])
    assert found.reward == pytest.approx(-0.5 * math.log(2 * macs))


# ---- from_model


def loader(name: str, count: int = 6) -> list[tuple[Any, Tensor]]:
    """Batches of 4 labelled samples."""
    labels = torch.arange(4)
    return [(toy_inputs(name, seed=seed, batch=4), labels) for seed in range(count)]


OPTIONS: dict[str, Any] = {
    "calibration_samples": 8, "reward_samples": 16, "batch_size": 4, "precision": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_outcome_is_compact_repaired_and_measured(name: str) -> None:
    """The task's quick way gives what the public functions give."""
    model, data = toy_model(name).train(), loader(name)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    task = PruningTask.from_model(model, data, budget=0.8, repair="batchnorm", **OPTIONS)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    kept = task.decode([0.5] * task.length)
    small = compact(model, task.plan(kept)).eval()
    batches = [channels_last(Batch(*item)) for item in data]
    reestimate_batchnorm(small, batches[:2])
    by_hand = Evaluator.of(model, batches[2:])(small)
    measured = task.outcome(kept).metrics  # with BatchNorm folded, hence rounded otherwise
    assert figures(measured) == pytest.approx(figures(by_hand), rel=1e-4, abs=1e-5)
    assert task.dense == Evaluator.of(model, batches[2:])(model)
    again = PruningTask.from_model(model, data, budget=0.8, repair="batchnorm", **OPTIONS)
    assert again.outcome(kept) == task.outcome(kept)


def test_inputs_without_a_batch_dimension_are_left_whole() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model("residual")

        def forward(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
            return self.inner(x * scale + bias)  # type: ignore[no-any-return]

    inputs = (toy_inputs("residual", batch=4), torch.tensor(2.0), torch.zeros(3, 1, 1))
    task = PruningTask.from_model(Scaled().eval(), [(inputs, torch.arange(4))] * 6, **OPTIONS)
    assert task.length == 4


def test_criteria_that_need_gradients_get_them() -> None:
    task = PruningTask.from_model(
        toy_model("residual"), loader("residual"), criterion="taylor", **OPTIONS
    )
    assert all(bool((scores > 0).any()) for scores in task.scores.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budgt": 0.5}, ConfigError, "no task option 'budgt'; did you mean 'budget'"),
        ({"pruning_ratio": 0.5}, ConfigError, "here it is budget, or max_sparsity by layer"),
        ({"criterion": "l3"}, ConfigError, "no criterion 'l3'"),
        ({"reward": "x"}, ConfigError, "no reward 'x'"),
        ({"repair": "x"}, ConfigError, "no repair 'x'"),
        ({"ignore": ["nowhere.*"]}, GroupError, "matches none"),
        ({"ignore": ["*"]}, BudgetError, "no prunable group"),
        ({"budget": 0.01}, BudgetError, "cannot be reached"),
        ({"batch_size": -1}, ConfigError, "batch_size is -1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PruningTask.from_model(toy_model("residual"), loader("residual"), **{**OPTIONS, **change})


def test_data_and_models_that_cannot_be_are_refused() -> None:
    model = toy_model("residual")
    with pytest.raises(DataError, match="no samples"):
        PruningTask.from_model(model, [])
    with pytest.raises(ModelError, match="cannot run a batch of shape"):
        PruningTask.from_model(model, [(torch.randn(4, 5, 8, 8), torch.arange(4))])
    with pytest.raises(DataError, match="has 5 classes"):
        PruningTask.from_model(model, [(toy_inputs("residual", batch=4), torch.arange(4) + 3)])
    with pytest.raises(GroupError, match="found on another model"):
        PruningTask.from_model(model, loader("residual"), groups=toy("chain").groups, **OPTIONS)
    model.get_parameter("head.bias").data[0] = math.nan
    with pytest.raises(ModelError, match=r"'head.bias' holds 1 NaN"):
        PruningTask.from_model(model, loader("residual"))


@pytest.mark.long
def test_stages_give_up_what_cannot_win() -> None:
    """Given up plans measure fewer samples; whoever measures without a rival measures all."""
    model, data = toy_model("residual"), loader("residual", 30)
    options = {**OPTIONS, "reward_samples": 100, "calibration_samples": 20}
    task = PruningTask.from_model(model, data, budget=0.6, stages=(8, 40), **options)
    plans = [task.decode([(0.13 * k * g) % 1 for g in range(task.length)]) for k in range(12)]
    full = {kept: task.outcome(kept) for kept in plans}
    best = max(full.values(), key=lambda outcome: outcome.reward)
    task = PruningTask.from_model(model, data, budget=0.6, stages=(8, 40), **options)
    raced = {kept: task.outcome(kept, best.reward) for kept in plans}
    samples = {kept: outcome.metrics.samples for kept, outcome in raced.items()}
    assert set(samples.values()) <= {8, 40, 100}
    assert min(samples.values()) < 100
    for kept, outcome in raced.items():
        if outcome.metrics.samples < 100:
            assert outcome.reward < best.reward
            assert outcome.metrics.share == (outcome.metrics.samples + 20) / 120
        else:
            assert outcome == full[kept]
        assert task.outcome(kept, best.reward) == outcome
        assert task.outcome(kept) == full[kept]


@pytest.mark.parametrize(("repair_samples", "seen"), [(4, 4), (6, 6), (100, 8)])
def test_a_measured_plan_is_repaired_on_few_samples_a_kept_one_on_all(
    repair_samples: int, seen: int
) -> None:
    counts: list[int] = []

    def finish(model: nn.Module, batches: Sequence[Batch]) -> None:
        counts.append(sum(len(batch) for batch in batches))

    task = PruningTask.from_model(
        toy_model("residual"), loader("residual"), repair=Repair(finish=finish),
        repair_samples=repair_samples, **OPTIONS,
    )  # fmt: skip
    kept = task.decode([0.0] * task.length)
    task.outcome(kept)
    task.network(kept)
    assert counts == [seen, 8]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"stages": (0,)}, r"stages\[0\] is 0"), ({"precision": "half"}, "precision is 'half'")],
)
def test_bad_measurement_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PruningTask.from_model(toy_model("residual"), loader("residual"), **{**OPTIONS, **options})


def test_a_loader_that_is_too_short_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    PruningTask.from_model(toy_model("residual"), loader("residual", 4), **OPTIONS)
    (record,) = caplog.records
    assert "the loader has 16 samples, 24 were asked for" in record.getMessage()


def counts_of(task: PruningTask) -> tuple[int, int]:
    """Samples for calibration and for the reward; none is in both."""
    evaluate = task.evaluator
    assert isinstance(evaluate, CandidateEvaluator)
    assert isinstance(evaluate.quality, Evaluator)
    parts = [
        {tuple(x.flatten().tolist()) for batch in batches for x in batch.inputs}  # type: ignore[union-attr]
        for batches in (evaluate.calibration, evaluate.quality.batches)
    ]
    assert not parts[0] & parts[1]
    return len(parts[0]), len(parts[1])


@pytest.mark.parametrize("batch_size", [0, 3])
@pytest.mark.parametrize(
    ("batches", "asked", "found"),
    [(9, (10, 17), (10, 17)), (9, (12, 24), (12, 24)), (3, (10, 20), (4, 8)), (1, (1, 99), (1, 3))],
)
def test_samples_are_as_many_as_asked_and_used_once(
    batches: int, asked: tuple[int, int], found: tuple[int, int], batch_size: int
) -> None:
    """Batches of 4 are cut at the sample; a loader that is too short is shared out."""
    data = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(batches)]
    options = {"calibration_samples": asked[0], "reward_samples": asked[1]}
    task = PruningTask.from_model(
        toy_model("residual"), data, repair_samples=4, batch_size=batch_size, **options
    )
    assert counts_of(task) == found


def test_one_sample_cannot_serve_both() -> None:
    with pytest.raises(DataError, match="one sample"):
        PruningTask.from_model(toy_model("residual"), [(torch.randn(1, 3, 8, 8), torch.arange(1))])


NO_NUMBERS: list[Any] = [
    None, "0.5", 0.5, math.nan, [], [0.5], [0.5] * 5, [None] * 4, ["0.5"] * 4, [math.nan] * 4,
    [math.inf] * 4, [-1.5] * 4, [1e9] * 4, [[0.5] * 4], {1: 2}, [True] * 4, [0.5, [1], 0, 0],
]  # fmt: skip
NO_LEVELS: list[Any] = [*NO_NUMBERS, [-1] * 4, [21] * 4, [10**9] * 4, [10.0] * 4, [2**70] * 4]


@pytest.mark.parametrize("door", ["decode", "beside"])
@pytest.mark.parametrize("number", range(len(NO_NUMBERS)))
def test_what_are_no_sparsities_are_refused(door: str, number: int) -> None:
    with pytest.raises(PlanError, match=r"sparsities|offsets"):
        getattr(toy_task(budget=0.6), door)(NO_NUMBERS[number])


@pytest.mark.parametrize("number", range(len(NO_LEVELS)))
def test_what_are_no_levels_are_refused_at_every_door(number: int) -> None:
    task, wrong = toy_task(budget=0.6), NO_LEVELS[number]
    doors = [task.plan, task.within_budget, task.outcome, task.probe]
    asked = [0.0] * 4
    for door in (
        *doors,
        lambda kept: task.fill(kept, asked),
        lambda kept: task.finish(kept, asked),
    ):
        with pytest.raises(PlanError):
            door(wrong)
    with pytest.raises(PlanError):
        task.fill(task.decode(asked), NO_NUMBERS[number % len(NO_NUMBERS)])


@pytest.mark.parametrize("wrong", [None, "0.5", math.nan, -0.1, 1.1, 1e9, True, [0.5]])
def test_a_step_takes_a_sparsity(wrong: Any) -> None:
    task = toy_task(budget=0.6)
    for door in (task.advance, task.project):
        with pytest.raises(PlanError, match="sparsity"):
            door(State(), wrong)
    with pytest.raises(PlanError, match="share"):
        task.glimpse(task.decode([0.0] * 4), wrong)
    with pytest.raises(PlanError, match="share"):
        task.probe(task.decode([0.0] * 4), wrong)
    if wrong != -0.1:
        with pytest.raises(BudgetError, match="budget is"):
            task.at(wrong)


def test_states_of_another_task_and_finished_ones_are_refused() -> None:
    task = toy_task(budget=0.6)
    finished = walk(task, [0.5] * 4)
    for state in (finished, State((5,) * 5), State((99,)), State((0.5,))):  # type: ignore[arg-type]
        for door in (task.complete, task.prior, lambda state: task.advance(state, 0.5)):
            with pytest.raises(PlanError):
                door(state)
    with pytest.raises(PlanError):
        task.observe(State((99,)))
    task.observe(finished)
