"""Keep masks: which single weights of a network stay; inside a context the others stay zero."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from prune_env.checks import refuse
from prune_env.errors import ModelError, PlanError
from prune_env.plan.plan import PruningPlan
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import Layout

_SHAPE = "shape of "
"""Before the name of a mask: what its packed bits are to be folded to."""


@dataclass(frozen=True, eq=False)
class KeepMasks:
    """Which weights of some parameters stay; the others are zero, whatever trains the network.

        with KeepMasks.of_network(small).kept(small):
            ...  # any loop, any optimisers: after every step what was zero is zero

    A value: where it came from (a plan, a network's zeros, a lottery ticket, a step of gradual
    pruning) makes no difference. Parameters that are not named are free.

    Attributes:
        keep: by parameter name, a bool tensor of the parameter's shape; False is zero for good.
    """

    keep: Mapping[str, Tensor]

    @staticmethod
    def of_network(model: nn.Module) -> KeepMasks:
        """Every exact zero of a matrix or kernel stays zero.

        A parameter that is zero all over has nothing to keep: it may be a beginning (the second
        matrix of LoRA, a table of positions) and is left free. Vectors (biases, norms) are too.
        """
        found = {
            name: (parameter.detach() != 0).cpu()
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1
        }
        return KeepMasks({name: m for name, m in found.items() if m.any() and not m.all()})

    @staticmethod
    def of_plan(plan: PruningPlan, network: nn.Module) -> KeepMasks:
        """What the plan set to zero, in the shapes of the network that it was applied to.

        Args:
            plan: its groups that shrink tensors cut the masks of those that set weights to zero.
            network: what the plan made of the dense network, tuned or not.

        Raises:
            PlanError: the network is not what the plan makes.
        """
        tensors = dict(network.named_parameters(remove_duplicate=False))
        setting = [group for group in plan.groups if not group.pattern.shrinks]
        names = {axis.tensor for group in setting for axis in group.axes} & set(tensors)
        groups = [
            replace(group, axes=tuple(axis for axis in group.axes if axis.tensor in names))
            for group in plan.groups
        ]
        whole = {
            name: torch.ones(_dense_shape(name, tensors[name], groups), dtype=torch.bool)
            for name in sorted(names)
        }
        keep = Layout(groups).shrink(whole, plan.indices())
        for name, mask in (whole | keep).items():
            if mask.shape != tensors[name].shape:
                raise PlanError(
                    f"the plan leaves '{name}' the shape {tuple(mask.shape)}, the network has "
                    f"{tuple(tensors[name].shape)}. Give the network that the plan was applied to."
                )
        return KeepMasks({name: mask for name, mask in keep.items() if not mask.all()})

    def __and__(self, other: KeepMasks) -> KeepMasks:
        """A weight stays if both keep it."""
        both = {name: mask & other.keep.get(name, mask) for name, mask in self.keep.items()}
        return KeepMasks({**other.keep, **both})

    @property
    def removed(self) -> int:
        """How many weights are zero for good."""
        return sum(int((~mask).sum()) for mask in self.keep.values())

    @property
    def emptied(self) -> tuple[str, ...]:
        """Parameters of which nothing stays."""
        return tuple(name for name, mask in self.keep.items() if not mask.any())

    def __repr__(self) -> str:
        weights = sum(mask.numel() for mask in self.keep.values())
        return f"KeepMasks({self.removed:,} of {weights:,} weights of {len(self.keep)} tensors off)"

    @property
    def digest(self) -> str:
        """The same for the same masks."""
        content = hashlib.sha256()
        for name, packed in sorted(self.packed().items()):
            content.update(name.encode() + packed.numpy().tobytes())
        return content.hexdigest()[:16]

    def apply_to(self, model: nn.Module) -> None:
        """Set what the masks remove to zero, in place.

        Raises:
            ModelError: the model lacks a parameter that is named, or has it in another shape.
        """
        _erase(self._removed(model))

    @contextmanager
    def kept(self, model: nn.Module) -> Iterator[None]:
        """Inside the `with` block the removed weights of `model` are zero after every step.

        They are zero from the beginning, have no gradient (so they count in no clipped norm and no
        optimiser remembers them), and are set to zero again after a step of *any* torch optimiser:
        whatever momentum or weight decay it holds, however many there are, made before or inside
        the block, called by a GradScaler or not. So is a running average of the weights (EMA) that
        was begun inside. On leaving they are zero once more, whatever else wrote to them.

        To go on with other masks, leave the block and enter that of the others: in between, a
        removed weight may be given any value. Blocks may be nested: what either removes is zero.

        Raises:
            ModelError: see `apply_to`.
        """
        pairs = self._removed(model)

        def after_a_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            _erase(pairs)

        with ExitStack() as stack:
            stack.callback(_erase, pairs)
            stack.callback(register_optimizer_step_post_hook(after_a_step).remove)
            for parameter, removed in pairs:
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(_without(removed))
                    stack.callback(handle.remove)
            _erase(pairs)
            yield

    def _removed(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters with what they lose, on their device."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.keep.items():
            found = tuple(parameters[name].shape) if name in parameters else "nothing"
            if mask.dtype != torch.bool or found != tuple(mask.shape):
                raise ModelError(
                    f"the keep mask of '{name}' is {mask.dtype} of shape {tuple(mask.shape)}, the "
                    f"model has {found} there. Masks are bool tensors for the parameters of one "
                    "network: give that network itself, not a wrapper of it or another size."
                )
        named = [(parameters[name], mask) for name, mask in self.keep.items()]
        return [(parameter, ~mask.to(parameter.device)) for parameter, mask in named]

    def packed(self) -> dict[str, Tensor]:
        """The masks as tensors to be written: eight weights in a byte, and the shapes."""
        stored = {}
        for name, mask in self.keep.items():
            stored[name] = torch.from_numpy(np.packbits(mask.cpu().numpy()))
            stored[_SHAPE + name] = torch.tensor(mask.shape, dtype=torch.int64)
        return stored

    @staticmethod
    def of_packed(stored: Mapping[str, Tensor]) -> KeepMasks:
        """What `packed` gave.

        Raises:
            PlanError: something else.
        """
        keep = {}
        for name in (name for name in stored if not name.startswith(_SHAPE)):
            sizes, bits = stored.get(_SHAPE + name, torch.zeros(0)), stored[name]
            whole = sizes.ndim == 1 and sizes.dtype == torch.int64 and bool((sizes >= 0).all())
            shape = sizes.tolist()
            count = math.prod(shape) if whole else 0
            if not whole or bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
                raise PlanError(
                    f"the stored keep mask of '{name}' is {bits.dtype} {tuple(bits.shape)} for a "
                    f" parameter of shape {shape}. Save the network again."
                )
            flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
            keep[name] = torch.from_numpy(flat).reshape(shape)
        return KeepMasks(keep)


def require_masks(masks: object) -> KeepMasks:
    """The masks that a user gave.

    Raises:
        ConfigError: it is something else, a plan for instance.
    """
    if isinstance(masks, KeepMasks):
        return masks
    refuse("masks", masks, "keep masks, such as KeepMasks.of_plan(plan, network)")


def _dense_shape(name: str, tensor: Tensor, groups: list[PrunableGroup]) -> tuple[int, ...]:
    """The shape before the cut: units know how long their dims were, no group cuts the others."""
    shape = dict(enumerate(tensor.shape))
    for axis in (axis for group in groups for axis in group.axes if axis.tensor == name):
        shape |= dict(zip(axis.dims, axis.sizes, strict=True))
    return tuple(shape.values())


def _erase(pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, removed in pairs:
            parameter.masked_fill_(removed.to(parameter.device), 0)  # moved: the model may have


def _without(removed: Tensor) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse:
            parameter.grad.masked_fill_(removed.to(parameter.device), 0)

    return hook
