"""Repair: what is done to a candidate between cutting it and measuring it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from prune_env.errors import ConfigError
from prune_env.measure.batches import Batch
from prune_env.structure.inputs import call_model

Repair = Callable[[nn.Module, Sequence[Batch]], None]
"""Changes a candidate in place, given calibration batches."""


def reestimate_batchnorm(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Measure the running statistics of every BatchNorm again, in place.

    Removing channels shifts what later layers see; with the dense statistics a network with half
    its channels is often at chance (Li et al. 2020, EagleEye). Statistics become the plain average
    over `batches`; all other layers stay in eval mode, so dropout is off.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's spelling of a cumulative average
        norm.train()
    try:
        with torch.no_grad():
            for batch in batches:
                call_model(model, batch.inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


def no_repair(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Leave the candidate as it was cut, for comparison."""


REPAIRS: dict[str, Repair] = {"batchnorm": reestimate_batchnorm, "none": no_repair}


def repair_named(name: str) -> Repair:
    """The repair called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in REPAIRS:
        raise ConfigError(f"there is no repair '{name}'. Choose one of {', '.join(REPAIRS)}.")
    return REPAIRS[name]
