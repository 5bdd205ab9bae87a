"""Toys with calibration data, and what their consumers read, computed without the library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from hand import HAND, by_hand
from torch import Tensor, nn
from toys import NAMES, toy

from prune_env.calibration.statistics import Calibration, calibrate
from prune_env.plan.plan import rank_units
from prune_env.quality.batches import Batch
from prune_env.repair.ladder import Ladders
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, call_model, map_tensors
from prune_env.testing import toy_inputs

ALL = [*NAMES, *sorted(HAND)]


@dataclass(frozen=True)
class Case:
    """A network in float64, its live groups, calibration data and all-positions statistics."""

    model: nn.Module
    groups: tuple[PrunableGroup, ...]
    inputs: Inputs
    calibration: Calibration

    def ladders(self, **options: Any) -> Ladders:
        orders = rank_units(self.model, self.groups)
        return Ladders.of(self.model, self.groups, orders, self.calibration, **options)


@cache
def case(name: str) -> Case:
    """A toy, or a hand-made network whose units are not channels; do not change it."""
    if name in NAMES:
        found = toy(name)
        return case_of(found.model, found.live, map_tensors(Tensor.double, toy_inputs(name, 1, 24)))
    found = by_hand(name)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(24, 5, 10, generator=generator, dtype=torch.float64)
    return case_of(found.model, found.groups, tokens)


def case_of(model: nn.Module, groups: tuple[PrunableGroup, ...], inputs: Inputs) -> Case:
    calibration = calibrate(model, [batch_of(inputs)], groups, positions=None)
    return Case(model, groups, inputs, calibration)


def batch_of(inputs: Inputs) -> Batch:
    return Batch(inputs, torch.zeros(_length(inputs), dtype=torch.int64))


def split(inputs: Inputs, *sizes: int) -> list[Batch]:
    """Consecutive batches of these sizes, and the rest."""
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    bounds.append(_length(inputs))
    pairs = pairwise(bounds)
    return [batch_of(map_tensors(lambda t, a=a, b=b: t[a:b], inputs)) for a, b in pairs if b > a]


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def read_by(model: nn.Module, inputs: Inputs) -> dict[str, list[tuple[nn.Module, Tensor]]]:
    """For every module that is called, itself and each input it got, by path."""
    found: dict[str, list[tuple[nn.Module, Tensor]]] = {}
    handles = []
    for path, module in model.named_modules():

        def hook(module: nn.Module, args: Any, path: str = path) -> None:
            if args:
                found.setdefault(path, []).append((module, args[0].clone()))

        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        call_model(model, inputs)
    for handle in handles:
        handle.remove()
    return found


def unfolded(module: nn.Module, x: Tensor) -> Tensor:
    """Columns of a layer as a layer of the same kind with the identity as its weight sees them."""
    width = module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return x.reshape(-1, width)
    probe = type(module)(
        module.in_channels, width, module.kernel_size, module.stride, module.padding,
        module.dilation, bias=False, padding_mode=module.padding_mode,
    )  # fmt: skip
    identity = torch.eye(width, dtype=x.dtype).reshape(width, *module.weight.shape[1:])
    probe.weight = nn.Parameter(identity)
    with torch.no_grad():
        return probe(x).movedim(1, -1).reshape(-1, width)


def columns(case: Case, tensor: str) -> Tensor:
    """All columns that the consumer with this weight reads on the calibration data, (N, D)."""
    calls = read_by(case.model, case.inputs)[tensor.removesuffix(".weight")]
    return torch.cat([unfolded(module, x) for module, x in calls])
