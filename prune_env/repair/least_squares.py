"""Closed-form repair: the kept columns of a consumer take over for the removed ones.

Legend: D columns of a consumer in order of units, the last to be removed first; K the first of them
that are kept, R the rest; O rows; S covariance of the columns.

With the mean taken care of by the bias, the best weights on the kept columns are
W' = W S[:,K] S[K,K]^-1 (DESIGN.md section 3). With one factorisation S = L LT in the order of
units, all levels come from Y = LT WT: the weights of a level are one triangular solve,
W'T = L[K,K]^-T Y[K], and the error that remains is the sum of squares of Y[R]. So a ladder of any
length costs one Cholesky, and L is all that is kept of it: Y is multiplied out again for a level.

Removing rows of W only picks rows of W', so repairs of different groups never disturb each other. A
group that shares a consumer with others (concatenation) takes over for its own columns only: alone
it never does worse than the cut, together their errors may add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_env.calibration.sums import precision_of

RIDGE = 1e-4
"""Added to the diagonal of S, as a fraction of its mean: dead channels make S singular. It pulls
towards the weights as they are, so nothing changes where nothing is removed."""


@dataclass(frozen=True, eq=False)
class Solver:
    """All levels of one group in some columns of one consumer.

    Attributes:
        lower_DD: Cholesky factor of S plus the ridge, columns in order of units; in the precision
            of `precision_of`.
        dense_OC: the dense weights on all C columns of the consumer, as they are: nothing is
            copied.
        columns_D: which of them the factor is about, in order of units.
        mean_D: mean of the columns, zero where the consumer cannot take a shift.
        lost_D: squares of Y summed over rows.
        ranks_U: places, in the group's order, of the units that these columns belong to; rising.
        ridge: what was added to the diagonal of S.
        raised: S was singular to rounding, so the ridge is larger than asked.
    """

    lower_DD: Tensor
    dense_OC: Tensor
    columns_D: Tensor
    mean_D: Tensor
    lost_D: Tensor
    ranks_U: Tensor
    ridge: float
    raised: bool

    @staticmethod
    def of(
        weight_OC: Tensor,
        matrix_DD: Tensor,
        mean_D: Tensor,
        block: int,
        ridge: float = RIDGE,
        columns_D: Tensor | None = None,
        ranks_U: Tensor | None = None,
    ) -> Solver:
        """Factorise.

        Args:
            weight_OC: dense weights.
            matrix_DD: S, or E[x xT] (and a mean of 0) for a consumer that cannot take a shift.
            mean_D: mean of the columns.
            block: columns per unit.
            ridge: fraction of the mean of S's diagonal to add to it; 0 asks for plain least
                squares. Raised tenfold until the factorisation holds.
            columns_D: the columns that S is about, unit by unit; None for all as they are.
            ranks_U: see the attributes; None where these are all units of the group.
        """
        width = len(matrix_DD)
        columns_D = torch.arange(width) if columns_D is None else columns_D
        ranks_U = torch.arange(width // block) if ranks_U is None else ranks_U
        added, lower_DD, raised = factorise(matrix_DD.double(), ridge)
        lost_D = (lower_DD.T @ _columns(weight_OC, columns_D)).square().sum(1)
        # Row by row, as it comes back from a file: products of both are the same to the bit.
        lower_DD = lower_DD.to(precision_of(width)).contiguous()
        mean_D = mean_D.double()
        return Solver(lower_DD, weight_OC, columns_D, mean_D, lost_D, ranks_U, added, raised)

    @property
    def weight_DO(self) -> Tensor:
        """The dense weights on the columns, float64."""
        return _columns(self.dense_OC, self.columns_D)

    def weight(self, units: int) -> Tensor:
        """Repaired weights on the columns of the first `units` units of the group, (K, O)."""
        k, weight_DO = self._kept(units), self.weight_DO
        if k == len(weight_DO):
            return weight_DO
        y_KO = self.lower_DD[:, :k].T @ weight_DO.to(self.lower_DD)
        upper_KK = self.lower_DD[:k, :k].T
        weight_KO: Tensor = torch.linalg.solve_triangular(upper_KK, y_KO, upper=True)
        return weight_KO.double()

    def cut(self, units: int) -> Tensor:
        """The dense weights on the columns of the first `units` units, (K, O)."""
        return self.weight_DO[: self._kept(units)]

    def missing_mean(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose on average and the bias must give back, (O,)."""
        return self.mean_D @ self.weight_DO - self.mean_D[: self._kept(units)] @ weight_KO

    def missing_variance(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose in variance, W S WT - W' S[K,K] W'T on its diagonal, (O,)."""
        # Of S plus the ridge that is the sum of squares of Y[R]; the ridge's part is taken off.
        k, weight_DO = self._kept(units), self.weight_DO
        y_RO = self.lower_DD[k:, k:].T @ weight_DO[k:].to(self.lower_DD)
        shrunk_O = weight_DO.square().sum(0) - weight_KO.square().sum(0)
        return y_RO.double().square().sum(0) - self.ridge * shrunk_O

    def loss(self, units: int) -> float:
        """Mean squared error of the outputs, summed over rows; never rises with `units`.

        Exact without a ridge; with one, greater by ridge times the squared change of the weights.
        """
        return float(self.lost_D[self._kept(units) :].sum())

    def _kept(self, units: int) -> int:
        """Columns of those of the group's first `units` units that are among these."""
        found = int(torch.searchsorted(self.ranks_U, units))
        return found * (len(self.columns_D) // len(self.ranks_U))


def _columns(weight_OC: Tensor, columns_D: Tensor) -> Tensor:
    return weight_OC.detach().cpu()[:, columns_D].double().T


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
        ridged_DD = matrix_DD.clone()
        ridged_DD.diagonal().add_(added)
        lower_DD, failed = torch.linalg.cholesky_ex(ridged_DD)
        pivots = lower_DD.diagonal()
        if not int(failed) and bool(pivots.min() > 1e-7 * pivots.max()):
            return added, lower_DD, raised
        added, raised = max(10 * added, 1e-10 * scale), True
