"""Repairs by name: closed form before the cut (overlays.py), on data after it, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prune_env.calibration.norm_rows import over_data
from prune_env.errors import DataError, look_up
from prune_env.quality.batches import Batch
from prune_env.repair.overlays import Overlay, bias_only, least_squares, no_overlay
from prune_env.structure.inputs import call_model, eval_mode

Finish = Callable[[nn.Module, Sequence[Batch]], None]
"""Changes a candidate in place, given calibration batches."""


def reestimate_batchnorm(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Measure the running statistics of every BatchNorm again, in place.

    Removing channels shifts what later layers see; with the dense statistics a network with half
    its channels is often at chance (Li et al. 2020, EagleEye). Statistics become the plain average
    over `batches`; all other layers stay in eval mode, so dropout is off. When the model fails, its
    statistics are as before. Padded positions are no data.

    Raises:
        DataError: there are no batches, or none that BatchNorm can measure a spread on.
    """
    if not batches:
        raise DataError("there are no batches to measure BatchNorm statistics on.")
    norms = _running(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    before = [(t, t.clone()) for norm in norms for t in norm._buffers.values() if t is not None]
    with eval_mode(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's spelling of a cumulative average
            norm.train()
        try:
            if not sum(_counted(model, batch, norms) for batch in batches):
                raise DataError(
                    "every calibration batch has one sample, and BatchNorm needs two to measure a "
                    "spread. Give batches of two samples or more (batch_size), or more samples."
                )
        except BaseException:
            for tensor, value in before:
                tensor.copy_(value)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _running(model: nn.Module) -> list[Any]:
    """Layers with running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]


def _counted(model: nn.Module, batch: Batch, norms: Sequence[nn.Module]) -> bool:
    """Whether a batch entered the statistics: one sample has none where it is one value alone.

    500 samples in batches of 125 make no such batch, 501 do.
    """
    alone = norms if len(batch) == 1 else ()
    held = [(t, t.clone()) for n in alone for t in n._buffers.values() if t is not None]
    try:
        with over_data(norms, batch.positions):
            call_model(model, batch.inputs)
    except ValueError:
        if len(batch) > 1:
            raise
        for tensor, value in held:
            tensor.copy_(value)
        return False
    return True


def no_finish(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Leave the candidate as it was cut."""


@dataclass(frozen=True)
class Repair:
    """What is done to a candidate between cutting it and measuring it.

    Attributes:
        overlay: tensors that replace the dense ones before the cut; closed form, no data.
        finish: what is done to the cut network, with calibration data.
    """

    overlay: Overlay = no_overlay
    finish: Finish = no_finish

    def reads_data(self, model: nn.Module) -> bool:
        """Whether a candidate of this network is run on data before it is measured."""
        if self.finish is reestimate_batchnorm:
            return bool(_running(model))
        return self.finish is not no_finish


REPAIRS: dict[str, Repair] = {
    "least_squares": Repair(least_squares),
    "least_squares+batchnorm": Repair(least_squares, reestimate_batchnorm),
    "bias": Repair(bias_only),
    "batchnorm": Repair(finish=reestimate_batchnorm),
    "none": Repair(),
}


def repair_named(name: str) -> Repair:
    """The repair called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("repair", name, REPAIRS)
