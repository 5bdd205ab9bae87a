"""Overlays: the tensors that repair puts in the place of the dense ones before a network is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prune_env.repair.consumers import Consumer
from prune_env.repair.ladder import Ladders

Overlay = Callable[[Ladders, Mapping[str, int]], dict[str, Tensor]]
"""Dense-sized tensors by state_dict key, for these kept units; groups left out stay whole.

PlanError if a level is not in the ladders. Only tensors of consumers of groups that lose units are
in it, and every call makes them anew.
"""

VARIANCE_FLOOR = 0.05
"""Of a BatchNorm's dense variance: with less its gain would blow up what the repair got wrong."""


def least_squares(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """The kept columns or weights take over for the removed; mean and variance are corrected.

    DESIGN.md section 3. BatchNorm's running variance loses what the outputs lose, so the next
    layer sees the scale it was trained on, without a pass over data.
    """
    overlay: dict[str, Tensor] = {}
    for group, units in ladders.cut(kept):
        for number, consumer in enumerate(ladders.consumers[group]):
            level = ladders.level(group, number, units)
            weight = _copy(ladders, overlay, consumer.tensor)
            columns_K = consumer.columns_D[: level.weight_OK.shape[1]]
            consumer.rows(weight)[:, columns_K] = level.weight_OK.to(weight)
            _shift(ladders, overlay, consumer, level.mean_O)
            if consumer.norm is not None:
                name = f"{consumer.norm}.running_var"
                variance, floor = (
                    _copy(ladders, overlay, name),
                    VARIANCE_FLOOR * ladders.dense[name],
                )
                torch.maximum(variance - level.variance_O.to(variance), floor, out=variance)
    return overlay


def bias_only(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """What is removed is replaced by its mean, in the bias; weights stay (cheap)."""
    overlay: dict[str, Tensor] = {}
    for group, units in ladders.cut(kept):
        solvers = zip(ladders.consumers[group], ladders.solvers[group], strict=True)
        for consumer, solver in solvers:
            missing_O = solver.missing_mean(units, solver.cut(units))
            _shift(ladders, overlay, consumer, missing_O)
    return overlay


def no_overlay(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
    """Cut and nothing else."""
    ladders.cut(kept)
    return {}


def _shift(
    ladders: Ladders, overlay: dict[str, Tensor], consumer: Consumer, missing_O: Tensor
) -> None:
    """Give the mean that the outputs lost to the slot behind them, if there is one."""
    if consumer.bias is not None:
        bias = _copy(ladders, overlay, consumer.bias)
        bias.add_(missing_O.to(bias))
    elif consumer.norm is not None:
        mean = _copy(ladders, overlay, f"{consumer.norm}.running_mean")
        mean.sub_(missing_O.to(mean))


def _copy(ladders: Ladders, overlay: dict[str, Tensor], name: str) -> Tensor:
    if name not in overlay:
        overlay[name] = ladders.dense[name].clone(memory_format=torch.contiguous_format)
    return overlay[name]
