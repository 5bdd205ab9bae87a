"""Ladders: for every group all its levels, solved when they are asked for and then kept.

A level of a group says what its consumers become when the group keeps its first k units: weights on
the kept columns and what the removed ones contributed to the mean and the variance of the outputs.
Rows of a consumer belong to other groups, so any combination of levels can be put together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from prune_env.calibration.statistics import Calibration, joined
from prune_env.errors import ModelError, PlanError
from prune_env.fingerprint import fingerprint
from prune_env.repair.consumers import Consumer, LevelSolver, problems_of
from prune_env.repair.least_squares import RIDGE
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import require_tensors, tensors_of

MEMORY = 512 * 2**20
"""Bytes of solved levels that a set of ladders keeps; beyond that levels are solved on demand."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Level:
    """What one consumer becomes at one level of one group, in the dtype of its weight.

    Legend: K kept columns (all of them where single weights go, which are then 0), O rows.

    Attributes:
        weight_OK: weights on the kept columns.
        mean_O, variance_O: what the outputs lost in mean and variance.
    """

    weight_OK: Tensor
    mean_O: Tensor
    variance_O: Tensor

    @property
    def bytes(self) -> int:
        """Memory held by the level."""
        tensors = (self.weight_OK, self.mean_O, self.variance_O)
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Origin:
    """Which network and calibration ladders are of.

    Attributes:
        model: fingerprint of the network.
        samples: of the calibration.
        digests: of the moments of each consumer.
    """

    model: str
    samples: int
    digests: Mapping[str, str]

    @staticmethod
    def of(calibration: Calibration) -> Origin:
        """That of ladders made of this calibration."""
        return Origin(calibration.model, calibration.samples, calibration.digests())

    @property
    def calibration(self) -> str:
        """Fingerprint of the calibration."""
        return joined(self.digests)


@dataclass(frozen=True, eq=False)
class Rungs:
    """What is solved of one group: consumers, or blocks of them, and a solver for each."""

    consumers: tuple[Consumer, ...]
    solvers: tuple[LevelSolver, ...]

    @staticmethod
    def of(
        group: PrunableGroup,
        order: Tensor,
        dense: Mapping[str, Tensor],
        calibration: Calibration,
        ridge: float,
    ) -> Rungs:
        """Factorise the statistics of a group. See `Ladders.of`."""
        problems = [p.settled() for p in problems_of(group, order, dense, calibration)]
        solvers = tuple(problem.solver(ridge) for problem in problems)
        return Rungs(tuple(problem.consumer for problem in problems), solvers)


@dataclass(frozen=True, eq=False)
class Ladders:
    """The ladders of all groups of one network under one order of units.

    Attributes:
        groups: by name.
        orders: units of each group, the last to be removed first; a level keeps a prefix.
        made_of: what they were solved from; the statistics themselves are not kept.
        ridge: see `Solver.of`.
        dense: tensors of the dense network that repairs start from.
        consumers: by group name; consumers without statistics are left out and only cut.
        solvers: one for each of `consumers`.
        memory: bytes of solved levels to keep.
    """

    groups: Mapping[str, PrunableGroup]
    orders: Mapping[str, Tensor]
    made_of: Origin
    ridge: float
    dense: Mapping[str, Tensor]
    consumers: Mapping[str, tuple[Consumer, ...]]
    solvers: Mapping[str, tuple[LevelSolver, ...]]
    memory: int
    _solved: dict[tuple[str, int, int], Level] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        model: nn.Module,
        groups: Sequence[PrunableGroup],
        orders: Mapping[str, Tensor],
        calibration: Calibration,
        *,
        ridge: float = RIDGE,
        memory: int = MEMORY,
    ) -> Ladders:
        """Prepare every consumer of every group; whole columns are factorised once for all levels.

        Args:
            model: the dense network the calibration was made on.
            groups: live groups.
            orders: units of each group, the last to be removed first.
            calibration: moments of the consumers.
            ridge: see `Solver.of`; where it had to be raised, one line is logged.
            memory: bytes of solved levels to keep.

        Raises:
            ModelError: the calibration was made on another network.
            GroupError: the groups were.
        """
        require_tensors(model, groups)
        if calibration.model != fingerprint(model):
            raise ModelError(
                f"these statistics are of another {type(model).__name__} (fingerprint "
                f"{calibration.model}, this model {fingerprint(model)}), or its weights have "
                "changed since. Calibrate again on this model."
            )
        dense = detached(model)
        rungs = {
            group.name: Rungs.of(group, orders[group.name], dense, calibration, ridge)
            for group in groups
        }
        origin = Origin.of(calibration)
        return Ladders.joined(model, groups, orders, origin, rungs, ridge=ridge, memory=memory)

    @staticmethod
    def joined(
        model: nn.Module,
        groups: Sequence[PrunableGroup],
        orders: Mapping[str, Tensor],
        made_of: Origin,
        rungs: Mapping[str, Rungs],
        *,
        ridge: float,
        memory: int,
    ) -> Ladders:
        """Ladders of groups that are solved already; see `of`, and `attributes`."""
        consumers = {group.name: rungs[group.name].consumers for group in groups}
        solvers = {group.name: rungs[group.name].solvers for group in groups}
        _report_raised(consumers, solvers)
        named = {group.name: group for group in groups}
        return Ladders(named, orders, made_of, ridge, detached(model), consumers, solvers, memory)

    def level(self, group: str, number: int, kept: int) -> Level:
        """Consumer `number` of `group` when it keeps its first `kept` units.

        Raises:
            PlanError: there is no such group or level.
        """
        self.cut({group: kept})
        key = (group, number, kept)
        if key in self._solved:
            return self._solved[key]
        solver, weight = (
            self.solvers[group][number],
            self.dense[self.consumers[group][number].tensor],
        )
        weight_KO = solver.weight(kept)
        mean_O = solver.missing_mean(kept, weight_KO)
        variance_O = solver.missing_variance(kept, weight_KO)
        level = Level(
            weight_KO.T.to(weight.dtype).contiguous(),
            mean_O.to(weight.dtype),
            variance_O.to(weight.dtype),
        )
        if self.bytes + level.bytes <= self.memory:
            self._solved[key] = level
        return level

    def predicted_loss(self, group: str, kept: int) -> float:
        """Mean squared error of the group's consumers at a level, relative to their variance.

        Summed over consumers, never rising with `kept`; 0 for a group without statistics.

        Raises:
            PlanError: there is no such group or level.
        """
        self.cut({group: kept})
        lost: dict[str, float] = {}
        whole: dict[str, float] = {}
        for consumer, solver in zip(self.consumers[group], self.solvers[group], strict=True):
            name = consumer.tensor  # of which there may be several blocks
            lost[name] = lost.get(name, 0.0) + solver.loss(kept)
            whole[name] = whole.get(name, 0.0) + solver.loss(0)
        return sum(lost[name] / max(whole[name], 1e-300) for name in lost)

    def cut(self, kept: Mapping[str, int]) -> list[tuple[str, int]]:
        """The groups that lose units, and what they keep.

        Raises:
            PlanError: there is no such group or level.
        """
        for name, units in kept.items():
            if name not in self.groups:
                raise PlanError(
                    f"there is no ladder for group '{name}'; there are ladders for "
                    f"{', '.join(self.groups)}. Was the plan made for another model?"
                )
            lowest, whole = min(1, self.groups[name].min_keep), self.groups[name].units
            if not lowest <= units <= whole:
                raise PlanError(
                    f"the ladder of group '{name}' has no level of {units} kept units, only from "
                    f"{lowest} to {whole}. Use one of the group's levels."
                )
        return [(name, units) for name, units in kept.items() if units < self.groups[name].units]

    @property
    def bytes(self) -> int:
        """Memory held by solved levels, at most `memory`."""
        return sum(level.bytes for level in self._solved.values())


def detached(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network by state_dict key, without gradients."""
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def _report_raised(
    consumers: Mapping[str, tuple[Consumer, ...]], solvers: Mapping[str, tuple[LevelSolver, ...]]
) -> None:
    """One line for all consumers whose statistics are singular."""
    raised = [
        consumer.tensor.removesuffix(".weight")
        for name, found in consumers.items()
        for consumer, solver in zip(found, solvers[name], strict=True)
        if solver.raised
    ]
    if raised:
        more = f" and {len(raised) - 4} more" if len(raised) > 4 else ""
        _log.warning(
            "the input statistics of %s%s are singular (dead channels, or fewer samples than "
            "columns); their ridge was raised. More calibration samples may help.",
            ", ".join(raised[:4]),
            more,
        )
