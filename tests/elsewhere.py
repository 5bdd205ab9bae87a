"""A pretend device: tensors are marked as being on "cuda:0" and refuse to meet unmarked ones.

What a user with a GPU and a loader on the host runs into, without a GPU: every call of PyTorch from
Python goes through a mode that knows the storages that were moved. What real devices allow is
allowed here: numbers of no dimension, indices on the host into tensors elsewhere, `copy_`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
_GETTERS = {"__get__", "__set__"}
_SAME = {
    "copy_",
    "__getitem__",
    "__setitem__",
    "set_",
    "_make_subclass",
    "_has_compatible_shallow_copy_type",
}
_READS = {"device", "is_cuda", "shape", "dtype", "ndim", "requires_grad", "is_leaf", "layout"}


class Elsewhere(TorchFunctionMode):
    """Inside, `tensor.to("cuda")` marks a copy, and mixing is an error as on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        owner = getattr(func, "__self__", None)
        name = getattr(func, "__name__", "")
        if name in _GETTERS and owner is not None:
            return self._property(func, getattr(owner, "__name__", ""), args)
        if name in ("to", "cpu", "cuda"):
            return self._moved(func, name, args, kwargs)
        asked = kwargs.get("device")
        away = asked is not None and torch.device(asked).type == "cuda"
        if away:
            kwargs["device"] = torch.device("cpu")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marked = [self.holds(tensor) for tensor in tensors]
        if name in ("numpy", "__array__") and any(marked):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        if name not in _SAME and any(marked):
            plain = [t for t, m in zip(tensors, marked, strict=True) if not m and t.ndim]
            if plain:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, {name} met cuda:0 and cpu "
                    f"{[tuple(t.shape) for t in tensors]}"
                )
        if name == "__getitem__" and not marked[0] and any(marked[1:]):
            raise RuntimeError("indices should be either on cpu or on the same device as cpu")
        result = func(*args, **kwargs)
        return self._mark(result) if away or any(marked) else result

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is elsewhere."""
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in self._kept
            except (RuntimeError, NotImplementedError):  # of a trace: it has no storage
                return False

    def _property(self, func: Any, name: str, args: Any) -> Any:
        found = func(*args)
        if not (isinstance(args[0], Tensor) and self.holds(args[0])):
            return found
        if name == "device":
            return CUDA
        if name == "is_cuda":
            return True
        return found if name in _READS else self._mark(found)

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        said = {"cpu": "cpu", "cuda": "cuda"}.get(name) or kwargs.pop("device", None)
        if said is None and rest and isinstance(rest[0], Tensor):
            other, *rest = rest
            said, rest = "cuda" if self.holds(other) else "cpu", [other.dtype, *rest]
        elif said is None and rest and not isinstance(rest[0], torch.dtype):
            said, *rest = rest
        kwargs.pop("non_blocking", None)
        rest = [part for part in rest if not isinstance(part, bool) and part is not None]
        here = self.holds(tensor)
        away = here if said is None else torch.device(said).type == "cuda"
        found = tensor if not (rest or kwargs) else torch.Tensor.to(tensor, *rest, **kwargs)
        if away == here:
            return self._mark(found) if here else found
        found = (
            found.clone()
            if found.untyped_storage().data_ptr() == (tensor.untyped_storage().data_ptr())
            else found
        )
        return self._mark(found) if away else found

    def _mark(self, result: Any) -> Any:
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel():
                with torch._C.DisableTorchFunctionSubclass():
                    try:
                        self._kept.setdefault(leaf.untyped_storage().data_ptr(), leaf.detach())
                    except (RuntimeError, NotImplementedError):
                        continue
        return result
