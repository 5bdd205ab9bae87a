"""Ladders: for every group all its levels, solved from one factorisation per consumer.

A level of a group says what its consumers become when the group keeps its first k units: weights on
the kept columns and what the removed ones contributed to the mean and the variance of the outputs.
Rows of a consumer belong to other groups, so any combination of levels can be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prune_env.measure.calibration import Calibration, Moments
from prune_env.structure.groups import Axis, PrunableGroup
from prune_env.structure.rewrite import tensors_of
from prune_env.surgery.criteria import score_units
from prune_env.surgery.least_squares import Solver, obs_scores

MEMORY = 512 * 2**20
"""Bytes of solved levels that a set of ladders keeps; beyond that levels are solved on demand."""


@dataclass(frozen=True, eq=False)
class Level:
    """What one consumer becomes at one level of one group.

    Legend: K kept columns, O rows.

    Attributes:
        weight_OK: weights on the kept columns, float32.
        mean_O, variance_O: what the outputs lost in mean and variance.
    """

    weight_OK: Tensor
    mean_O: Tensor
    variance_O: Tensor


@dataclass(frozen=True, eq=False)
class Consumer:
    """One consumer of one group.

    Attributes:
        tensor: state_dict key of its weight.
        columns_D: columns of the flattened weight (O, D) that the group owns, in order of units.
        bias: key of the bias that takes the mean, or None.
        norm: prefix of the BatchNorm that takes mean and variance instead, or None.
        solver: factorised statistics.
    """

    tensor: str
    columns_D: Tensor
    bias: str | None
    norm: str | None
    solver: Solver


@dataclass(frozen=True, eq=False)
class Ladders:
    """The ladders of all groups of one network under one order of units.

    Attributes:
        units: units per group.
        consumers: by group name; consumers without statistics are left out and only cut.
        dense: tensors of the dense network that repairs start from.
    """

    units: Mapping[str, int]
    consumers: Mapping[str, tuple[Consumer, ...]]
    dense: Mapping[str, Tensor]
    _solved: dict[tuple[str, int, int], Level] = field(default_factory=dict, repr=False)
    _room: list[int] = field(default_factory=lambda: [MEMORY], repr=False)

    @staticmethod
    def of(
        model: nn.Module,
        groups: Sequence[PrunableGroup],
        orders: Mapping[str, Tensor],
        calibration: Calibration,
    ) -> Ladders:
        """Factorise every consumer of every group.

        Args:
            model: the dense network the calibration was made on.
            groups: live groups.
            orders: units of each group, the last to be removed first.
            calibration: moments of the consumers.
        """
        dense = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
        consumers = {
            group.name: tuple(
                _consumer(dense, moments, columns, group.units)
                for moments, columns in consumers_of(group, orders[group.name], dense, calibration)
            )
            for group in groups
        }
        return Ladders({group.name: group.units for group in groups}, consumers, dense)

    def level(self, group: str, number: int, kept: int) -> Level:
        """Consumer `number` of `group` when it keeps its first `kept` units."""
        key = (group, number, kept)
        if key not in self._solved:
            solver = self.consumers[group][number].solver
            weight_KO = solver.weight(kept)
            level = Level(
                weight_KO.T.float().contiguous(),
                solver.missing_mean(kept, weight_KO).float(),
                solver.missing_variance(kept).float(),
            )
            size = 4 * (weight_KO.numel() + 2 * weight_KO.shape[1])
            if size > self._room[0]:
                return level
            self._room[0] -= size
            self._solved[key] = level
        return self._solved[key]

    def predicted_loss(self, group: str, kept: int) -> float:
        """Mean squared error of the group's consumers at a level, relative to their variance."""
        total = 0.0
        for consumer in self.consumers[group]:
            total += consumer.solver.loss(kept) / max(consumer.solver.loss(0), 1e-12)
        return total


def consumers_of(
    group: PrunableGroup,
    order: Tensor,
    dense: Mapping[str, Tensor],
    calibration: Calibration,
) -> list[tuple[Moments, Tensor]]:
    """Moments of each consumer of a group that has them, and the group's columns in its order."""
    found = []
    for axis in group.axes:
        moments = calibration.moments.get(axis.tensor)
        if axis.role == "in" and axis.dims == (1,) and moments is not None:
            if len(moments.second_GDD) > 1:
                continue  # columns of a grouped convolution mean something else in every group
            found.append((moments, _columns(axis, group.grid, order, dense[axis.tensor])))
    return found


def _columns(axis: Axis, grid: tuple[int, ...], order: Tensor, weight: Tensor) -> Tensor:
    """Columns of the flattened weight, unit by unit in the given order, (D,)."""
    (owners_S,) = axis.owners(grid)
    owned = (owners_S >= 0).nonzero().squeeze(1)
    places_UW = owned[owners_S[owned].argsort(stable=True)].reshape(grid[0], -1)[order]
    kernel = weight[0, 0].numel()
    return (places_UW.reshape(-1, 1) * kernel + torch.arange(kernel)).reshape(-1)


def _consumer(
    dense: Mapping[str, Tensor], moments: Moments, columns_D: Tensor, units: int
) -> Consumer:
    weight = dense[moments.tensor]
    bias = moments.tensor.removesuffix("weight") + "bias"
    norm = moments.norm if bias not in dense else None
    shifts = bias in dense or norm is not None
    mean_D = moments.mean_GD[0][columns_D]
    solver = Solver.of(
        weight.reshape(len(weight), -1)[:, columns_D],
        moments.second_GDD[0][columns_D][:, columns_D],
        mean_D if shifts else torch.zeros_like(mean_D),
        len(columns_D) // units,
    )
    return Consumer(moments.tensor, columns_D, bias if bias in dense else None, norm, solver)


Overlay = Callable[[Ladders, Mapping[str, int]], dict[str, Tensor]]
"""Tensors that take the place of the dense ones before a network is cut to these kept units."""


def least_squares(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """The kept columns take over for the removed ones; mean and variance are corrected.

    DESIGN.md section 3. BatchNorm's running variance loses what the outputs lose, so the next
    layer sees the scale it was trained on, without a pass over data.
    """
    overlay: dict[str, Tensor] = {}
    for group, units in _cut(ladders, kept):
        for number, consumer in enumerate(ladders.consumers[group]):
            level = ladders.level(group, number, units)
            weight = _copy(ladders, overlay, consumer.tensor)
            columns_K = consumer.columns_D[: level.weight_OK.shape[1]]
            weight.view(len(weight), -1)[:, columns_K] = level.weight_OK.to(weight)
            _shift(ladders, overlay, consumer, level.mean_O)
            if consumer.norm is not None:
                variance = _copy(ladders, overlay, f"{consumer.norm}.running_var")
                floor = 0.05 * ladders.dense[f"{consumer.norm}.running_var"]
                torch.maximum(variance - level.variance_O, floor, out=variance)
    return overlay


def bias_only(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """The removed columns are replaced by their mean, in the bias; weights stay (cheap)."""
    overlay: dict[str, Tensor] = {}
    for group, units in _cut(ladders, kept):
        for consumer in ladders.consumers[group]:
            solver = consumer.solver
            k = units * solver.block
            missing_O = (solver.mean_D[k:] @ solver.weight_DO[k:]).float()
            _shift(ladders, overlay, consumer, missing_O)
    return overlay


def no_overlay(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """Cut and nothing else."""
    return {}


def _cut(ladders: Ladders, kept: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(group, units) for group, units in kept.items() if units < ladders.units[group]]


def _shift(
    ladders: Ladders, overlay: dict[str, Tensor], consumer: Consumer, missing_O: Tensor
) -> None:
    if consumer.bias is not None:
        _copy(ladders, overlay, consumer.bias).add_(missing_O)
    elif consumer.norm is not None:
        _copy(ladders, overlay, f"{consumer.norm}.running_mean").sub_(missing_O)


def _copy(ladders: Ladders, overlay: dict[str, Tensor], name: str) -> Tensor:
    if name not in overlay:
        overlay[name] = ladders.dense[name].clone(memory_format=torch.contiguous_format)
    return overlay[name]


def score_by_obs(
    model: nn.Module, groups: Sequence[PrunableGroup], calibration: Calibration
) -> dict[str, Tensor]:
    """Scores of units by group OBS (see `obs_scores`); by L1 where a group has no statistics."""
    dense = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    scores = {}
    for group in groups:
        found = consumers_of(group, torch.arange(group.units), dense, calibration)
        if not found:
            scores.update(score_units(model, [group], "l1"))
            continue
        weights = [dense[m.tensor].flatten(1)[:, columns] for m, columns in found]
        seconds = [m.covariance_GDD[0][columns][:, columns] for m, columns in found]
        scores[group.name] = obs_scores(weights, seconds, group.units).reshape(group.grid)
    return scores
