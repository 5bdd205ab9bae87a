"""The arithmetic of N plans: each law compares it with one plan at a time, or with brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import asked_of, reachable, tasks

from prune_env.mdp.rules import SLACK, Floats, Rules, Units, as_kept, bisect
from prune_env.mdp.task import PruningTask, State
from prune_env.testing import toy_task


def rows_of(data: st.DataObject, task: PruningTask, count: int) -> Floats:
    """Asked sparsities (N, G)."""
    return np.array([data.draw(asked_of(task)) for _ in range(count)])


def budgets_of(data: st.DataObject, task: PruningTask, count: int) -> Floats:
    """Reachable budgets (N,)."""
    return np.array([data.draw(reachable(task)) for _ in range(count)])


@given(data=st.data())
def test_rules_are_the_tasks(data: st.DataObject) -> None:
    task = data.draw(tasks())
    rules = task.rules
    assert rules.units_G.tolist() == [group.units for group in task.groups]
    for number, group in enumerate(task.groups):
        top = int(rules.top_G[number])
        assert tuple(rules.level_GL[number, : top + 1]) == group.levels
        assert set(rules.level_GL[number, top:]) == {group.levels[-1]}
        assert (rules.least_G[number], rules.most_G[number]) == (group.levels[0], group.levels[-1])
    kept_NG = rules.snap(rows_of(data, task, 3))
    for kept_G, ratio in zip(kept_NG, rules.ratio(kept_NG), strict=True):
        assert ratio == pytest.approx(float(task.costs.ratio(kept_G, task.on)), rel=1e-12)


@given(data=st.data())
@settings(max_examples=100)
def test_snapping_is_the_nearest_level(data: st.DataObject) -> None:
    """Also half-way between two levels, at none and at all, and outside [0, 1]."""
    rules = data.draw(tasks()).rules
    middles = [[1 - (a + b) / 2 / g.units for a in g.levels for b in g.levels if b >= a]
               for g in rules.groups]  # fmt: skip
    row = [data.draw(st.sampled_from(m) | st.floats(-1, 2)) for m in middles]
    (kept_G,) = rules.snap(np.array([row]))
    for group, sparsity, kept in zip(rules.groups, row, kept_G, strict=True):
        assert kept == group.nearest_level((1 - min(max(sparsity, 0.0), 1.0)) * group.units)


@given(data=st.data())
def test_numbers_are_places_of_levels(data: st.DataObject) -> None:
    rules = data.draw(tasks()).rules
    place_G = np.array([data.draw(st.integers(0, int(top))) for top in rules.top_G])
    kept_G = rules.level_GL[np.arange(len(place_G)), place_G]
    assert rules.number(kept_G[None].astype(float)).tolist() == [place_G.tolist()]
    assert rules.snap(rules.sparsity(kept_G[None])).tolist() == [kept_G.tolist()]
    for number, place in enumerate(place_G):
        one = rules.number(kept_G[number : number + 1, None].astype(float), slice(number, None))
        assert one[0, 0] == place


@given(data=st.data())
@settings(max_examples=60)
def test_projecting_n_rows_is_projecting_each(data: st.DataObject) -> None:
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    number = data.draw(st.integers(0, task.length - 1))
    budget_N, asked_NG = budgets_of(data, task, count), rows_of(data, task, count)
    own = [task.at(float(budget)) for budget in budget_N]
    states = [walked(one, row[:number]) for one, row in zip(own, asked_NG, strict=True)]
    kept_NG = np.array([[*s.kept, *task.rules.most_G[number:]] for s in states])
    before = kept_NG.copy()
    found = task.rules.project(kept_NG, number, asked_NG[:, number], budget_N)
    assert (kept_NG == before).all()
    for row, (one, state) in enumerate(zip(own, states, strict=True)):
        assert found[row] == one.project(state, asked_NG[row, number])
        assert found[row] == projected_by_hand(one, state, asked_NG[row, number])


def walked(task: PruningTask, asked: Floats) -> State:
    state = State()
    for sparsity in asked:
        state = State((*state.kept, task.project(state, sparsity)), (*state.asked, sparsity))
    return state


def projected_by_hand(task: PruningTask, state: State, sparsity: float) -> int:
    """The level nearest to what is asked, or the largest below it that leaves a way out."""
    group, later = task.groups[len(state.kept)], task.groups[len(state.kept) + 1 :]
    asked = group.nearest_level((1 - sparsity) * group.units)
    rest = [g.levels[0] for g in later]
    return max(
        level
        for level in group.levels
        if level <= asked
        and (task.within_budget([*state.kept, level, *rest]) or level == group.levels[0])
    )


@given(data=st.data())
@settings(max_examples=60)
def test_filling_n_rows_is_filling_each_level_by_level(data: st.DataObject) -> None:
    """From any plan within the budget, whatever was wanted of it."""
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    rules, asked_NG = task.rules, rows_of(data, task, count)
    base = [rules.level_GL[g, data.draw(st.integers(0, int(t)))] for g, t in enumerate(rules.top_G)]
    kept_NG = np.array([base] * count)
    spent = float(rules.ratio(kept_NG)[0])
    budget_N = np.array([data.draw(st.floats(spent, 1.0)) for _ in range(count)])
    found = rules.fill(kept_NG, (1 - asked_NG) * rules.units_G, budget_N)
    assert (kept_NG == np.array([base] * count)).all()
    for row, budget in enumerate(budget_N):
        one = task.at(float(max(budget, 1e-9)))
        assert as_kept(found[row]) == one.fill(tuple(base), asked_NG[row].tolist())
        assert as_kept(found[row]) == filled_by_hand(one, base, asked_NG[row])


def filled_by_hand(task: PruningTask, base: list[int], asked_G: Floats) -> tuple[int, ...]:
    """Level by level to who lost most, until nothing fits."""
    now, shut = list(base), set[int]()
    while True:
        losses = {}
        for number, group in enumerate(task.groups):
            if number not in shut and now[number] < group.levels[-1]:
                lost = ((1 - asked_G[number]) * group.units - now[number]) / group.units
                losses[number] = lost
        if not losses:
            return as_kept(now)
        first = max(losses, key=lambda number: (losses[number], -number))
        levels = task.groups[first].levels
        raised = [*now]
        raised[first] = levels[levels.index(now[first]) + 1]
        if task.within_budget(raised):
            now = raised
        else:
            shut.add(first)


@given(data=st.data())
@settings(max_examples=60)
def test_decoding_n_rows_is_decoding_each_as_little_as_the_budget_asks(
    data: st.DataObject,
) -> None:
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    rules, asked_NG = task.rules, rows_of(data, task, count)
    budget_N = budgets_of(data, task, count)

    def want(shift_N: Floats) -> Floats:
        return np.clip(asked_NG + shift_N[:, None] - 1.0, 0.0, 1.0)

    shift_N = rules.decode(want, 2.0, budget_N)
    kept_NG = rules.snap(want(shift_N))
    assert (rules.ratio(kept_NG) <= budget_N + SLACK).all()
    less_N = np.maximum(shift_N - 1e-8, 0.0)
    enough = (shift_N < 1e-8) | (rules.ratio(rules.snap(want(less_N))) > budget_N + SLACK)
    assert enough.all()
    filled_NG = task.leftover(rules, kept_NG, want(shift_N), budget_N)
    for row, budget in enumerate(budget_N):
        assert as_kept(filled_NG[row]) == task.at(float(budget)).decode(asked_NG[row].tolist())


@given(
    ends=st.lists(st.tuples(st.integers(-5, 20), st.integers(0, 30)), min_size=1, max_size=5),
    share=st.floats(0, 1),
)
def test_bisection_finds_the_largest_that_fits(ends: list[tuple[int, int]], share: float) -> None:
    low_N = np.array([low for low, _ in ends])
    high_N = low_N + np.array([length for _, length in ends])
    last_N = low_N + np.floor(share * (high_N - low_N)).astype(np.int64)
    tried: list[Units] = []

    def fits(place_N: Units) -> np.ndarray:  # type: ignore[type-arg]
        tried.append(place_N)
        return place_N <= last_N

    before = low_N.copy(), high_N.copy()
    assert bisect(fits, low_N, high_N).tolist() == last_N.tolist()
    assert (low_N == before[0]).all()
    assert (high_N == before[1]).all()
    assert len(tried) <= math.ceil(math.log2(max(high_N - low_N) + 1))


def test_a_group_of_one_level_stays() -> None:
    task = toy_task(length=1, width=4)
    rules = Rules((replace(task.groups[0], min_keep=3, max_keep=3),), task.costs, "macs")
    assert rules.snap(np.array([[0.0], [1.0]])).tolist() == [[3], [3]]
    assert rules.fill(np.array([[3]]), np.array([[0.0]]), np.ones(1)).tolist() == [[3]]
    assert rules.project(np.array([[3]]), 0, np.ones(1), np.ones(1)).tolist() == [3]
