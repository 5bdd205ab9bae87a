"""Closed-form repair: the kept columns of a consumer take over for the removed ones.

Legend: D columns of a consumer in order of units, the last to be removed first; K the first of them
that are kept, R the rest; O rows; S covariance of the columns.

With the mean taken care of by the bias, the best weights on the kept columns are
W' = W S[:,K] S[K,K]^-1 (DESIGN.md section 3). With one factorisation S = L LT in the order of
units, all levels come from Y = LT WT: the weights of a level are one triangular solve,
W'T = L[K,K]^-T Y[K], the error that remains is the sum of squares of Y[R], and what the outputs
lose in variance is the same sum row by row. So a ladder of any length costs one Cholesky.

Removing rows of W only picks rows of W', so repairs of different groups never disturb each other. A
group that shares a consumer with others (concatenation) takes over for its own columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RIDGE = 1e-4
"""Added to the diagonal of S, as a fraction of its mean: dead channels make S singular. It pulls
towards the weights as they are, so nothing changes where nothing is removed."""


@dataclass(frozen=True, eq=False)
class Solver:
    """All levels of one group in one consumer.

    Attributes:
        lower_DD: Cholesky factor of the ridged S, columns in order of units; float64.
        y_DO: LT WT.
        weight_DO: the dense weights in the same order.
        mean_D: mean of the columns, zero where the consumer cannot take a shift.
        block: columns per unit.
    """

    lower_DD: Tensor
    y_DO: Tensor
    weight_DO: Tensor
    mean_D: Tensor
    block: int

    @staticmethod
    def of(weight_OD: Tensor, second_DD: Tensor, mean_D: Tensor, block: int) -> Solver:
        """Factorise; `mean_D` is 0 for a consumer without a bias, which then fits H, not S."""
        weight_DO = weight_OD.double().T
        mean_D = mean_D.double()
        covariance = second_DD.double() - torch.outer(mean_D, mean_D)
        ridge = RIDGE * float(covariance.diagonal().mean().clamp(min=1e-12))
        covariance.diagonal().add_(ridge)
        lower, failed = torch.linalg.cholesky_ex(covariance)
        while int(failed):
            # Rounding has made it indefinite (fewer samples than columns): a larger ridge holds.
            ridge *= 10
            covariance.diagonal().add_(ridge)
            lower, failed = torch.linalg.cholesky_ex(covariance)
        return Solver(lower, lower.T @ weight_DO, weight_DO, mean_D, block)

    def weight(self, units: int) -> Tensor:
        """Repaired weights on the columns of the first `units` units, (K, O)."""
        k = units * self.block
        if k == len(self.weight_DO):
            return self.weight_DO
        upper = self.lower_DD[:k, :k].T
        weight_KO: Tensor = torch.linalg.solve_triangular(upper, self.y_DO[:k], upper=True)
        return weight_KO

    def missing_mean(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose on average and the bias must give back, (O,)."""
        k = units * self.block
        return self.mean_D @ self.weight_DO - self.mean_D[:k] @ weight_KO

    def missing_variance(self, units: int) -> Tensor:
        """What the outputs lose in variance: the mean squared error of every row, (O,)."""
        return self.y_DO[units * self.block :].square().sum(0)

    def loss(self, units: int) -> float:
        """Mean squared error of the outputs, summed over rows."""
        return float(self.missing_variance(units).sum())


def obs_scores(weights_OD: Sequence[Tensor], seconds_DD: Sequence[Tensor], units: int) -> Tensor:
    """Score units by greedy elimination with updates: the loss so far when each of them goes, (U,).

    Every step removes the unit whose loss is least when all others take over for it (Kurtic et al.
    2023, ZipLM, eq. 3 and algorithm 1), summed over consumers relative to the size of their
    outputs. Scores rise along the elimination, so their order is its order.

    Args:
        weights_OD: weights of each consumer.
        seconds_DD: covariance of the columns of each consumer, columns in order of units.
        units: U; a consumer has D / U columns per unit.
    """
    work = [_Elimination(w, s, units) for w, s in zip(weights_OD, seconds_DD, strict=True)]
    alive = torch.ones(units, dtype=torch.bool)
    score_U, so_far = torch.zeros(units, dtype=torch.float64), 0.0
    for _ in range(units):
        cost_U = sum((state.cost() for state in work), torch.zeros(units, dtype=torch.float64))
        cost_U[~alive] = torch.inf
        weakest = int(cost_U.argmin())
        # Strictly rising, also where units cost nothing (dead channels).
        so_far = float(np.nextafter(so_far + max(0.0, float(cost_U[weakest])), np.inf))
        score_U[weakest], alive[weakest] = so_far, False
        for state in work:
            state.remove(weakest)
    return score_U


class _Elimination:
    """W and the inverse of S as units go."""

    def __init__(self, weight_OD: Tensor, second_DD: Tensor, units: int) -> None:
        covariance = second_DD.double().clone()
        covariance.diagonal().add_(
            10 * RIDGE * float(covariance.diagonal().mean().clamp(min=1e-12))
        )
        self.weight = weight_OD.double().clone()
        self.scale = float((self.weight @ covariance * self.weight).sum().clamp(min=1e-12))
        self.inverse = torch.linalg.inv(covariance)
        self.units, self.block = units, len(covariance) // units

    def cost(self) -> Tensor:
        """Loss of removing each unit, relative to the outputs, (U,)."""
        u, b = self.units, self.block
        blocks_Ubb = self.inverse.reshape(u, b, u, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight_UbO = self.weight.T.reshape(u, b, -1)
        tiny = 1e-12 * torch.eye(b, dtype=torch.float64)
        solved = torch.linalg.solve(blocks_Ubb + tiny, weight_UbO)
        cost_U: Tensor = (weight_UbO * solved).sum((1, 2)) / self.scale
        return cost_U

    def remove(self, unit: int) -> None:
        """Let the other units take over for one."""
        place = slice(unit * self.block, (unit + 1) * self.block)
        rows = torch.linalg.solve(self.inverse[place, place], self.inverse[place])
        self.weight -= self.weight[:, place] @ rows
        self.inverse -= self.inverse[:, place] @ rows
        # Exactly zero, with a unit diagonal so that `cost` stays defined for the gone unit.
        self.inverse[place], self.inverse[:, place] = 0.0, 0.0
        self.inverse[place, place] = torch.eye(self.block, dtype=torch.float64)
        self.weight[:, place] = 0.0
