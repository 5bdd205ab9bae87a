"""Group OBS: which units to give up, by greedy elimination with updates of the inverse.

Legend: U units, b columns per unit, D = U x b columns, O rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune_env.measure.calibration import Calibration
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import tensors_of
from prune_env.surgery.consumers import consumers_of
from prune_env.surgery.criteria import score_units
from prune_env.surgery.least_squares import RIDGE, factorise


def score_by_obs(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    calibration: Calibration,
    ridge: float = 10 * RIDGE,
) -> dict[str, Tensor]:
    """Scores of units by group OBS (see `obs_scores`); by L1 where a group has no statistics."""
    dense: Mapping[str, Tensor] = tensors_of(model)
    scores = {}
    for group in groups:
        found = consumers_of(group, torch.arange(group.units), dense, calibration)
        if found:
            weights, matrices = [c.weight_OD for c in found], [c.matrix_DD for c in found]
            flat = obs_scores(weights, matrices, group.units, ridge)
            scores[group.name] = flat.reshape(group.grid)
        else:
            scores.update(score_units(model, [group], "l1"))
    return scores


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
    work = [_Elimination(w, s, units, ridge) for w, s in zip(weights_OD, matrices_DD, strict=True)]
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

    def __init__(self, weight_OD: Tensor, matrix_DD: Tensor, units: int, ridge: float) -> None:
        _, lower_DD, _ = factorise(matrix_DD.double(), ridge)
        self.weight = weight_OD.double().clone()
        self.scale = float((self.weight @ lower_DD).square().sum().clamp(min=1e-300))
        self.inverse = torch.cholesky_inverse(lower_DD)
        self.units, self.block = units, len(matrix_DD) // units

    def cost(self) -> Tensor:
        """Loss of removing each unit, relative to the outputs, (U,)."""
        u, b = self.units, self.block
        blocks_Ubb = self.inverse.reshape(u, b, u, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight_UbO = self.weight.T.reshape(u, b, -1)
        cost_U: Tensor = (weight_UbO * torch.linalg.solve(blocks_Ubb, weight_UbO)).sum((1, 2))
        return cost_U / self.scale

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
