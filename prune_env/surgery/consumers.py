"""What the consumers of a group read, and the slots that can take what repair must give back.

Legend: D columns of a consumer that a group owns, in order of units, the last to be removed first;
O rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prune_env.measure.calibration import Calibration
from prune_env.structure.groups import PrunableGroup


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
    """

    tensor: str
    columns_D: Tensor
    weight_OD: Tensor
    matrix_DD: Tensor
    mean_D: Tensor
    bias: str | None
    norm: str | None
    block: int


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
    columns: dict[str, list[Tensor]] = {}
    for axis in group.axes:
        if axis.role == "in" and axis.dims == (1,) and axis.tensor in calibration.moments:
            (owners_S,) = axis.owners(group.grid)
            owned = (owners_S >= 0).nonzero().squeeze(1)
            by_unit = owned[owners_S[owned].argsort(stable=True)].reshape(group.units, -1)[order]
            kernel = dense[axis.tensor][0, 0].numel()
            places = by_unit[:, :, None] * kernel + torch.arange(kernel)
            columns.setdefault(axis.tensor, []).append(places.flatten(1))
    # A tensor that reads the units in several places (x beside x) is one consumer of wider units.
    return [
        _consumer(name, torch.cat(parts, 1), dense, calibration) for name, parts in columns.items()
    ]


def _consumer(
    tensor: str, columns_UW: Tensor, dense: Mapping[str, Tensor], calibration: Calibration
) -> Consumer:
    moments, columns_D = calibration.moments[tensor], columns_UW.reshape(-1)
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
        dense[tensor].detach().flatten(1).cpu()[:, columns_D].double(),
        covariance_DD,
        mean_D,
        bias,
        moments.norm,
        columns_UW.shape[1],
    )
