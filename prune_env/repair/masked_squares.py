"""Closed-form repair of a matrix that loses single weights: the kept ones of a row take over.

Legend: O rows, D columns, R rows of units (O / R rows each), U units of such a row (D / U columns
each); S covariance of the columns.

With K the columns a row keeps and G those it gives up, the best new row is
w'[K] = w[K] + w[G] S[G,K] S[K,K]^-1, w'[G] = 0 (Frantar & Alistarh 2022, OBC, eq. 4 for a set).
Rows have masks of their own, so unlike a ladder of whole columns (least_squares.py) there is no
common factorisation: every level is solved when it is asked for. A weight that is zero in the dense
matrix is one that an earlier round removed: it never comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prune_env.repair.least_squares import RIDGE, factorise

EXACT_COLUMNS = 256
"""Widest matrix whose rows are solved exactly, O(D^3) a row; wider ones as SparseGPT does it.

A level of 512 x 512 took 12 s exactly and 0.3 s by sweep (one busy core), for 15 % less error."""

CHUNK = 32 * 2**20
"""Bytes of the systems that are factorised together."""

Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""New weights (O, D) from the dense ones (O, D), S (D, D) and which stay, (R, D) bool."""


def exact_rows(weight_OD: Tensor, matrix_DD: Tensor, keep_RD: Tensor) -> Tensor:
    """Least squares on the kept columns of every row, by one Cholesky factorisation each."""
    rows, columns = keep_RD.shape
    weight_RGD = weight_OD.reshape(rows, -1, columns)
    new_RGD = torch.empty_like(weight_RGD)
    step = max(1, CHUNK // (8 * columns**2))
    for part in (slice(start, start + step) for start in range(0, rows, step)):
        keep_RD1 = keep_RD[part, :, None].to(weight_OD)
        kept_RGD = weight_RGD[part] * keep_RD1.mT
        # The removed columns get equations of their own, 1 x = 0.
        system_RDD = matrix_DD * keep_RD1 * keep_RD1.mT + torch.diag_embed(1 - keep_RD1.squeeze(2))
        lost_RDG = ((weight_RGD[part] - kept_RGD) @ matrix_DD).mT * keep_RD1
        change_RDG = torch.cholesky_solve(lost_RDG, torch.linalg.cholesky(system_RDD))
        new_RGD[part] = kept_RGD + change_RDG.mT
    return new_RGD.reshape(weight_OD.shape)


def column_sweep(weight_OD: Tensor, matrix_DD: Tensor, keep_RD: Tensor, block: int = 128) -> Tensor:
    """One sweep over the columns; the ones to the right take over for each that goes.

    Frantar & Alistarh 2023, SparseGPT, eq. 4 and algorithm 1, for a mask that is given. O(D^2) a
    row; a kept column no longer changes once the sweep has passed it, so less is won than by
    `exact_rows`.
    """
    columns = weight_OD.shape[1]
    inverse_DD = torch.cholesky_inverse(torch.linalg.cholesky(matrix_DD))
    upper_DD = torch.linalg.cholesky(inverse_DD, upper=True)
    gone_OD = (~keep_RD).repeat_interleave(len(weight_OD) // len(keep_RD), 0)
    new_OD = weight_OD.clone()
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        error_OB = torch.zeros_like(new_OD[:, start:stop])
        for j in range(start, stop):
            error_O = torch.where(gone_OD[:, j], new_OD[:, j] / upper_DD[j, j], 0.0)
            new_OD[:, j:stop] -= torch.outer(error_O, upper_DD[j, j:stop])
            error_OB[:, j - start] = error_O
        new_OD[:, stop:] -= error_OB @ upper_DD[start:stop, stop:]
    return new_OD.masked_fill(gone_OD, 0.0)


UPDATES: dict[str, Update] = {"exact_rows": exact_rows, "column_sweep": column_sweep}
"""Updates by name, for files."""


@dataclass(frozen=True, eq=False)
class MaskedSolver:
    """All levels of one group of weights; the interface of `least_squares.Solver`.

    Attributes:
        dense_OD: the dense weights, as they are.
        covariance_DD: of the columns; consumers that read the same tensor share it.
        mean_D: mean of the columns, zero where the layer cannot take a shift.
        offset_D: mean of the columns, zero where the layer can: S is the covariance plus its outer
            product.
        rank_RU: place of every unit in the order of the group, 0 for the last to be removed.
        update: how the kept weights take over.
        ridge, raised: see `least_squares.Solver`.
    """

    dense_OD: Tensor
    covariance_DD: Tensor
    mean_D: Tensor
    offset_D: Tensor
    rank_RU: Tensor
    update: Update
    ridge: float
    raised: bool
    _losses: dict[int, float] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        weight_OD: Tensor,
        covariance_DD: Tensor,
        mean_D: Tensor,
        offset_D: Tensor,
        rank_RU: Tensor,
        ridge: float = RIDGE,
        update: Update | None = None,
    ) -> MaskedSolver:
        """See the attributes; `ridge` as in `least_squares.Solver.of`.

        `update` None solves exactly up to `EXACT_COLUMNS` columns and sweeps over more.
        """
        added, _, raised = factorise(covariance_DD.double().addr(offset_D, offset_D), ridge)
        chosen = update or (exact_rows if len(mean_D) <= EXACT_COLUMNS else column_sweep)
        return MaskedSolver(
            weight_OD, covariance_DD, mean_D, offset_D, rank_RU, chosen, added, raised
        )

    @property
    def weight_OD(self) -> Tensor:
        """The dense weights, float64."""
        return self.dense_OD.detach().cpu().double()

    @property
    def matrix_DD(self) -> Tensor:
        """S plus the ridge, float64."""
        matrix_DD = self.covariance_DD.double().addr(self.offset_D, self.offset_D)
        matrix_DD.diagonal().add_(self.ridge)
        return matrix_DD

    def weight(self, units: int) -> Tensor:
        """Repaired weights, zero where removed, (D, O)."""
        weight_OD, keep_RD = self.weight_OD, self._keep(units)
        if self._whole(units):
            return weight_OD.T
        matrix_DD = self.matrix_DD
        new_OD = self.update(weight_OD, matrix_DD, keep_RD)
        self._losses[units] = _squares(weight_OD - new_OD, matrix_DD)
        return new_OD.T

    def cut(self, units: int) -> Tensor:
        """The dense weights, zero where removed, (D, O)."""
        weight_OD, keep_RD = self.weight_OD, self._keep(units)
        return (weight_OD * keep_RD.repeat_interleave(len(weight_OD) // len(keep_RD), 0)).T

    def missing_mean(self, units: int, weight_DO: Tensor) -> Tensor:
        """What the outputs lose on average and the bias must give back, (O,)."""
        return self.mean_D @ (self.weight_OD.T - weight_DO)

    def missing_variance(self, units: int, weight_DO: Tensor) -> Tensor:
        """What the outputs lose in variance, W S WT - W' S W'T on its diagonal, (O,)."""
        new_OD, weight_OD, matrix_DD = weight_DO.T, self.weight_OD, self.matrix_DD
        ridged_O = ((weight_OD @ matrix_DD) * weight_OD).sum(1)
        ridged_O = ridged_O - ((new_OD @ matrix_DD) * new_OD).sum(1)
        return ridged_O - self.ridge * (weight_OD.square() - new_OD.square()).sum(1)

    def loss(self, units: int) -> float:
        """Mean squared error of the outputs plus ridge times the squared change of the weights.

        Never rises with `units` where rows are solved exactly.
        """
        if units not in self._losses:
            if units == 0:
                self._losses[0] = _squares(self.weight_OD, self.matrix_DD)
            elif self._whole(units):
                self._losses[units] = 0.0
            else:
                self.weight(units)
        return self._losses[units]

    def _whole(self, units: int) -> bool:
        """Whether nothing goes."""
        return bool((self.rank_RU < units).all())

    def _keep(self, units: int) -> Tensor:
        """Which columns every row of units keeps, (R, D); every row of its own where some lack."""
        each = len(self.mean_D) // self.rank_RU.shape[1]
        keep_RD = (self.rank_RU < units).repeat_interleave(each, 1)
        dense_OD = self.dense_OD.detach().cpu()
        if not lacks_weights(dense_OD):
            return keep_RD
        return keep_RD.repeat_interleave(len(dense_OD) // len(keep_RD), 0) & (dense_OD != 0)


def lacks_weights(weight_OD: Tensor) -> bool:
    """Whether some weights are zero already; an output that has none at all is just dead."""
    zero_OD = weight_OD == 0
    return bool((zero_OD.any(1) & ~zero_OD.all(1)).any())


def _squares(change_OD: Tensor, matrix_DD: Tensor) -> float:
    return float(((change_OD @ matrix_DD) * change_OD).sum())
