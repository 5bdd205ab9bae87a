"""Closed-form repair: the kept columns of a consumer take over for the removed ones.

Legend: D columns of a consumer in order of units, the last to be removed first; K the first of them
that are kept, R the rest; O rows; S covariance of the columns.

With the mean taken care of by the bias, the best weights on the kept columns are
W' = W S[:,K] S[K,K]^-1 (DESIGN.md section 3). With one factorisation S = L LT in the order of
units, all levels come from Y = LT WT: the weights of a level are one triangular solve,
W'T = L[K,K]^-T Y[K], and the error that remains is the sum of squares of Y[R]. So a ladder of any
length costs one Cholesky.

Removing rows of W only picks rows of W', so repairs of different groups never disturb each other. A
group that shares a consumer with others (concatenation) takes over for its own columns only: alone
it never does worse than the cut, together their errors may add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-4
"""Added to the diagonal of S, as a fraction of its mean: dead channels make S singular. It pulls
towards the weights as they are, so nothing changes where nothing is removed."""


@dataclass(frozen=True, eq=False)
class Solver:
    """All levels of one group in one consumer.

    Attributes:
        lower_DD: Cholesky factor of S plus the ridge, columns in order of units; float64.
        y_DO: LT WT.
        weight_DO: the dense weights in the same order.
        mean_D: mean of the columns, zero where the consumer cannot take a shift.
        block: columns per unit.
        ridge: what was added to the diagonal of S.
        raised: S was singular to rounding, so the ridge is larger than asked.
    """

    lower_DD: Tensor
    y_DO: Tensor
    weight_DO: Tensor
    mean_D: Tensor
    block: int
    ridge: float
    raised: bool

    @staticmethod
    def of(
        weight_OD: Tensor, matrix_DD: Tensor, mean_D: Tensor, block: int, ridge: float = RIDGE
    ) -> Solver:
        """Factorise.

        Args:
            weight_OD: dense weights.
            matrix_DD: S, or E[x xT] (and a mean of 0) for a consumer that cannot take a shift.
            mean_D: mean of the columns.
            block: columns per unit.
            ridge: fraction of the mean of S's diagonal to add to it; 0 asks for plain least
                squares. Raised tenfold until the factorisation holds.
        """
        weight_DO = weight_OD.double().T
        added, lower_DD, raised = factorise(matrix_DD.double(), ridge)
        y_DO = lower_DD.T @ weight_DO
        return Solver(lower_DD, y_DO, weight_DO, mean_D.double(), block, added, raised)

    def weight(self, units: int) -> Tensor:
        """Repaired weights on the columns of the first `units` units, (K, O)."""
        k = units * self.block
        if k == len(self.weight_DO):
            return self.weight_DO
        upper = self.lower_DD[:k, :k].T
        weight_KO: Tensor = torch.linalg.solve_triangular(upper, self.y_DO[:k], upper=True)
        return weight_KO

    def cut(self, units: int) -> Tensor:
        """The dense weights on the columns of the first `units` units, (K, O)."""
        return self.weight_DO[: units * self.block]

    def missing_mean(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose on average and the bias must give back, (O,)."""
        k = units * self.block
        return self.mean_D @ self.weight_DO - self.mean_D[:k] @ weight_KO

    def missing_variance(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose in variance, W S WT - W' S[K,K] W'T on its diagonal, (O,)."""
        # Of S plus the ridge that is the sum of squares of Y[R]; the ridge's part is taken off.
        shrunk_O = self.weight_DO.square().sum(0) - weight_KO.square().sum(0)
        return self.y_DO[units * self.block :].square().sum(0) - self.ridge * shrunk_O

    def loss(self, units: int) -> float:
        """Mean squared error of the outputs, summed over rows; never rises with `units`.

        Exact without a ridge; with one, greater by ridge times the squared change of the weights.
        """
        return float(self.y_DO[units * self.block :].square().sum())


def factorise(matrix_DD: Tensor, ridge: float) -> tuple[float, Tensor, bool]:
    """Cholesky factor of a positive semidefinite matrix plus a ridge.

    Rounding, dead channels or fewer samples than columns may leave nothing to factorise at the
    ridge asked for; it is then raised until the smallest pivot stands out of the rounding.

    Returns:
        The ridge added, the lower factor, whether it was raised.
    """
    scale = float(matrix_DD.diagonal().mean().clamp(min=1e-12))
    added, raised = ridge * scale, False
    while True:
        ridged_DD = matrix_DD + added * torch.eye(len(matrix_DD), dtype=matrix_DD.dtype)
        lower_DD, failed = torch.linalg.cholesky_ex(ridged_DD)
        pivots = lower_DD.diagonal()
        if not int(failed) and bool(pivots.min() > 1e-7 * pivots.max()):
            return added, lower_DD, raised
        added, raised = max(10 * added, 1e-10 * scale), True
