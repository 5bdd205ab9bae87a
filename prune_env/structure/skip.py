"""What stands in for a part of a network that is gone: zeros, and nothing computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

BRANCHES, OUTPUTS = "branches", "branch_outputs"
"""Attributes of a module that can be skipped: 1 or 0 branches computed, and the length of the tuple
it returns (0: a tensor)."""


@dataclass(frozen=True)
class Skipped:
    """Forward of a module without its tensors: zeros like its first input.

    A cache that keeps its length in every layer still hears of every token.

    Attributes:
        outputs: length of the tuple to return (zeros, then None); 0 for the tensor alone.
        layer: number of the layer in a cache, or None.
    """

    outputs: int
    layer: int | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = list(chain(args, kwargs.values()))
        x = first_values(values)
        for cache in filter(is_cache, values):
            width_one = x.new_zeros(x.shape[0], 1, x.shape[1], 1)
            cache.update(width_one, width_one, self.layer)
        zeros = torch.zeros_like(x)
        return (zeros, *(None,) * (self.outputs - 1)) if self.outputs else zeros


def first_values(values: Iterable[Any]) -> Tensor:
    """The first floating-point tensor among the arguments of a call."""
    return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())


def is_cache(value: object) -> bool:
    """Whether `value` is what a decoder remembers of earlier tokens: told by its methods."""
    return hasattr(value, "update") and hasattr(value, "get_seq_length")


def switch(module: nn.Module) -> None:
    """Let `module` compute or be skipped, as its attribute says; others are left alone."""
    settings = vars(module)
    if BRANCHES in settings:
        settings.pop("forward", None)
        if settings[BRANCHES] == 0:
            layer = settings.get("layer_idx")
            settings["forward"] = Skipped(settings[OUTPUTS], layer)
