"""What a model is called with and what it gives back: one tensor, several, or named ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import DataError

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """`model(x)` for a tensor, `model(*x)` for a tuple or list, `model(**x)` for a dict."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives; the CPU for a model without any."""
    return next((value.device for value in model.parameters()), torch.device("cpu"))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode inside the `with` block; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def map_tensors(fn: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """`inputs` with `fn` applied to every tensor in it, nested ones too; the rest as it was."""
    if isinstance(inputs, Tensor):
        return fn(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(fn, value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        values = [map_tensors(fn, value) for value in inputs]
        return values if isinstance(inputs, list) else tuple(values)
    return inputs


def batch_size(inputs: Any) -> int:
    """Samples in `inputs`: the first dimension of its first tensor that has one.

    Raises:
        DataError: there is no such tensor.
    """
    for tensor in tensors_of_inputs(inputs):
        if tensor.ndim:
            return int(tensor.shape[0])
    raise DataError(
        f"the inputs ({type(inputs).__name__}) hold no tensor with a batch dimension. "
        "Give a tensor, or a tuple or dict of tensors, of shape (batch, ...)."
    )


def tensors_of_inputs(inputs: Any) -> Iterator[Tensor]:
    """Every tensor in `inputs`, nested ones too."""
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from tensors_of_inputs(value)
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from tensors_of_inputs(value)
