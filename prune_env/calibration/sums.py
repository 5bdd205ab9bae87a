"""Running sums of the columns that one consumer reads.

Legend: N column vectors, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune_env.errors import ModelError

WIDE_COLUMNS = 1024
"""A matrix of more columns is kept in float32: its ridge is far above the rounding, and a deep
network has many of them. They are summed and factorised in float64 like all others."""


def precision_of(columns: int) -> torch.dtype:
    """The dtype in which statistics and factors of this many columns are kept."""
    return torch.float32 if columns > WIDE_COLUMNS else torch.float64


class Sums:
    """Sums of some columns, taken around the mean of the first of them.

    That keeps the covariance exact where the mean is large beside it: a constant input has none.
    """

    def __init__(self, path: str, places_D: Tensor) -> None:
        """`places_D`: for every column wanted, its place in what the layer reads."""
        self._path, self._places, self.count = path, places_D, 0
        self._gathered = False
        self._around: Any = None
        self._first: Any = 0.0
        self._second: Any = None

    def add(self, columns_ND: Tensor) -> None:
        """Columns of one batch, which fit float32; sums over batches are kept in float64."""
        if not len(columns_ND):
            return
        columns_ND = columns_ND.to(torch.promote_types(columns_ND.dtype, torch.float32))
        self._gathered = len(self._places) < columns_ND.shape[1]
        if self._gathered:
            columns_ND = columns_ND[:, self._places.to(columns_ND.device)]
        if self._second is None:
            self._around = columns_ND[: max(1, len(columns_ND) // 8)].mean(0)
            width = columns_ND.shape[1]
            self._second = columns_ND.new_zeros(width, width, dtype=torch.float64)
        columns_ND = columns_ND - self._around
        self._first = self._first + columns_ND.sum(0).double()
        _add_gram(self._second, columns_ND)
        # No product is larger than the larger one of the two squares.
        require_finite_sum(self._path, self._second.diagonal())
        self.count += len(columns_ND)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Covariance and mean, in the order of the places; nothing can be added afterwards."""
        offset_D, second_DD = (self._first / self.count).cpu(), self._second.cpu()
        self._second = None
        second_DD.div_(self.count).triu_()
        second_DD += second_DD.triu(1).T
        second_DD.addr_(offset_D, offset_D, alpha=-1)
        mean_D = self._around.double().cpu() + offset_D
        if self._gathered or torch.equal(self._places, torch.arange(len(mean_D))):
            return second_DD.to(precision_of(len(mean_D))), mean_D
        ordered_DD = second_DD[self._places][:, self._places]
        return ordered_DD.to(precision_of(len(mean_D))), mean_D[self._places]


def _add_gram(second_DD: Tensor, columns_ND: Tensor) -> None:
    """Add xT x; only the upper triangle of blocks is filled, which saves a third of the work."""
    width = columns_ND.shape[1]
    step = max(96, -(-width // 4))
    for start in range(0, width, step):
        block = columns_ND[:, start : start + step]
        second_DD[start : start + step, start:] += block.T @ columns_ND[:, start:]


def require_finite_sum(path: str, x: Tensor) -> None:
    """Check what a layer reads by its sum, which is NaN or infinite when any value is.

    Raises:
        ModelError: names the layer.
    """
    # One pass without a copy.
    if not bool(torch.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))):
        raise ModelError(
            f"the input of '{path}' holds NaN, infinite or far too large values on the "
            "calibration data. Check the inputs and the layers before it."
        )
