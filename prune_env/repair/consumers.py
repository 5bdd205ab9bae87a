"""What the consumers of a group read, and the slots that can take what repair must give back.

Legend: D columns of a consumer that a group owns, in order of units, the last to be removed first
(single weights: all columns, as they are); O rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from prune_env.calibration.statistics import Calibration, Part
from prune_env.repair.least_squares import Solver
from prune_env.repair.masked_squares import MaskedSolver, lacks_weights
from prune_env.structure.groups import PrunableGroup


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
    """Where one consumer of one group lives; holds no statistics.

    Attributes:
        tensor: state_dict key of its weight.
        columns_D: columns of the flattened weight that the group owns, unit by unit.
        bias: key of the bias that takes the mean, or None.
        norm: prefix of the BatchNorm behind, which takes the variance (and the mean where there
            is no bias), or None.
        block: columns per unit.
        outputs: dim of the weight that its rows lie along.
    """

    tensor: str
    columns_D: Tensor
    bias: str | None
    norm: str | None
    block: int
    outputs: int

    def rows(self, weight: Tensor) -> Tensor:
        """A contiguous weight flattened to (O, all columns); writing to it writes to `weight`."""
        return weight.movedim(self.outputs, 0).flatten(1)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is known of a consumer, or of a block of it, when its ladder is made.

    Attributes:
        consumer: where it lives.
        dense_OC: its dense weights on all C columns, as they are.
        part: statistics that its columns are among.
        places_D: where among them.
        ranks_RU: places in the order of the group of the units that the columns belong to, the same
            in every row unless single weights go.
        solve: makes its solver, with a ridge (see `Solver.of`).
    """

    consumer: Consumer
    dense_OC: Tensor
    part: Part
    places_D: Tensor
    ranks_RU: Tensor
    solve: Callable[[Problem, float], LevelSolver]

    @property
    def weight_OD(self) -> Tensor:
        """The dense weights on the columns, float64."""
        return self.dense_OC.cpu()[:, self.consumer.columns_D].double()

    @property
    def covariance_DD(self) -> Tensor:
        """Of the columns; what the part holds where the columns are all of it."""
        if torch.equal(self.places_D, torch.arange(len(self.part.mean_D))):
            return self.part.covariance_DD
        return self.part.covariance_DD[self.places_D][:, self.places_D]

    @property
    def mean_D(self) -> Tensor:
        """Mean of the columns, 0 where nothing can take a shift."""
        return self.part.mean_D[self.places_D] * self._shifts

    @property
    def offset_D(self) -> Tensor:
        """Mean of the columns where nothing can take a shift, else 0."""
        return self.part.mean_D[self.places_D] * (not self._shifts)

    @property
    def matrix_DD(self) -> Tensor:
        """S of the columns, or E[x xT] where nothing can take a shift; float64."""
        if self._shifts:
            return self.covariance_DD.double()
        return self.covariance_DD.double().addr(self.offset_D, self.offset_D)

    @property
    def _shifts(self) -> bool:
        return self.consumer.bias is not None or self.consumer.norm is not None

    def solver(self, ridge: float) -> LevelSolver:
        """All levels of the group in this consumer."""
        return self.solve(self, ridge)

    def settled(self) -> Problem:
        """The same as it can be solved: rows that lack weights have no factorisation in common.

        Their columns are then as they lie, for a sweep over them must not depend on the order.
        """
        whole_OD = self.dense_OC.cpu()[:, self.consumer.columns_D]
        if self.solve is not _columns or not lacks_weights(whole_OD):
            return self
        order_D = self.consumer.columns_D.argsort()
        columns_D = self.consumer.columns_D[order_D]
        return replace(
            self,
            consumer=replace(self.consumer, columns_D=columns_D, block=1),
            places_D=self.places_D[order_D],
            ranks_RU=self.ranks_RU.repeat_interleave(self.consumer.block, 1)[:, order_D],
            solve=_weights,
        )


def problems_of(
    group: PrunableGroup, order: Tensor, dense: Mapping[str, Tensor], calibration: Calibration
) -> list[Problem]:
    """The consumers of a group that have statistics, block by block; the others are only cut.

    Args:
        group: whose consumers are wanted.
        order: its units, the last to be removed first.
        dense: tensors of the dense network by state_dict key.
        calibration: moments of the consumers.
    """
    columns: dict[tuple[str, int], list[Tensor]] = {}
    found: list[Problem] = []
    for axis in group.axes:
        if axis.tensor not in calibration.moments:
            continue
        if axis.role == "weight":
            rank_RU = order.reshape(-1).argsort().reshape(group.grid[0], -1)
            every_UW = torch.arange(calibration.moments[axis.tensor].width)
            every_UW = every_UW.reshape(rank_RU.shape[1], -1)
            place = (axis.tensor, axis.dims[0])
            found += _problems(place, every_UW, rank_RU, _weights, dense, calibration)
        elif axis.role == "in" and axis.dims in ((0,), (1,)):
            (owners_S,) = axis.owners(group.grid)
            owned = (owners_S >= 0).nonzero().squeeze(1)
            by_unit = owned[owners_S[owned].argsort(stable=True)].reshape(group.units, -1)[order]
            kernel = dense[axis.tensor][0, 0].numel()
            places = by_unit[:, :, None] * kernel + torch.arange(kernel)
            columns.setdefault((axis.tensor, 1 - axis.dims[0]), []).append(places.flatten(1))
    # A tensor that reads the units in several places (x beside x) is one consumer of wider units.
    rank_1U = torch.arange(group.units)[None]
    for place, parts in columns.items():
        found += _problems(place, torch.cat(parts, 1), rank_1U, _columns, dense, calibration)
    return found


def _columns(problem: Problem, ridge: float) -> LevelSolver:
    return Solver.of(
        problem.dense_OC,
        problem.matrix_DD,
        problem.mean_D,
        problem.consumer.block,
        ridge,
        problem.consumer.columns_D,
        problem.ranks_RU[0],
    )


def _weights(problem: Problem, ridge: float) -> LevelSolver:
    return MaskedSolver.of(
        chosen_columns(problem.dense_OC, problem.consumer.columns_D),
        problem.covariance_DD,
        problem.mean_D,
        problem.offset_D,
        problem.ranks_RU,
        ridge,
    )


def chosen_columns(weight_OC: Tensor, columns_D: Tensor) -> Tensor:
    """These columns; the weight itself, which costs no memory, where they are all as they are."""
    if torch.equal(columns_D, torch.arange(weight_OC.shape[1])):
        return weight_OC
    return weight_OC[:, columns_D]


def _problems(
    place: tuple[str, int],
    columns_UW: Tensor,
    ranks_RU: Tensor,
    solve: Callable[[Problem, float], LevelSolver],
    dense: Mapping[str, Tensor],
    calibration: Calibration,
) -> Iterator[Problem]:
    """The consumer whose weight is at `place` (its key, and the dim of its outputs), by blocks.

    A unit that is spread over several blocks is in none.
    """
    (tensor, outputs), moments = place, calibration.moments[place[0]]
    bias = tensor.removesuffix("weight") + "bias"
    for part in moments.parts:
        place_C = torch.full((moments.width,), -1, dtype=torch.int64)
        place_C[part.columns_D] = torch.arange(len(part.columns_D))
        here_U = (place_C[columns_UW] >= 0).all(1)
        columns_D = columns_UW[here_U].reshape(-1)
        if len(columns_D):
            consumer = Consumer(
                tensor,
                columns_D,
                bias if bias in dense else None,
                moments.norm,
                columns_UW.shape[1],
                outputs,
            )
            rows_OC = consumer.rows(dense[tensor].detach())
            yield Problem(consumer, rows_OC, part, place_C[columns_D], ranks_RU[:, here_U], solve)
