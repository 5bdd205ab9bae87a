"""Errors of a network's own code, with the layer that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prune_env.errors import ModelError

OF_SHAPES = (RuntimeError, ValueError, AssertionError, IndexError)
"""What layers raise when widths do not fit."""

CURE = (
    "A layer that no example runs keeps its width: find the groups anew with an example that runs "
    "it (`more_inputs` of find_groups, or the first samples of the task's data), or leave what it "
    "reads alone with `ignore`"
)


@contextmanager
def naming_layer() -> Iterator[None]:
    """Inside, an error about shapes of a pruned network becomes a `ModelError` naming the layer.

    Costs nothing until something fails, and leaves no mark on the network.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except OF_SHAPES as error:
        place = place_of(error)
        if not place:
            raise
        first = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ModelError(f"the pruned network fails: {first}, {place}. {CURE}.") from error


def place_of(error: BaseException) -> str:
    """The innermost layer that an error came through, with its weight and input; else empty."""
    paths: dict[int, str] = {}
    place, traceback = "", error.__traceback__
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        layer = values.get("self")
        if isinstance(layer, nn.Module):
            paths = paths or {id(module): path for path, module in layer.named_modules()}
            if path := paths.get(id(layer)):
                place = f"in '{path}' ({type(layer).__name__}{_shapes(layer, values)})"
        traceback = traceback.tb_next
    return place


def _shapes(layer: nn.Module, values: dict[str, object]) -> str:
    weight = layer._parameters.get("weight")
    read = [value for value in values.values() if isinstance(value, Tensor)]
    told = [f"weight {tuple(weight.shape)}"] if isinstance(weight, Tensor) else []
    told += [f"input {tuple(read[0].shape)}"] if read else []
    return "".join(f", {text}" for text in told)
