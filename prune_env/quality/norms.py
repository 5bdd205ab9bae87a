"""Which BatchNorm reads the output of which layer, and whether anything else does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune_env.structure.inputs import Inputs, call_model


class _Reads(TorchDispatchMode):
    """Counts, for watched tensors, the operations that take them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: dict[int, int] = {}
        self.makers: dict[int, str] = {}
        self._alive: list[Tensor] = []  # keeps ids from being used again

    def watch(self, tensor: Tensor, maker: str) -> None:
        """Count the readers of what `maker` gave from here on."""
        self.count[id(tensor)], self.makers[id(tensor)] = 0, maker
        self._alive.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if id(leaf) in self.count:
                self.count[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def norms_behind(model: nn.Module, layers: Collection[str], inputs: Inputs) -> dict[str, str]:
    """The BatchNorm that takes all a layer gives and nothing else, where there is one.

    Only then can what the layer lost in mean and variance go into its running statistics.

    Args:
        model: in eval mode; hooks are left on it.
        layers: paths of modules.
        inputs: a small batch.

    Returns:
        Path of the BatchNorm by path of the layer.
    """
    reads, calls = _Reads(), Counter[str]()
    pairs: dict[str, list[str | None]] = {}

    def made(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] += 1
            reads.watch(output, path)

        return hook

    def taken(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            maker = reads.makers.get(id(args[0])) if args else None
            channels_second = args and (args[0].ndim == 2 or _is_conv(model, maker))
            pairs.setdefault(path, []).append(maker if channels_second else None)

        return hook

    for path, module in model.named_modules():
        if path in layers:
            module.register_forward_hook(made(path))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.register_forward_pre_hook(taken(path))
    with torch.no_grad(), reads:
        call_model(model, inputs)
    crowded = {maker for tensor, maker in reads.makers.items() if reads.count[tensor] > 1}
    return {
        makers[0]: norm
        for norm, makers in pairs.items()
        if makers[0] is not None
        and makers == [makers[0]] * calls[makers[0]]
        and makers[0] not in crowded
    }


def _is_conv(model: nn.Module, path: str | None) -> bool:
    return path is not None and not isinstance(model.get_submodule(path), nn.Linear)
