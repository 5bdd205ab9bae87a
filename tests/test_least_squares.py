"""Least squares by one factorisation, and the order of group OBS, against brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prune_env.criteria.obs import obs_scores
from prune_env.repair.least_squares import RIDGE, Solver, factorise


def _data(seed: int, units: int, block: int, rows: int = 4, n: int = 200) -> tuple[Tensor, Tensor]:
    """Correlated columns with a mean (N, D), and weights (O, D)."""
    generator = torch.Generator().manual_seed(seed)
    d = units * block
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x_ND = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing
    x_ND += torch.randn(d, generator=generator, dtype=torch.float64)
    return x_ND, torch.randn(rows, d, generator=generator, dtype=torch.float64)


def _covariance(x_ND: Tensor) -> Tensor:
    return torch.cov(x_ND.T, correction=0).reshape(x_ND.shape[1], -1)


def _solver(x_ND: Tensor, weight_OD: Tensor, block: int, shift: bool, ridge: float) -> Solver:
    if shift:
        return Solver.of(weight_OD, _covariance(x_ND), x_ND.mean(0), block, ridge)
    second_DD = x_ND.T @ x_ND / len(x_ND)
    return Solver.of(weight_OD, second_DD, torch.zeros(x_ND.shape[1]), block, ridge)


def _error(
    solver: Solver, x_ND: Tensor, weight_OD: Tensor, units: int, weight_KO: Tensor
) -> Tensor:
    """Dense minus repaired outputs, the shift given back, (N, O)."""
    shift_O = solver.missing_mean(units, weight_KO)
    return x_ND @ weight_OD.T - x_ND[:, : len(weight_KO)] @ weight_KO - shift_O


problems = st.tuples(st.integers(0, 999), st.integers(2, 6), st.integers(1, 3))


@given(problem=problems, shift=st.booleans())
def test_every_level_is_what_lstsq_finds_on_the_columns(
    problem: tuple[int, int, int], shift: bool
) -> None:
    seed, units, block = problem
    x_ND, weight_OD = _data(seed, units, block)
    solver = _solver(x_ND, weight_OD, block, shift, 0.0)
    y_NO = x_ND @ weight_OD.T
    losses = [solver.loss(0)]
    for kept in range(1, units + 1):
        part = x_ND[:, : kept * block]
        ones = torch.ones(len(part), 1, dtype=torch.float64)
        design = torch.cat([part, ones], 1) if shift else part
        wanted = torch.linalg.lstsq(design, y_NO).solution
        weight_KO = solver.weight(kept)
        torch.testing.assert_close(weight_KO, wanted[: kept * block], rtol=1e-6, atol=1e-8)
        if shift:
            moved = solver.missing_mean(kept, weight_KO)
            torch.testing.assert_close(moved, wanted[-1], rtol=1e-6, atol=1e-7)
        measured = float(_error(solver, x_ND, weight_OD, kept, weight_KO).square().mean(0).sum())
        assert solver.loss(kept) == pytest.approx(measured, rel=1e-6, abs=1e-9)
        losses.append(solver.loss(kept))
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] == 0.0
    assert not solver.raised


@given(problem=problems, ridge=st.sampled_from([0.0, RIDGE, 0.1]))
def test_missing_variance_is_the_variance_that_is_missing(
    problem: tuple[int, int, int], ridge: float
) -> None:
    seed, units, block = problem
    x_ND, weight_OD = _data(seed, units, block)
    solver = _solver(x_ND, weight_OD, block, True, ridge)
    for kept in range(1, units + 1):
        weight_KO = solver.weight(kept)
        dense_O = (x_ND @ weight_OD.T).var(0, correction=0)
        repaired_O = (x_ND[:, : len(weight_KO)] @ weight_KO).var(0, correction=0)
        found_O = solver.missing_variance(kept, weight_KO)
        torch.testing.assert_close(found_O, dense_O - repaired_O, rtol=1e-6, atol=1e-8)


DEGENERATE = ["dead", "few", "constant", "zero", "copies", "tiny", "huge", "mixed"]


def _degenerate(kind: str) -> tuple[Tensor, Tensor]:
    x_ND, weight_OD = _data(1, 6, 2, n=5 if kind == "few" else 200)
    if kind == "dead":
        x_ND[:, 2:7] = 0.0
    if kind == "constant":
        x_ND[:] = x_ND[0]
    if kind == "zero":
        x_ND.zero_()
    if kind == "copies":
        x_ND[:, 6:] = 2 * x_ND[:, :6]
    if kind in ("tiny", "huge"):
        x_ND *= 1e-9 if kind == "tiny" else 1e9
    if kind == "mixed":
        x_ND *= torch.logspace(-9, 9, x_ND.shape[1], dtype=torch.float64)
    return x_ND, weight_OD


@pytest.mark.parametrize("ridge", [0.0, RIDGE])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_singular_statistics_give_finite_weights_never_worse_than_the_cut(
    kind: str, shift: bool, ridge: float
) -> None:
    x_ND, weight_OD = _degenerate(kind)
    solver = _solver(x_ND, weight_OD, 2, shift, ridge)
    assert torch.equal(solver.weight(6), weight_OD.T)
    dense = float((x_ND @ weight_OD.T).square().sum())
    for kept in range(1, 6):
        weight_KO = solver.weight(kept)
        assert bool(torch.isfinite(weight_KO).all())
        repaired = float(_error(solver, x_ND, weight_OD, kept, weight_KO).square().sum())
        cut = float(_error(solver, x_ND, weight_OD, kept, weight_OD.T[: 2 * kept]).square().sum())
        assert repaired <= cut * (1 + 1e-9) + 1e-12 * dense
        assert bool(torch.isfinite(solver.missing_variance(kept, weight_KO)).all())


def test_the_ridge_is_raised_only_where_it_must_be() -> None:
    plain, dead = (_covariance(_degenerate(kind)[0]) for kind in ("mixed", "dead"))
    assert factorise(plain / plain.diagonal().outer(plain.diagonal()).sqrt(), 0.0)[::2] == (
        0.0,
        False,
    )
    assert factorise(dead, 0.0)[2]
    added, lower, raised = factorise(dead, RIDGE)
    assert not raised
    again = lower @ lower.T - added * torch.eye(len(dead))
    torch.testing.assert_close(again, dead, rtol=1e-9, atol=1e-9)


@given(problem=problems, ridge=st.sampled_from([0.0, RIDGE, 0.1]))
def test_with_any_ridge_repair_is_never_worse_than_the_cut_or_the_bias(
    problem: tuple[int, int, int], ridge: float
) -> None:
    seed, units, block = problem
    x_ND, weight_OD = _data(seed, units, block, n=20)
    for shift in (True, False):
        solver = _solver(x_ND, weight_OD, block, shift, ridge)
        for kept in range(1, units):
            k = kept * block
            weight_KO = solver.weight(kept)
            repaired = _error(solver, x_ND, weight_OD, kept, weight_KO).square().sum()
            biased = _error(solver, x_ND, weight_OD, kept, weight_OD.T[:k]).square().sum()
            cut = (x_ND[:, k:] @ weight_OD[:, k:].T).square().sum()
            assert repaired <= biased * (1 + 1e-12)
            assert biased <= cut * (1 + 1e-12)


# ---- group OBS


def _brute_loss(problem: tuple[Tensor, Tensor], kept: list[int], block: int, ridge: float) -> float:
    """Loss of keeping some units, relative to the outputs: a fresh solve, S with its ridge."""
    matrix_DD, weight_OD = problem
    scale = ridge * matrix_DD.diagonal().mean()
    matrix_DD = matrix_DD + scale * torch.eye(len(matrix_DD), dtype=torch.float64)
    whole = (weight_OD @ matrix_DD * weight_OD).sum()
    k = torch.tensor([u * block + b for u in kept for b in range(block)], dtype=torch.int64)
    explained = weight_OD @ matrix_DD[:, k]
    solved = torch.linalg.solve(matrix_DD[k][:, k], explained.T).T
    return float(1 - (solved * explained).sum() / whole)


def _problems(
    seed: int, units: int, blocks: tuple[int, ...], n: int = 60
) -> list[tuple[Tensor, Tensor]]:
    """Covariance and weights of one consumer per entry of `blocks`."""
    data = [_data(seed * 7 + i, units, block, n=n) for i, block in enumerate(blocks)]
    return [(_covariance(x_ND), weight_OD) for x_ND, weight_OD in data]


@given(
    seed=st.integers(0, 999),
    blocks=st.sampled_from([(1,), (2,), (1, 3)]),
    ridge=st.sampled_from([0.0, 1e-3]),
)
def test_every_elimination_is_the_best_one_and_scores_its_loss(
    seed: int, blocks: tuple[int, ...], ridge: float
) -> None:
    units = 5
    problems = _problems(seed, units, blocks)
    scores = obs_scores([w for _, w in problems], [s for s, _ in problems], units, ridge)
    order = scores.argsort().tolist()
    assert sorted(order) == list(range(units))

    def loss(kept: list[int]) -> float:
        pairs = zip(problems, blocks, strict=True)
        return sum(_brute_loss(problem, kept, block, ridge) for problem, block in pairs)

    alive = list(range(units))
    for unit in order:
        options = {u: loss([v for v in alive if v != u]) for u in alive}
        assert options[unit] == pytest.approx(min(options.values()), rel=1e-6, abs=1e-9)
        assert float(scores[unit]) == pytest.approx(options[unit], rel=1e-6, abs=1e-9)
        alive.remove(unit)


def test_scores_rise_strictly_also_for_units_that_cost_nothing() -> None:
    matrix_DD = torch.zeros(6, 6, dtype=torch.float64)
    scores = obs_scores([torch.ones(2, 6)], [matrix_DD], 6)
    assert len(set(scores.tolist())) == 6
    matrix_DD[3, 3] = 1.0
    assert int(obs_scores([torch.ones(2, 6)], [matrix_DD], 6).argmax()) == 3
    scores = obs_scores([torch.zeros(2, 6)], [torch.eye(6)], 6)
    assert bool(torch.isfinite(scores).all())
    assert len(set(scores.tolist())) == 6


@pytest.mark.parametrize("kind", DEGENERATE)
def test_scores_are_finite_and_distinct_whatever_the_statistics(kind: str) -> None:
    x_ND, weight_OD = _degenerate(kind)
    scores = obs_scores([weight_OD], [_covariance(x_ND)], 6)
    assert bool(torch.isfinite(scores).all())
    assert len(set(scores.tolist())) == 6


def test_obs_order_beats_the_order_of_l1_norms() -> None:
    """On average over problems and levels; L1 takes what reads the unit, as it has no producer."""
    obs, l1 = 0.0, 0.0
    for seed in range(40):
        ((matrix_DD, weight_OD),) = _problems(seed, 8, (2,))
        norms_U = weight_OD.abs().sum(0).reshape(8, 2).sum(1)
        by_obs = obs_scores([weight_OD], [matrix_DD], 8).argsort(descending=True).tolist()
        by_l1 = norms_U.argsort(descending=True).tolist()
        for kept in range(1, 8):
            obs += _brute_loss((matrix_DD, weight_OD), by_obs[:kept], 2, 0.0)
            l1 += _brute_loss((matrix_DD, weight_OD), by_l1[:kept], 2, 0.0)
    assert obs < 0.9 * l1
