"""Allocators and evolution: exact on the budget, and better than uniform where they must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import Ledger, PruningTask
from prune_env.mdp.evaluator import OfFunction
from prune_env.quality.evaluators import Metrics
from prune_env.search.allocators import PATHS, best_prior, measured_path, plan_of
from prune_env.search.evolution import evolve
from prune_env.search.neighbours import mutated
from prune_env.search.screening import learned_front, plan_expected
from prune_env.search.searchers import run_search
from prune_env.testing import toy_task

WEIGHTS = (1.0, 4.0, 0.5, 2.0)
"""How much each group of `uneven` matters."""


def loss_of(kept: tuple[int, ...]) -> float:
    removed = 1 - np.array(kept) / 20
    return float((np.array(WEIGHTS) * removed**2).sum())


def uneven(budget: float = 0.6, dense: bool = True) -> PruningTask:
    """Four equal groups whose loss is a weighted sum of squares: the best plan is known."""

    def evaluate(kept: tuple[int, ...]) -> Metrics:
        return Metrics(figure=0.0, loss=0.0, divergence=loss_of(kept), samples=1)

    task = toy_task(budget=budget)
    whole = Metrics(0.0, 0.0, 0.0, 1) if dense else None
    return dataclasses.replace(
        task,
        evaluator=OfFunction(
            evaluate,
            dense=whole,
            predicted=lambda name, level: WEIGHTS[int(name[-1])] * (1 - level / 20) ** 2,
        ),
    )


def predicting(task: PruningTask, predicted: Callable[[str, int], float] | None) -> PruningTask:
    assert isinstance(task.evaluator, OfFunction)
    return dataclasses.replace(
        task, evaluator=dataclasses.replace(task.evaluator, predicted=predicted)
    )


def best_loss(task: PruningTask) -> float:
    """By trying every plan that spends the budget."""
    total = int(task.budget * 80)
    rows = np.stack(np.meshgrid(*[np.arange(21)] * 4, indexing="ij"), -1).reshape(-1, 4)
    fits = rows[(rows.sum(1) <= total + 1)]
    fits = fits[task.costs.ratio(fits, task.on) <= task.budget + 1e-12]
    return float((np.array(WEIGHTS) * (1 - fits / 20) ** 2).sum(1).min())


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.6, 0.8])
def test_predicted_sensitivity_is_optimal_where_losses_add_up(budget: float) -> None:
    task = uneven(budget)
    (outcome,) = run_search(task, "sensitivity", 5, 0).history
    assert outcome.metrics.divergence <= best_loss(task) * 1.03


@pytest.mark.parametrize("name", ["sensitivity_measured", "probe"])
def test_measuring_allocators_find_the_same_without_predictions(name: str) -> None:
    task = predicting(uneven(), None)
    found = run_search(task, name, 40, 0)
    uniform = run_search(task, "uniform", 1, 0).best.metrics.divergence
    best = best_loss(task)
    assert found.best.metrics.divergence - best <= 0.35 * (uniform - best)
    assert len(found.history) <= 40


def test_probes_beyond_the_budget_are_charged_but_never_the_result() -> None:
    task = uneven()
    ledger = Ledger(task, 40)
    measured_path(ledger, 30)
    assert not any(outcome.eligible for outcome in ledger.history)
    assert ledger.charged == len(ledger.history) == 1 + 4 * 4
    (best,) = ledger.measure([task.decode([0.0] * 4)])
    assert ledger.best is best, "a probe of nearly the whole network has a higher reward"


def test_a_cost_of_repair_that_every_plan_pays_does_not_move_the_allocation() -> None:
    plain, task = uneven(), uneven()
    assert isinstance(task.evaluator, OfFunction)

    def dearer(kept: tuple[int, ...]) -> Metrics:
        return dataclasses.replace(task.evaluator.measure(kept), divergence=loss_of(kept) + 0.3)

    offset = dataclasses.replace(
        task, evaluator=dataclasses.replace(task.evaluator, function=dearer)
    )
    plans = [plan_of(t, measured_path(Ledger(t, 40), 30)) for t in (plain, offset)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", PATHS)
@given(budget=st.floats(0.2, 1.0), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_every_path_meets_every_budget_and_wastes_none(name: str, budget: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    task = toy_task(budget=budget)
    scores = {group.name: torch.rand(20, generator=generator) for group in task.groups}
    task = dataclasses.replace(task, scores=scores)
    kept = plan_of(task, PATHS[name](task))
    assert task.within_budget(kept)
    assert task.fill(kept, [1 - k / 20 for k in kept]) == kept, "budget was left over"


def test_owl_keeps_more_where_scores_have_outliers() -> None:
    task = toy_task(budget=0.6)
    scores = {group.name: torch.ones(20) for group in task.groups}
    scores["layer2"][:2] = 100.0
    task = dataclasses.replace(task, scores=scores)
    kept = plan_of(task, PATHS["owl"](task))
    assert kept[2] == max(kept)
    assert min(kept) < kept[2] <= min(kept) + 0.2 * 20


def test_the_best_prior_is_the_best_that_was_measured() -> None:
    task = uneven()
    ledger = Ledger(task, 20)
    path = best_prior(ledger)
    assert ledger.spent <= len(PATHS)
    assert task.outcome(plan_of(task, path)).reward == ledger.best.reward


# --- evolution ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), budget=st.floats(0.2, 1.0))
def test_children_meet_the_budget_and_waste_none(seed: int, budget: float) -> None:
    task = toy_task(budget=budget)
    generator = np.random.default_rng(seed)
    kept = task.decode(generator.uniform(0, 1, 4).tolist())
    (child,) = mutated(task, [kept], generator)
    assert task.within_budget(child)
    assert task.fill(child, [1 - k / 20 for k in child]) == child


def test_a_single_group_has_no_children_but_itself() -> None:
    task = toy_task(length=1, budget=0.6)
    kept = task.decode([0.0])
    assert mutated(task, [kept], np.random.default_rng(0)) == [kept]


def test_evolution_climbs_and_keeps_the_better() -> None:
    task = uneven()
    ledger = Ledger(task, 300)
    ledger.run(lambda led, seed: evolve(led, seed, task.decode([0.0] * 4)), 0)
    best = best_loss(task)
    assert ledger.history[0].metrics.divergence > 1.3 * best
    assert ledger.best.metrics.divergence <= 1.02 * best


# --- agents over the same task -----------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo", "ppo_plan"])
def test_agents_that_practise_find_what_a_wrong_prior_hides(name: str) -> None:
    """Predictions that say the opposite of the truth; 80 measured plans repair them."""
    wrong: Callable[[str, int], float] = lambda n, k: (1 - k / 20) ** 2 / WEIGHTS[int(n[-1])]  # noqa: E731
    task = predicting(uneven(), wrong)
    found = run_search(task, name, 80, 0)
    assert found.best.metrics.divergence <= 1.05 * best_loss(task)


BUDGETS = (0.7, 0.5, 0.4)


@pytest.mark.parametrize(("evaluations", "near"), [(90, 0.35), (14, 0.7)])
def test_one_search_of_many_budgets_knows_others_too(
    evaluations: int, near: float, tmp_path: Path
) -> None:
    """With too few evaluations for the groups alone it starts from the free paths."""
    task = uneven(0.7)
    ledger = Ledger(task, evaluations, tmp_path / "journal.jsonl")
    learned = learned_front(BUDGETS, ledger, 0)
    assert len(ledger.history) == evaluations
    for budget in (0.45, 0.6, *BUDGETS):
        there = task.at(budget)
        kept = plan_expected(learned, budget, 0)
        assert there.within_budget(kept)
        uniform, best = loss_of(there.decode([0.0] * 4)), best_loss(there)
        assert loss_of(kept) - best <= near * (uniform - best), budget
    again = Ledger(uneven(0.7), evaluations, tmp_path / "journal.jsonl")
    twin = learned_front(BUDGETS, again, 0)
    assert again.history == ledger.history
    assert plan_expected(twin, 0.45, 0) == plan_expected(learned, 0.45, 0)
