"""Paths: nested plans for every budget, offsets beside them, and the greedy path's optimality."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import asked_of, reachable, tasks

from prune_env.costs.model import CostBuilder
from prune_env.mdp.path import REACH, Path, beside, greedy_path, hull, path_of, uniform_path
from prune_env.mdp.rules import SLACK, Floats, Rules, as_kept
from prune_env.mdp.task import PruningTask
from prune_env.search.allocators import PATHS
from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.testing import toy_task


@st.composite
def paths(draw: st.DrawFn, task: PruningTask) -> Path:
    """Any path: of an allocator, of random falls, or greedy by random losses."""
    rules, made = task.rules, draw(st.sampled_from([*PATHS, "random", "greedy"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if made == "random":
        return path_of(rules, [np.sort(random.random(top)) for top in rules.top_G])
    if made == "greedy":
        return greedy_path(rules, [random.random(top + 1) for top in rules.top_G])
    return PATHS[made](task)


def offsets_of(task: PruningTask) -> st.SearchStrategy[list[float]]:
    numbers = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))
    return st.lists(numbers, min_size=task.length, max_size=task.length)


@given(data=st.data())
@settings(max_examples=60)
def test_a_path_falls_level_by_level_from_whole_to_smallest(data: st.DataObject) -> None:
    task = data.draw(tasks())
    path = data.draw(paths(task))
    assert path.kept_TG[0].tolist() == task.rules.most_G.tolist()
    assert path.kept_TG[-1].tolist() == task.rules.least_G.tolist()
    place_TG = task.rules.number(path.kept_TG.astype(float))
    assert (task.rules.level_GL[np.arange(task.length), place_TG] == path.kept_TG).all()
    falls = -np.diff(place_TG, axis=0)
    assert (falls.sum(1) == 1).all()
    assert set(falls.flatten()) <= {0, 1}
    assert (np.diff(task.rules.ratio(path.kept_TG)) <= SLACK).all()


@given(data=st.data())
def test_the_uniform_path_is_uniform(data: st.DataObject) -> None:
    """At every place one sparsity explains all groups: each is at the level nearest to it."""
    rules = data.draw(tasks()).rules
    for kept_G in uniform_path(rules).kept_TG:
        lowest, highest = 0.0, 1.0
        for group, kept in zip(rules.groups, kept_G, strict=True):
            place = group.levels.index(int(kept))
            if place + 1 < len(group.levels):
                lowest = max(lowest, 1 - (kept + group.levels[place + 1]) / 2 / group.units)
            if place:
                highest = min(highest, 1 - (kept + group.levels[place - 1]) / 2 / group.units)
        assert lowest <= highest + 1e-12


@given(data=st.data())
@settings(max_examples=60)
def test_under_is_the_first_plan_that_meets_what_is_left(data: st.DataObject) -> None:
    """For any groups decided before, N budgets at once; the last where none does."""
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    path, rules = data.draw(paths(task)), task.rules
    number = data.draw(st.integers(0, task.length))
    kept_NG = rules.snap(np.array([data.draw(asked_of(task)) for _ in range(count)]))
    budget_N = np.array([data.draw(st.floats(0, 1)) for _ in range(count)])
    found = path.under(rules, kept_NG, number, budget_N)
    for row, budget in enumerate(budget_N):
        trial_TG = path.kept_TG.copy()
        trial_TG[:, :number] = kept_NG[row, :number]
        fits = np.flatnonzero(rules.ratio(trial_TG) <= budget + SLACK)
        assert found[row] == (fits[0] if len(fits) else len(trial_TG) - 1)


# ---- offsets


@given(
    sparsity=st.floats(0, 1),
    offsets=st.lists(st.floats(-1, 1), min_size=2, max_size=2).map(sorted),
)
def test_offsets_are_octaves_of_what_is_kept(sparsity: float, offsets: list[float]) -> None:
    one = np.array([sparsity])
    assert beside(one, np.zeros(1)) == pytest.approx(one, abs=1e-15)
    less, more = (float(beside(one, np.array([x]))[0]) for x in offsets)
    assert 0 <= less <= more <= 1
    kept = (1 - sparsity) * 2 ** (-REACH * offsets[1])
    assert 1 - more == pytest.approx(min(1.0, kept), abs=1e-12)
    there = float(beside(beside(one, np.ones(1)), -np.ones(1))[0])  # and back
    assert there == pytest.approx(sparsity, abs=1e-12)


@given(data=st.data())
@settings(max_examples=60)
def test_any_offsets_meet_any_budget_as_closely_as_levels_allow(data: st.DataObject) -> None:
    task, count = data.draw(tasks()), data.draw(st.integers(1, 4))
    path, rules = data.draw(paths(task)), task.rules
    offset_NG = np.array([data.draw(offsets_of(task)) for _ in range(count)])
    budget_N = np.array([data.draw(reachable(task)) for _ in range(count)])
    asked_NG = path.decode(rules, offset_NG, budget_N)
    assert ((asked_NG >= 0) & (asked_NG <= 1)).all()
    kept_NG = rules.snap(asked_NG)
    assert (rules.ratio(kept_NG) <= budget_N + SLACK).all()
    for row, budget in enumerate(budget_N):
        one = task.around(path).at(float(budget))
        plan = one.beside(offset_NG[row].tolist())
        assert one.within_budget(plan)
        assert plan == one.finish(as_kept(kept_NG[row]), asked_NG[row].tolist())


@given(data=st.data())
@settings(max_examples=60)
def test_along_the_path_beside_any_offsets_sparsities_grow(data: st.DataObject) -> None:
    task = data.draw(tasks())
    path, rules = data.draw(paths(task)), task.rules
    end = 2.0 * len(path.kept_TG) - 1.0
    offset_NG = np.tile(data.draw(offsets_of(task)), (5, 1))
    place_N = np.array(sorted([0.0, end, *(data.draw(st.floats(0, end)) for _ in range(3))]))
    asked_NG = path.around(rules, place_N, offset_NG)
    assert (np.diff(asked_NG, axis=0) >= -1e-12).all()
    assert asked_NG[-1] == pytest.approx(1.0)
    whole = data.draw(st.integers(0, len(path.kept_TG) - 1))
    kept_1G = rules.snap(path.around(rules, np.array([float(whole)]), np.zeros((1, task.length))))
    assert kept_1G[0].tolist() == path.kept_TG[whole].tolist()


@given(data=st.data())
@settings(max_examples=60)
def test_without_an_offset_the_plan_is_the_paths(data: st.DataObject) -> None:
    """With what its last level leaves over given back."""
    task = data.draw(tasks())
    task = task.around(data.draw(paths(task)))
    plan = np.array(task.beside([0.0] * task.length))
    whole_1G = task.rules.most_G[None]
    (place,) = task.path.under(task.rules, whole_1G, 0, np.array([task.budget]))
    assert (plan >= task.path.kept_TG[place]).all()
    assert task.rules.ratio(plan[None]) <= task.budget + SLACK


# ---- the greedy path


@st.composite
def separable(draw: st.DrawFn) -> tuple[Rules, list[Floats]]:
    """Three groups of four levels, the last step shorter or not, each unit of a group at a price;
    and how dear each unit of a step is to lose."""
    groups, prices = [], []
    for number in range(3):
        step, last = draw(st.sampled_from([(1, 1), (2, 2), (4, 1), (4, 3)]))
        units = 2 * step + last
        axis = Axis(f"{number}.weight", (0,), (Span(0, 1),), (units,), "out")
        groups.append(PrunableGroup(str(number), (units,), (axis,), min_keep=0, multiple_of=step))
        prices.append(draw(st.integers(1, 5)))
    builder = CostBuilder(groups)
    for group, price in zip(groups, prices, strict=True):
        builder.add(group.axes[0].tensor, (group.units, price), (1.0, 1.0, 1.0))
    slopes = st.lists(st.integers(0, 20), min_size=3, max_size=3)
    dear = [np.array(draw(slopes), np.float64) for _ in groups]
    return Rules(tuple(groups), builder.finish(), "macs"), dear


def losses_of(rules: Rules, dear: list[Floats]) -> list[Floats]:
    """Losses of levels, ascending, from how dear each unit of a step is."""
    found = []
    for group, dear_L in zip(rules.groups, dear, strict=True):
        steps = dear_L * np.diff(group.levels)
        found.append(np.concatenate([[0.0], steps[::-1].cumsum()])[::-1])
    return found


def total(rules: Rules, losses: list[Floats], kept_G: tuple[int, ...]) -> float:
    pairs = zip(rules.groups, losses, kept_G, strict=True)
    return sum(float(loss_L[group.levels.index(kept)]) for group, loss_L, kept in pairs)


def optimum(rules: Rules, losses: list[Floats], budget: float) -> float:
    """The least loss of any plan within the budget, by trying all."""
    plans = list(itertools.product(*(group.levels for group in rules.groups)))
    fits = rules.ratio(np.array(plans)) <= budget + SLACK
    return min(total(rules, losses, plan) for plan, good in zip(plans, fits, strict=True) if good)


@given(made=separable())
@settings(max_examples=60)
def test_with_convex_losses_every_plan_of_the_greedy_path_is_optimal(
    made: tuple[Rules, list[Floats]],
) -> None:
    rules, dear = made
    losses = losses_of(rules, [np.sort(dear_L)[::-1] for dear_L in dear])
    path = greedy_path(rules, losses)
    for kept_G, ratio in zip(path.kept_TG, rules.ratio(path.kept_TG), strict=True):
        assert total(rules, losses, as_kept(kept_G)) == pytest.approx(
            optimum(rules, losses, float(ratio)), abs=1e-9
        )


@given(made=separable())
@settings(max_examples=60)
def test_with_any_losses_the_greedy_path_is_optimal_at_the_corners_of_hulls(
    made: tuple[Rules, list[Floats]],
) -> None:
    rules, dear = made
    losses = losses_of(rules, dear)
    path = greedy_path(rules, losses)
    hulls = [hull_by_hand(np.array(g.levels), loss_L)
             for g, loss_L in zip(rules.groups, losses, strict=True)]  # fmt: skip
    corners = [kept_G for kept_G in path.kept_TG if total(rules, losses, as_kept(kept_G))
               <= total(rules, hulls, as_kept(kept_G)) + 1e-9]  # fmt: skip
    assert len(corners) >= 2  # the whole and the smallest
    for kept_G in corners:
        budget = float(rules.ratio(kept_G[None])[0])
        assert total(rules, losses, as_kept(kept_G)) == pytest.approx(
            optimum(rules, losses, budget), abs=1e-9
        )


def hull_by_hand(keep_L: np.ndarray, loss_L: Floats) -> Floats:  # type: ignore[type-arg]
    """The lowest chord over every level."""
    found = []
    for place, keep in enumerate(keep_L):
        chords = [
            np.interp(keep, [keep_L[a], keep_L[b]], [loss_L[a], loss_L[b]])
            for a in range(place + 1)
            for b in range(place, len(keep_L))
            if a < b or a == place == b
        ]
        found.append(min(chords))
    return np.array(found)


@given(
    steps=st.lists(st.integers(1, 4), min_size=0, max_size=7),
    values=st.lists(st.floats(-5, 5), min_size=8, max_size=8),
)
def test_the_hull_is_the_lowest_chord_over_every_level(
    steps: list[int], values: list[float]
) -> None:
    keep_L = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    loss_L = np.array(values[: len(keep_L)])
    found = hull(keep_L, loss_L)
    assert found == pytest.approx(hull_by_hand(keep_L, loss_L), abs=1e-9)
    slopes = np.diff(found) / np.diff(keep_L)
    assert all(after >= before - 1e-9 for before, after in pairwise(slopes))
    assert (found <= loss_L + 1e-12).all()


def test_a_cheap_level_behind_a_dear_one_is_seen() -> None:
    """Group 0 loses 2 for its first unit and nothing for the next two; group 1 loses 1 for each."""
    axes = [Axis(f"{n}.weight", (0,), (Span(0, 1),), (3,), "out") for n in range(2)]
    groups = tuple(PrunableGroup(str(n), (3,), (axes[n],), min_keep=0) for n in range(2))
    builder = CostBuilder(groups)
    for axis in axes:
        builder.add(axis.tensor, (3, 1), (1.0, 1.0, 1.0))
    rules = Rules(groups, builder.finish(), "macs")
    path = greedy_path(rules, [np.array([2.0, 2.0, 2.0, 0.0]), np.array([3.0, 2.0, 1.0, 0.0])])
    assert path.kept_TG.tolist() == [[3, 3], [2, 3], [1, 3], [0, 3], [0, 2], [0, 1], [0, 0]]


def test_a_group_of_one_level_stays_on_every_path() -> None:
    task = toy_task(length=2, width=3)
    groups = (replace(task.groups[0], min_keep=3), task.groups[1])
    rules = Rules(groups, task.costs, "macs")
    ladder = [np.zeros(1), np.array([3.0, 2.0, 1.0, 0.0])]
    for path in (uniform_path(rules), greedy_path(rules, ladder)):
        assert path.kept_TG.tolist() == [[3, 3], [3, 2], [3, 1], [3, 0]]
