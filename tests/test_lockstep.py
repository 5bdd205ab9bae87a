"""N lanes in lockstep are N episodes of the task, whatever their budgets and actions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import asked_of, reachable, tasks

from prune_env.errors import BudgetError, PruneEnvError
from prune_env.mdp.leftover import LEFTOVERS
from prune_env.mdp.lockstep import Walk, plans_beside
from prune_env.mdp.path import greedy_path
from prune_env.mdp.rules import as_kept
from prune_env.mdp.task import PruningTask, State
from prune_env.testing import toy_task


@st.composite
def variants(draw: st.DrawFn) -> PruningTask:
    """Tasks with a prior that is not uniform, and either treatment of what is left over."""
    task = draw(tasks())
    random = np.random.default_rng(draw(st.integers(0, 99)))
    path = greedy_path(task.rules, [random.random(top + 1) for top in task.rules.top_G])
    task = draw(st.sampled_from([task, task.around(path)]))
    return replace(task, leftover=LEFTOVERS[draw(st.sampled_from(sorted(LEFTOVERS)))])


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=60)
def test_lanes_are_episodes(data: st.DataObject) -> None:
    task, count = data.draw(variants()), data.draw(st.integers(1, 4))
    budgets = [data.draw(reachable(task)) for _ in range(count)]
    asked_NG = np.array([data.draw(asked_of(task)) for _ in range(count)]) * 2 - 0.5
    lanes, own = Walk(task, np.array(budgets)), [task.at(budget) for budget in budgets]
    states = [State()] * count
    for number in range(task.length):
        check(lanes, own, states)
        assert not lanes.finished
        completed = [one.complete(state) for one, state in zip(own, states, strict=True)]
        assert [as_kept(kept_G) for kept_G in lanes.completed_NG] == completed
        prior = [one.prior(state) for one, state in zip(own, states, strict=True)]
        assert lanes.prior_NA[:, 0].tolist() == prior
        lanes.advance(asked_NG[:, [number]])
        pairs = zip(own, states, asked_NG[:, number].clip(0.0, 1.0), strict=True)
        states = [one.advance(state, sparsity) for one, state, sparsity in pairs]
    assert lanes.finished
    check(lanes, own, states)
    with pytest.raises(PruneEnvError, match="these episodes are over"):
        lanes.advance(asked_NG[:, [0]])


def check(lanes: Walk, own: list[PruningTask], states: list[State]) -> None:
    """The same decisions, and the rest whole; the same observations but for rounding."""
    number = lanes.number
    whole = lanes.task.rules.most_G[number:].tolist()
    assert lanes.kept_NG.tolist() == [[*state.kept, *whole] for state in states]
    seen_NF = np.stack([one.observe(state) for one, state in zip(own, states, strict=True)])
    assert lanes.observation_NF.dtype == seen_NF.dtype
    np.testing.assert_allclose(lanes.observation_NF, seen_NF, rtol=1e-6, atol=0)


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=60)
def test_whole_plans_beside_the_path_are_the_tasks(data: st.DataObject) -> None:
    task, count = data.draw(variants()), data.draw(st.integers(1, 4))
    budgets = [data.draw(reachable(task)) for _ in range(count)]
    offset_NG = np.array([data.draw(asked_of(task)) for _ in range(count)]) * 2 - 1
    found = plans_beside(task, offset_NG, np.array(budgets))
    own = zip(offset_NG, budgets, strict=True)
    plans = [task.at(budget).beside(row.tolist()) for row, budget in own]
    assert [as_kept(kept_G) for kept_G in found] == plans


def test_following_the_prior_is_the_prior() -> None:
    task = toy_task(budget=0.55, length=5, width=17)
    lanes = Walk(task, np.array([0.3, 0.55, 1.0]))
    completed = lanes.completed_NG
    while not lanes.finished:
        lanes.advance(lanes.prior_NA)
    assert (lanes.kept_NG >= completed).all()  # what is left over is given back


def test_a_budget_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"budget 1e-05 .*cannot be reached"):
        Walk(toy_task(), np.array([0.5, 1e-5]))
    with pytest.raises(BudgetError, match="budget is nan"):
        Walk(toy_task(), np.array([0.5, np.nan]))


def test_the_budgets_given_are_not_changed() -> None:
    budget_N = np.array([0.5, 0.7])
    lanes = Walk(toy_task(), budget_N)
    lanes.advance(np.array([[0.2], [0.9]]))
    assert budget_N.tolist() == [0.5, 0.7]
