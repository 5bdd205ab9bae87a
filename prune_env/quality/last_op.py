"""Which operation made what a network returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune_env.structure.inputs import Inputs, call_model

_SIGMOIDS = {torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_, torch.ops.aten.hardsigmoid}


class _Made(TorchDispatchMode):
    """Keeps what some operations gave."""

    def __init__(self, operations: set[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations = operations
        self.tensors: list[Tensor] = []  # kept alive, so that no memory is used twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._operations:
            self.tensors.append(found)
        return found


def ends_in_sigmoid(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a tensor that `model` returns is what a sigmoid gave, or a view of it."""
    made = _Made(_SIGMOIDS)
    with torch.no_grad(), made:
        output = call_model(model, inputs)
    places = {tensor.untyped_storage().data_ptr() for tensor in made.tensors}
    returned = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return any(tensor.untyped_storage().data_ptr() in places for tensor in returned)
