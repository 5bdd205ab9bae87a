"""From a dense network and data to scores and ladders, a portion of the groups at a time.

The statistics of a portion are dropped once its groups are scored and factorised, so the memory is
that of the factors and of one portion, however deep the network is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prune_env.calibration.statistics import POSITIONS, Calibration, calibrations
from prune_env.progress import progress
from prune_env.quality.batches import Batch
from prune_env.repair.ladder import MEMORY, Ladders, Origin, Rungs, detached
from prune_env.repair.least_squares import RIDGE
from prune_env.structure.groups import PrunableGroup

Score = Callable[[Sequence[PrunableGroup], Calibration], Mapping[str, Tensor]]
"""Scores of units by group name, in the shape of the grid, from the statistics of these groups."""


@dataclass(frozen=True, eq=False)
class Built:
    """Scores of the units of every group, and ladders in their order."""

    scores: Mapping[str, Tensor]
    ladders: Ladders


def build_ladders(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[PrunableGroup],
    score: Score,
    *,
    statistics: float | None = None,
    positions: int | None = POSITIONS,
    seed: int = 0,
    ridge: float = RIDGE,
    memory: int = MEMORY,
) -> Built:
    """Calibrate, score and factorise; the data are passed over once for each portion of groups.

    Args:
        model: the dense network.
        batches: calibration data.
        groups: live groups.
        score: what orders the units; it sees a portion of the groups at a time.
        statistics: bytes of covariances at once, see `calibrations`.
        positions, seed: see `calibrate`.
        ridge, memory: see `Ladders.of`.

    Raises:
        DataError, ModelError, GroupError: see `calibrate` and `score`.
    """
    dense, scores, orders = detached(model), dict[str, Tensor](), dict[str, Tensor]()
    rungs, digests, origin = dict[str, Rungs](), dict[str, str](), Origin("", 0, {})
    found = calibrations(model, batches, groups, memory=statistics, positions=positions, seed=seed)
    with progress("solve levels", len(groups), "groups", passing=True) as bar:
        for portion, calibration in found:
            scores |= score(portion, calibration)
            for group in portion:
                orders[group.name] = group.pattern.order(scores[group.name])
                rungs[group.name] = Rungs.of(group, orders[group.name], dense, calibration, ridge)
                bar.step(group.name)
            digests |= calibration.digests()
            origin = Origin(calibration.model, calibration.samples, digests)
            del calibration  # before the next portion is summed
    ladders = Ladders.joined(model, groups, orders, origin, rungs, ridge=ridge, memory=memory)
    return Built(scores, ladders)


def ladders_of(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[PrunableGroup],
    orders: Mapping[str, Tensor],
    *,
    seed: int = 0,
    ridge: float = RIDGE,
) -> Ladders:
    """The same for units whose order is known; nothing is scored.

    See `build_ladders` for the arguments and errors.
    """
    dense, rungs, digests = detached(model), dict[str, Rungs](), dict[str, str]()
    origin = Origin("", 0, digests)
    for portion, calibration in calibrations(model, batches, groups, seed=seed):
        rungs |= {g.name: Rungs.of(g, orders[g.name], dense, calibration, ridge) for g in portion}
        digests |= calibration.digests()
        origin = Origin(calibration.model, calibration.samples, digests)
        del calibration
    return Ladders.joined(model, groups, orders, origin, rungs, ridge=ridge, memory=MEMORY)
