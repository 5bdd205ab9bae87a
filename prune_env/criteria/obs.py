"""OBS: which units to give up, by greedy elimination with updates of the inverse.

Legend: U units (of a row of units, where single weights go), b columns per unit, D = U x b columns,
O rows; R rows of units, G = O / R rows each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune_env.calibration.statistics import Calibration
from prune_env.criteria.elementwise import score_units
from prune_env.repair.consumers import Problem, problems_of
from prune_env.repair.least_squares import RIDGE, factorise
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.patterns import Pattern, TopK
from prune_env.structure.rewrite import tensors_of


def score_by_obs(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    calibration: Calibration,
    ridge: float = 10 * RIDGE,
) -> dict[str, Tensor]:
    """Scores of units by elimination; by L1 where a group has no statistics.

    Columns go as in `obs_scores`, single weights and blocks of them as in `obs_weight_scores`.
    """
    dense: Mapping[str, Tensor] = tensors_of(model)
    scores = {}
    for group in groups:
        found = problems_of(group, torch.arange(group.units), dense, calibration)
        if found and any(axis.role == "weight" for axis in group.axes):
            scores[group.name] = _weight_scores(group, found, ridge)
        elif found:
            work = [_Elimination(p.weight_OD, p.matrix_DD, p.ranks_RU[0], ridge) for p in found]
            _share_scale(work, [problem.consumer.tensor for problem in found])
            scores[group.name] = _eliminated(work, group.units).reshape(group.grid)
        else:
            scores.update(score_units(model, [group], "l1"))
    return scores


def _weight_scores(group: PrunableGroup, found: Sequence[Problem], ridge: float) -> Tensor:
    """Scores of single weights, block by block: losses of blocks can be compared."""
    score_RU = torch.full((group.grid[0], group.units // group.grid[0]), torch.inf).double()
    for problem in found:
        # In the order of the grid, units of the first row have their own numbers for ranks.
        units = problem.ranks_RU[0]
        whole = len(units) == score_RU.shape[1]
        grid = group.grid if whole else (len(score_RU), len(units))
        weight_OD, matrix_DD = problem.weight_OD, problem.matrix_DD
        part = obs_weight_scores(weight_OD, matrix_DD, grid, group.pattern, ridge)
        score_RU[:, units] = part.reshape(len(score_RU), -1)
    return score_RU.reshape(group.grid)


def _share_scale(work: Sequence[_Elimination], tensors: Sequence[str]) -> None:
    """Make the losses of blocks of one consumer relative to the size of all of its outputs."""
    scales: dict[str, float] = {}
    for state, tensor in zip(work, tensors, strict=True):
        scales[tensor] = scales.get(tensor, 0.0) + state.scale
    for state, tensor in zip(work, tensors, strict=True):
        state.scale = scales[tensor]


def obs_scores(
    weights_OD: Sequence[Tensor],
    matrices_DD: Sequence[Tensor],
    units: int,
    ridge: float = 10 * RIDGE,
) -> Tensor:
    """Score units by greedy elimination with updates: the loss so far when each of them goes, (U,).

    Every step removes the unit whose loss is least when all others take over for it (Kurtic et al.
    2023, ZipLM, eq. 3 and algorithm 1), summed over consumers relative to the size of their
    outputs. Scores rise along the elimination, so their order is its order.

    Args:
        weights_OD: weights of each consumer.
        matrices_DD: covariance of the columns of each consumer, columns in order of units.
        units: U; a consumer has D / U columns per unit.
        ridge: as in `Solver.of`; larger, as many eliminations add up rounding.
    """
    pairs, every_U = zip(weights_OD, matrices_DD, strict=True), torch.arange(units)
    return _eliminated([_Elimination(w, s, every_U, ridge) for w, s in pairs], units)


def _eliminated(work: Sequence[_Elimination], units: int) -> Tensor:
    """See `obs_scores`."""
    alive = torch.ones(units, dtype=torch.bool)
    score_U, so_far = torch.zeros(units, dtype=torch.float64), 0.0
    for _ in range(units):
        cost_U = torch.zeros(units, dtype=torch.float64)
        for state in work:
            cost_U[state.units_U] += state.cost()
        cost_U[~alive] = torch.inf
        weakest = int(cost_U.argmin())
        # Strictly rising, also where units cost nothing (dead channels).
        so_far = float(np.nextafter(so_far + max(0.0, float(cost_U[weakest])), np.inf))
        score_U[weakest], alive[weakest] = so_far, False
        for state in work:
            state.remove(weakest)
    return score_U


ELIMINATED_COLUMNS = 256
"""Widest matrix whose weights are eliminated one by one, O(D^3) a row."""

CHUNK = 32 * 2**20
"""Bytes of the inverses that are updated together."""


def obs_weight_scores(
    weight_OD: Tensor,
    matrix_DD: Tensor,
    grid: Sequence[int],
    pattern: Pattern | None = None,
    ridge: float = 10 * RIDGE,
) -> Tensor:
    """Score single weights, or blocks: the largest loss so far when each of them goes, (grid).

    Every row of units is eliminated on its own, always the unit whose loss is least when the
    others of its row take over for it; by these losses all rows are merged (Frantar & Alistarh
    2022, Optimal Brain Compression, eq. 3 and 4, algorithms 1 and 2). Of more than
    `ELIMINATED_COLUMNS` columns only the first losses are used, w^2 / [H^-1]_jj on the dense
    weights.

    Args:
        weight_OD: weights of the layer.
        matrix_DD: S of its columns.
        grid: of units: R rows of G rows of weights, by U columns of b.
        pattern: whose units may have to go in turns (N:M); None lets any go.
        ridge: see `obs_scores`.
    """
    _, lower_DD, _ = factorise(matrix_DD.double(), ridge)
    inverse_DD = torch.cholesky_inverse(lower_DD)
    weight_RGD = weight_OD.double().reshape(grid[0], -1, len(inverse_DD))
    turns_U = (pattern or TopK()).turns(grid)
    if len(inverse_DD) > ELIMINATED_COLUMNS:
        first_RU = _row_costs(weight_RGD, inverse_DD.expand(1, -1, -1), len(turns_U))
        return first_RU.reshape(tuple(grid))
    step = max(1, CHUNK // (8 * inverse_DD.numel()))
    parts = [_eliminate(part, inverse_DD, turns_U) for part in weight_RGD.split(step)]
    return torch.cat(parts).reshape(tuple(grid))


def _eliminate(weight_RGD: Tensor, inverse_DD: Tensor, turns_U: Tensor) -> Tensor:
    """Scores of all units of some rows, (R, U)."""
    (rows, _, columns), units = weight_RGD.shape, len(turns_U)
    inverse_RDD, weight_RGD = inverse_DD.repeat(rows, 1, 1), weight_RGD.clone()
    score_RU = torch.zeros(rows, units, dtype=torch.float64)
    alive_RU, so_far_R = torch.ones(rows, units, dtype=torch.bool), torch.zeros(rows).double()
    each, every = torch.arange(columns // units), torch.arange(rows)
    lost_RT = torch.zeros(rows, int(turns_U.max()) + 1, dtype=torch.int64)
    for _ in range(units):
        may_go_RU = alive_RU & (lost_RT == lost_RT.amin(1, keepdim=True))[:, turns_U]
        cost_RU = _row_costs(weight_RGD, inverse_RDD, units).masked_fill(~may_go_RU, torch.inf)
        cost_R, weakest_R = cost_RU.min(1)
        # Strictly rising, so that the order of scores is that of the elimination.
        so_far_R = torch.maximum(so_far_R.nextafter(torch.tensor(torch.inf).double()), cost_R)
        score_RU[every, weakest_R], alive_RU[every, weakest_R] = so_far_R, False
        lost_RT[every, turns_U[weakest_R]] += 1
        _remove(weight_RGD, inverse_RDD, weakest_R[:, None] * len(each) + each)
    return score_RU


def _row_costs(weight_RGD: Tensor, inverse_RDD: Tensor, units: int) -> Tensor:
    """Loss of removing each unit, (R, U)."""
    rows, _, columns = weight_RGD.shape
    each = columns // units
    if each == 1:
        return weight_RGD.square().sum(1) / inverse_RDD.diagonal(dim1=1, dim2=2)
    tiles = inverse_RDD.reshape(-1, units, each, units, each)
    blocks_RUbb = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    weight_RUbG = weight_RGD.reshape(rows, -1, units, each).permute(0, 2, 3, 1)
    solved_RUbG: Tensor = torch.linalg.solve(blocks_RUbb, weight_RUbG)
    return (weight_RUbG * solved_RUbG).sum((2, 3))


def _remove(weight_RGD: Tensor, inverse_RDD: Tensor, place_Rb: Tensor) -> None:
    """Let the others of every row take over for these columns, in place."""
    every = torch.arange(len(place_Rb))[:, None]
    rows_RbD = inverse_RDD[every, place_Rb]
    blocks_Rbb = rows_RbD.gather(2, place_Rb[:, None].expand(-1, place_Rb.shape[1], -1))
    solved_RbD = torch.linalg.solve(blocks_Rbb, rows_RbD)
    gone_RGb = weight_RGD.gather(2, place_Rb[:, None].expand(-1, weight_RGD.shape[1], -1))
    for gone_RG, row_RD, solved_RD in zip(
        gone_RGb.unbind(2), rows_RbD.unbind(1), solved_RbD.unbind(1), strict=True
    ):  # rank one at a time is faster than a product with b of a few
        weight_RGD.addcmul_(gone_RG[:, :, None], solved_RD[:, None], value=-1)
        inverse_RDD.addcmul_(row_RD[:, :, None], solved_RD[:, None], value=-1)
    # As in `_Elimination.remove`: exactly zero, with a unit diagonal.
    inverse_RDD[every, place_Rb] = 0.0
    inverse_RDD.mT[every, place_Rb] = 0.0
    inverse_RDD[every, place_Rb, place_Rb] = 1.0
    weight_RGD.mT[every, place_Rb] = 0.0


class _Elimination:
    """W and the inverse of S as units go."""

    def __init__(self, weight_OD: Tensor, matrix_DD: Tensor, units_U: Tensor, ridge: float) -> None:
        """`units_U`: the units that the columns belong to, rising."""
        _, lower_DD, _ = factorise(matrix_DD.double(), ridge)
        self.weight = weight_OD.double().clone()
        self.scale = float((self.weight @ lower_DD).square().sum().clamp(min=1e-300))
        self.inverse = torch.cholesky_inverse(lower_DD)
        self.units_U, self.block = units_U, len(matrix_DD) // len(units_U)
        self._places = {unit: place for place, unit in enumerate(units_U.tolist())}

    def cost(self) -> Tensor:
        """Loss of removing each of its units, relative to the outputs, (U,)."""
        u, b = len(self.units_U), self.block
        if b == 1:
            return self.weight.square().sum(0) / self.inverse.diagonal() / self.scale
        blocks_Ubb = self.inverse.reshape(u, b, u, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight_UbO = self.weight.T.reshape(u, b, -1)
        cost_U: Tensor = (weight_UbO * torch.linalg.solve(blocks_Ubb, weight_UbO)).sum((1, 2))
        return cost_U / self.scale

    def remove(self, unit: int) -> None:
        """Let its other units take over for one; nothing where the unit is not its own."""
        if unit not in self._places:
            return
        first = self._places[unit] * self.block
        place = slice(first, first + self.block)
        rows = torch.linalg.solve(self.inverse[place, place], self.inverse[place])
        self.weight.addmm_(self.weight[:, place].clone(), rows, alpha=-1)
        self.inverse.addmm_(self.inverse[:, place].clone(), rows, alpha=-1)
        # Exactly zero, with a unit diagonal so that `cost` stays defined for the gone unit.
        self.inverse[place], self.inverse[:, place] = 0.0, 0.0
        self.inverse[place, place] = torch.eye(self.block, dtype=torch.float64)
        self.weight[:, place] = 0.0
