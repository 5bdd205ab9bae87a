"""What the consumers of a group read, and the slots that can take what repair must give back.

Legend: D columns of a consumer that a group owns, in order of units, the last to be removed first
(single weights: all columns, as they are); O rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from prune_env.measure.calibration import Calibration
from prune_env.structure.groups import PrunableGroup
from prune_env.surgery.least_squares import Solver
from prune_env.surgery.masked_squares import MaskedSolver


class LevelSolver(Protocol):
    """All levels of one group in one consumer.

    Legend: K columns that are kept; single weights keep all columns, zero where removed.
    """

    @property
    def ridge(self) -> float:
        """What was added to the diagonal of S."""

    @property
    def raised(self) -> bool:
        """S was singular to rounding, so the ridge is larger than asked."""

    def weight(self, units: int) -> Tensor:
        """Repaired weights when the first `units` units stay, (K, O)."""

    def cut(self, units: int) -> Tensor:
        """The same, not repaired."""

    def missing_mean(self, units: int, weight_KO: Tensor) -> Tensor:
        """What the outputs lose on average with these weights, (O,)."""

    def missing_variance(self, units: int, weight_KO: Tensor) -> Tensor:
        """What they lose in variance, (O,)."""

    def loss(self, units: int) -> float:
        """Mean squared error of the repaired outputs, summed over rows."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """One consumer of one group, as repair sees it; float64.

    Attributes:
        tensor: state_dict key of its weight.
        columns_D: columns of the flattened weight that the group owns, unit by unit.
        weight_OD: the dense weights on them.
        matrix_DD: their covariance S, or E[x xT] where nothing can take a shift.
        mean_D: their mean, or 0 where nothing can take a shift.
        bias: key of the bias that takes the mean, or None.
        norm: prefix of the BatchNorm behind, which takes the variance (and the mean where there
            is no bias), or None.
        block: columns per unit.
        outputs: dim of the weight that its rows lie along.
        solve: makes its solver, with a ridge (see `Solver.of`).
    """

    tensor: str
    columns_D: Tensor
    weight_OD: Tensor
    matrix_DD: Tensor
    mean_D: Tensor
    bias: str | None
    norm: str | None
    block: int
    outputs: int
    solve: Callable[[Consumer, float], LevelSolver]

    def rows(self, weight: Tensor) -> Tensor:
        """A contiguous weight flattened to (O, all columns); writing to it writes to `weight`."""
        return _rows(weight, self.outputs)

    def solver(self, ridge: float) -> LevelSolver:
        """All levels of the group in this consumer."""
        return self.solve(self, ridge)


def consumers_of(
    group: PrunableGroup, order: Tensor, dense: Mapping[str, Tensor], calibration: Calibration
) -> list[Consumer]:
    """The consumers of a group that have statistics; the others are only cut.

    Args:
        group: whose consumers are wanted.
        order: its units, the last to be removed first.
        dense: tensors of the dense network by state_dict key.
        calibration: moments of the consumers.
    """
    columns: dict[tuple[str, int], list[Tensor]] = {}
    found = []
    for axis in group.axes:
        if axis.tensor not in calibration.moments:
            continue
        if axis.role == "weight":
            rank_RU = order.reshape(-1).argsort().reshape(group.grid[0], -1)
            width, solve = len(calibration.moments[axis.tensor].mean_D), partial(_weights, rank_RU)
            every_UW = torch.arange(width).reshape(rank_RU.shape[1], -1)
            place = (axis.tensor, axis.dims[0])
            found.append(_consumer(place, every_UW, solve, dense, calibration))
        elif axis.role == "in" and axis.dims in ((0,), (1,)):
            (owners_S,) = axis.owners(group.grid)
            owned = (owners_S >= 0).nonzero().squeeze(1)
            by_unit = owned[owners_S[owned].argsort(stable=True)].reshape(group.units, -1)[order]
            kernel = dense[axis.tensor][0, 0].numel()
            places = by_unit[:, :, None] * kernel + torch.arange(kernel)
            columns.setdefault((axis.tensor, 1 - axis.dims[0]), []).append(places.flatten(1))
    # A tensor that reads the units in several places (x beside x) is one consumer of wider units.
    for place, parts in columns.items():
        found.append(_consumer(place, torch.cat(parts, 1), _columns, dense, calibration))
    return found


def _columns(consumer: Consumer, ridge: float) -> LevelSolver:
    return Solver.of(consumer.weight_OD, consumer.matrix_DD, consumer.mean_D, consumer.block, ridge)


def _weights(rank_RU: Tensor, consumer: Consumer, ridge: float) -> LevelSolver:
    return MaskedSolver.of(consumer.weight_OD, consumer.matrix_DD, consumer.mean_D, rank_RU, ridge)


def _rows(weight: Tensor, outputs: int) -> Tensor:
    return weight.movedim(outputs, 0).flatten(1)


def _consumer(
    place: tuple[str, int],
    columns_UW: Tensor,
    solve: Callable[[Consumer, float], LevelSolver],
    dense: Mapping[str, Tensor],
    calibration: Calibration,
) -> Consumer:
    """The consumer whose weight is at `place`: its key, and the dim of its outputs."""
    (tensor, outputs), columns_D = place, columns_UW.reshape(-1)
    moments = calibration.moments[tensor]
    bias: str | None = tensor.removesuffix("weight") + "bias"
    bias = bias if bias in dense else None
    covariance_DD, mean_D = (
        moments.covariance_DD[columns_D][:, columns_D],
        moments.mean_D[columns_D],
    )
    if bias is None and moments.norm is None:
        covariance_DD, mean_D = covariance_DD + torch.outer(mean_D, mean_D), mean_D * 0
    return Consumer(
        tensor,
        columns_D,
        _rows(dense[tensor].detach(), outputs).cpu()[:, columns_D].double(),
        covariance_DD,
        mean_D,
        bias,
        moments.norm,
        columns_UW.shape[1],
        outputs,
        solve,
    )
