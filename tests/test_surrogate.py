"""The surrogate: a Gaussian process by its definition, and good at what it is used for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env.experiments.report.correlation import spearman
from prune_env.mdp.rules import Floats, Rules, Units
from prune_env.search.surrogate import CHOICES, FLOOR, MOST, Mean, Strengths, Surrogate
from prune_env.testing import toy_task

GROUPS, WIDTH = 6, 16
SURE = Strengths(1.0, 1.0, 0.2, 2.0, 1.0, 1e-8)


@cache
def rules() -> Rules:
    return toy_task(length=GROUPS, width=WIDTH).rules


def plans(count: int, seed: int = 0) -> Units:
    """Random plans (N, G), no two alike."""
    random, found = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    while len(found) < count:
        found[tuple(random.integers(1, WIDTH + 1, GROUPS).tolist())] = None
    return np.array(list(found))


def worth(kept_NG: Units) -> Floats:
    """Groups of unlike importance on their own, and pairs that hurt more together."""
    removed_NG = 1 - kept_NG / WIDTH
    weight_G = np.array([3.0, 1.0, 0.3, 2.0, 0.1, 0.5])
    own_N = (weight_G * removed_NG**2).sum(1)
    return -(own_N + 2.0 * removed_NG[:, 0] * removed_NG[:, 3] + removed_NG[:, 1] ** 2
             * removed_NG[:, 5])  # fmt: skip


def covariance_by_hand(surrogate: Surrogate, left_G: Floats, right_G: Floats) -> float:
    """Of two plans, as the docstring says it: alone, linear, joint, over logarithms."""
    part = surrogate.strengths

    def matern(distance: float) -> float:
        scaled = 5**0.5 * distance
        return float((1 + scaled + scaled**2 / 3) * np.exp(-scaled))

    def place(kept_G: Floats) -> Floats:
        return (np.log(kept_G / WIDTH + FLOOR) - surrogate.mean_G) / surrogate.scale

    a_G, b_G = place(left_G), place(right_G)
    alone = np.mean([matern(abs(a - b) / part.length) for a, b in zip(a_G, b_G, strict=True)])
    joint = matern(float(np.sqrt(np.mean((a_G - b_G) ** 2))) / part.reach)
    return 1 + part.alone * alone + part.linear * float(np.mean(a_G * b_G)) + part.joint * joint


@pytest.mark.parametrize("strengths", [CHOICES[0], CHOICES[-1]])
def test_it_is_a_gaussian_process(strengths: Strengths) -> None:
    """Mean and spread by the textbook (Rasmussen and Williams 2006, eq. 2.25, 2.26)."""
    kept_MG, asked_NG = plans(20), plans(7, seed=1)
    fitted = Surrogate.fit(rules(), kept_MG, worth(kept_MG), strengths)
    target_M = worth(kept_MG)
    center, unit = target_M.mean(), target_M.std()

    def covariance(left_NG: Units, right_NG: Units) -> Floats:
        return np.array([[covariance_by_hand(fitted, a, b) for b in right_NG] for a in left_NG])

    known_MM = covariance(kept_MG, kept_MG) + strengths.noise * np.eye(20)
    cross_NM = covariance(asked_NG, kept_MG)
    mean_N = cross_NM @ np.linalg.solve(known_MM, (target_M - center) / unit)
    own_N = np.diag(covariance(asked_NG, asked_NG))
    left_N = own_N - (cross_NM * np.linalg.solve(known_MM, cross_NM.T).T).sum(1)
    assert fitted(asked_NG) == pytest.approx(center + unit * mean_N, rel=1e-6)
    assert fitted.spread(asked_NG) == pytest.approx(unit * np.sqrt(left_N), rel=1e-4)


def test_it_chooses_the_likeliest_strengths() -> None:
    kept_MG = plans(30)
    chosen = Surrogate.fit(rules(), kept_MG, worth(kept_MG)).strengths

    def likelihood(strengths: Strengths) -> float:
        fitted = Surrogate.fit(rules(), kept_MG, worth(kept_MG), strengths)
        known_MM = np.array([[covariance_by_hand(fitted, a, b) for b in kept_MG] for a in kept_MG])
        known_MM += strengths.noise * np.eye(30)
        target_M = (worth(kept_MG) - fitted.center) / fitted.unit
        return float(
            -0.5 * target_M @ np.linalg.solve(known_MM, target_M)
            - 0.5 * np.linalg.slogdet(known_MM)[1]
        )

    assert max(CHOICES, key=likelihood) == chosen


def test_it_passes_through_what_was_measured() -> None:
    kept_MG = plans(40)
    fitted = Surrogate.fit(rules(), kept_MG, worth(kept_MG), SURE)
    assert fitted(kept_MG) == pytest.approx(worth(kept_MG), abs=1e-3 * worth(kept_MG).std())


def test_without_a_joint_part_groups_act_alone() -> None:
    kept_MG, asked_NG = plans(40), plans(50, seed=1)
    alone = Surrogate.fit(rules(), kept_MG, worth(kept_MG), replace(CHOICES[0], joint=0.0))
    assert alone.alone(asked_NG) == pytest.approx(alone(asked_NG), rel=1e-9)
    joint = Surrogate.fit(rules(), kept_MG, worth(kept_MG), CHOICES[0])
    assert np.abs(joint.alone(asked_NG) - joint(asked_NG)).max() > 1e-3


@given(number=st.integers(0, GROUPS - 1), levels=st.tuples(*[st.integers(0, WIDTH)] * 2))
def test_effects_are_what_a_group_changes_alone(number: int, levels: tuple[int, int]) -> None:
    kept_MG = plans(25)
    fitted = Surrogate.fit(rules(), kept_MG, worth(kept_MG), CHOICES[0])
    assert fitted.effect_GL.shape == (GROUPS, WIDTH + 1)
    two_NG = np.tile(kept_MG[3], (2, 1))
    two_NG[:, number] = levels
    first, second = fitted.alone(two_NG)
    effect_L = fitted.effect_GL[number]
    assert second - first == pytest.approx(effect_L[levels[1]] - effect_L[levels[0]], abs=1e-9)


def test_effects_of_fewer_levels_are_padded_with_the_last() -> None:
    task = toy_task(length=2, width=4)
    groups = (replace(task.groups[0], min_keep=3), task.groups[1])
    short = Rules(groups, task.costs, "macs")
    kept_MG = np.array([[3, 1], [4, 2], [3, 4], [4, 0]])
    fitted = Surrogate.fit(short, kept_MG, [0.1, 0.5, 0.4, 0.2])
    assert fitted.effect_GL.shape == (2, 5)
    assert (fitted.effect_GL[0, 1:] == fitted.effect_GL[0, 1]).all()
    assert fitted.effect_GL[0, 0] != fitted.effect_GL[0, 1]


def test_it_doubts_what_is_far_away() -> None:
    near_MG = np.array([kept for kept in plans(400) if (kept >= WIDTH // 2).all()])
    near_MG = np.vstack([near_MG, WIDTH - np.random.default_rng(0).integers(0, 6, (30, GROUPS))])
    fitted = Surrogate.fit(rules(), near_MG, worth(near_MG))
    far_NG = np.full((1, GROUPS), 1)
    assert fitted.spread(near_MG).max() < 0.5 * fitted.spread(far_NG)[0]
    assert (fitted.spread(plans(50, seed=2)) > 0).all()


def test_one_fit_one_answer() -> None:
    kept_MG, asked_NG = plans(40), plans(50, seed=1)
    first, second = (Surrogate.fit(rules(), kept_MG, worth(kept_MG)) for _ in range(2))
    assert first.strengths == second.strengths
    assert (first(asked_NG) == second(asked_NG)).all()
    assert (first.spread(asked_NG) == second.spread(asked_NG)).all()


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e4, -3.0)])
def test_units_of_worth_do_not_matter(scale: float, shift: float) -> None:
    kept_MG, asked_NG = plans(40), plans(50, seed=1)
    plain = Surrogate.fit(rules(), kept_MG, worth(kept_MG))
    scaled = Surrogate.fit(rules(), kept_MG, scale * worth(kept_MG) + shift)
    assert scaled.strengths == plain.strengths
    assert scaled(asked_NG) == pytest.approx(scale * plain(asked_NG) + shift, rel=1e-6)
    assert scaled.spread(asked_NG) == pytest.approx(scale * plain.spread(asked_NG), rel=1e-6)


def test_few_or_equal_worths_are_fitted_too() -> None:
    for kept_MG, target in ((plans(1), [0.3]), (plans(5), [0.3] * 5)):
        fitted = Surrogate.fit(rules(), kept_MG, target)
        assert fitted(plans(20, seed=1)) == pytest.approx(0.3)
    twice = np.repeat(plans(4), 2, axis=0)  # measured twice, with noise
    assert np.isfinite(Surrogate.fit(rules(), twice, np.arange(8.0))(twice)).all()


def test_thinning_keeps_the_best_half_and_the_latest() -> None:
    kept_MG = plans(MOST + 100)
    target_M = np.random.default_rng(0).permutation(MOST + 100).astype(np.float64)
    fitted = Surrogate.fit(rules(), kept_MG, target_M, CHOICES[0])
    chosen = np.exp(fitted.place_MG * fitted.scale + fitted.mean_G) - FLOOR
    chosen = [tuple(row) for row in (chosen * WIDTH).round().astype(int)]
    best = set(np.argsort(-target_M)[: MOST // 2].tolist())
    others = [place for place in range(MOST + 100) if place not in best][-MOST // 2 :]
    assert chosen == [tuple(kept_MG[place]) for place in sorted([*best, *others])]


@pytest.mark.parametrize("seed", range(3))
def test_it_ranks_plans_it_has_not_seen(seed: int) -> None:
    """After 60 of the 17^6 plans."""
    kept_MG, unseen_NG = plans(60, seed), plans(200, seed + 100)
    fitted = Surrogate.fit(rules(), kept_MG, worth(kept_MG))
    assert spearman(fitted(unseen_NG), worth(unseen_NG)) > 0.95
    assert spearman(fitted.alone(unseen_NG), worth(unseen_NG)) > 0.8


def biased(kept_NG: Units) -> Floats:
    """Another measurement, in another unit, that knows nothing of the last group."""
    return 100 + 40 * worth(np.concatenate([kept_NG[:, :-1], np.full((len(kept_NG), 1), WIDTH)], 1))


@pytest.mark.parametrize("seed", range(4))
def test_what_cheaper_measurements_said_is_believed_as_far_as_it_is_right(seed: int) -> None:
    """Ten plans measured: a good mean helps, one that says nothing or the opposite hurts little."""
    measured, asked = plans(10, seed), plans(200, seed + 100)
    true = worth(asked)

    def rank(mean: Mean | None) -> float:
        found = Surrogate.fit(rules(), measured, worth(measured), mean=mean)
        return float(spearman(found(asked), true))

    def noise(kept_NG: Units) -> Floats:
        return np.sin(1000.0 * kept_NG @ np.arange(1, GROUPS + 1))

    alone = rank(None)
    assert rank(biased) > max(0.97, alone)
    assert rank(noise) > alone - 0.15
    assert rank(lambda kept_NG: -biased(kept_NG)) == alone
    told = Surrogate.fit(rules(), measured, worth(measured), SURE, mean=biased)
    assert told.slope * 40 == pytest.approx(10 / 14, rel=0.2)
    assert told(measured) == pytest.approx(worth(measured), abs=1e-4)
    assert told.spread(measured) == pytest.approx(np.zeros(10), abs=1e-3)
