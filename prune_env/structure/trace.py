"""Forward passes that follow every unit through a network.

The model runs as it is under a dispatch mode; beside every tensor runs a label tensor (labels.py).
Ops that only move data are executed on the labels themselves, so concatenation, channel shuffle,
flatten and permute need no rules; arithmetic ties labels; convolution and matrix products end the
labels of their input and start new ones. An op that nobody here understands freezes what enters it:
the trace never fails on a model that runs. The labels of weights outlive a pass, so what several
scenes show (scenes.py) is joined.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from prune_env.structure.groups import Role
from prune_env.structure.labels import LabelBook, no_units, squash
from prune_env.structure.scenes import Scene
from prune_env.structure.skip import is_cache


@dataclass(frozen=True)
class Reading:
    """How to read ops whose trace allows two network definitions.

    Attributes:
        grouped: a pruned grouped convolution loses whole `groups` or the same `positions` of each.
        factored: which factors of a dim viewed as (a, ..., b) the code fixes: `outer` all but the
            last (channel shuffle: chunks of any width), `inner` all but the first (pixel shuffle),
            `middle` all but the last but one (queries, keys and values in one tensor).
    """

    grouped: Literal["groups", "positions"] = "groups"
    factored: Literal["outer", "inner", "middle"] = "outer"

    def differs_in(self, other: Reading) -> set[str]:
        """The kinds of op that the two read differently."""
        mine, theirs = vars(self), vars(other)
        return {kind for kind in mine if mine[kind] != theirs[kind]}


@dataclass
class Slot:
    """One dim of one tensor (dim None: not yet known), with the label of each index."""

    tensor: str
    dim: int | None
    role: Role
    labels: Tensor


@dataclass
class Call:
    """One op as the rules in ops.py see it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, name: str, default: Any = None) -> Any:
        """The argument called `name` in the op's schema."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                value = self.args[position] if position < len(self.args) else None
                return self.kwargs.get(name, default if value is None else value)
        return default

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor argument, in order."""
        flat, _ = tree_flatten((self.args, self.kwargs))
        return [value for value in flat if isinstance(value, Tensor)]


Rule = Callable[["Trace", Call], "Tensor | None"]


class Trace(TorchDispatchMode):
    """Labels of every tensor of a network's forward passes.

    After `run`, `slots` holds every place units live in and `book` their ties; `ambiguous` names
    the kinds of `Reading` that mattered; `chosen` the labels that a top-k chose among, with its k;
    `closed` why no unit may live in a tensor, and `used` the last op on every tensor of the model.
    """

    def __init__(self, reading: Reading, rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.book = LabelBook()
        self.slots: dict[tuple[str, int | None], Slot] = {}
        self.ambiguous: set[str] = set()
        self.chosen: list[tuple[Tensor, int]] = []
        self.closed: dict[str, str] = {}
        self.used: dict[str, str] = {}
        self.reading = reading
        self._rules = rules
        self._enter(nn.Module())

    def _enter(self, model: nn.Module) -> None:
        """Forget the tensors of the last pass; those of `model` have the names they had."""
        self._names = {id(t): name for name, t in model.named_buffers()}
        self._names |= {id(t): name for name, t in model.named_parameters()}
        # Integer buffers number positions; they hold no values of units.
        state = model.state_dict(keep_vars=True)
        kept = {name for name, t in state.items() if torch.is_tensor(t) and not _integral(t)}
        self._names = {key: name for key, name in self._names.items() if name in kept}
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._labels: dict[int, Tensor] = {}
        self._weights: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._doomed: dict[int, tuple[Tensor, str]] = {}
        self._alive: list[Tensor] = []

    def run(self, model: nn.Module, scene: Scene) -> None:
        """Play one scene and freeze the units that reach its outputs."""
        stage = scene.stage(model)
        self._enter(stage)
        # Attention in its plain form: two products with a softmax in between.
        with sdpa_kernel(SDPBackend.MATH), self:
            output = scene.play(stage)
        for tensor in tensors_in(output):
            self._use(tensor)
            self.book.freeze(self.labels(tensor), "tied to the output")
        self._enter(nn.Module())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # then conv2d and linear arrive whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        call = Call(plain, func, args, kwargs, out)
        for tensor in call.tensors:
            self._use(tensor)
            if id(tensor) in self._names:
                self.used[self._names[id(tensor)]] = plain
        try:
            labels = self._rule(call)(self, call)
        except Exception as error:  # a rule that meets the unforeseen must not stop the trace
            labels = self.give_up(call, f"op {plain} not understood ({type(error).__name__})")
        if labels is not None:
            for tensor in tensors_in(out):
                if tensor.shape == labels.shape:
                    self.remember(tensor, squash(labels))
        return out

    def _rule(self, call: Call) -> Rule:
        if call.name in self._rules:
            return self._rules[call.name]
        functional = getattr(torch.ops.aten, call.name, None)
        tags = set(call.func.tags)
        for overload in functional.overloads() if functional is not None else ():
            tags |= set(getattr(functional, overload).tags)
        return self._rules["pointwise" if torch.Tag.pointwise in tags else "unknown"]

    def doom(self, call: Call, labels: Tensor, reason: str) -> None:
        """Freeze `labels` if anybody uses the result of `call` (many results are thrown away)."""
        for tensor in tensors_in(call.out):
            self._doomed[id(tensor)] = (labels, reason)
            self._alive.append(tensor)

    def _use(self, tensor: Tensor) -> None:
        if id(tensor) in self._doomed:
            self.book.freeze(*self._doomed.pop(id(tensor)))

    def give_up(self, call: Call, reason: str) -> Tensor | None:
        """Freeze every unit that enters `call`; what it returns belongs to no unit."""
        reason += self._where()
        for tensor in call.tensors:
            if id(tensor) in self._labels:
                self.book.freeze(self._labels[id(tensor)], reason)
            elif (weight := self.weight(tensor)) is not None:
                self.close(weight[0], reason)
            # In-place ops: what was known about the target is no longer true.
            if any(tensor is result for result in tensors_in(call.out)):
                self.remember(tensor, no_units(tensor.shape))
        return None

    def _where(self) -> str:
        """The module whose code is running, for reasons."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            module = frame.f_locals.get("self")
            path = self._paths.get(id(module), "")
            if path:
                return f" in '{path}' ({type(module).__name__})"
            frame = frame.f_back
        return ""

    def close(self, name: str, reason: str) -> None:
        """No unit may live in tensor `name`, neither those found so far nor any found later."""
        self.closed.setdefault(name, reason)
        for (tensor, _), slot in list(self.slots.items()):
            if tensor == name:
                self.book.freeze(slot.labels, reason)

    def remember(self, tensor: Tensor, labels: Tensor) -> None:
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)  # an id is only unique while the tensor lives

    def name(self, tensor: Tensor) -> str | None:
        """state_dict key of a parameter or buffer, None for any other tensor."""
        return self._names.get(id(tensor))

    def labels(self, tensor: Tensor, role: Role = "scale") -> Tensor:
        """Labels of any tensor; a parameter or buffer gets its own when first asked."""
        if id(tensor) in self._labels:
            return self._labels[id(tensor)]
        weight = self.weight(tensor)
        if weight is None:
            return no_units(tensor.shape)
        name, dims = weight
        if (name, None) not in self.slots:
            shape = [tensor.shape[dims.index(d)] for d in range(len(dims))]
            labels = self.book.fresh(tensor.numel()).reshape(shape)
            self._open(Slot(name, None, role, labels))
        return self.slots[name, None].labels.permute(dims)

    def labelled(self, tensor: Tensor) -> bool:
        """Whether `tensor` is the result of an op that a rule followed."""
        return id(tensor) in self._labels

    def weight(self, tensor: Tensor) -> tuple[str, tuple[int, ...]] | None:
        """(state_dict key, order of its dims) when `tensor` is a permuted parameter or buffer."""
        if id(tensor) in self._weights:
            return self._weights[id(tensor)]
        name = self.name(tensor)
        return None if name is None else (name, tuple(range(tensor.ndim)))

    def permuted(self, source: Tensor, result: Tensor, order: tuple[int, ...]) -> bool:
        """Note that `result` is `source` with its dims in `order`, if `source` is a weight."""
        weight = self.weight(source) if source.ndim >= 2 else None
        if weight is None or id(source) in self._labels:
            return False
        self._weights[id(result)] = (weight[0], tuple(weight[1][dim] for dim in order))
        self._alive.append(result)
        return True

    def bind(self, name: str, dim: int, role: Role, labels: Tensor) -> None:
        """The indices of `name` along `dim` belong to `labels`, shape (S,)."""
        if (name, dim) in self.slots:
            reason = f"'{name}' is shared with a fixed place"
            self.book.tie(self.slots[name, dim].labels, labels, reason)
        else:
            self._open(Slot(name, dim, role, labels))

    def _open(self, slot: Slot) -> None:
        self.slots[slot.tensor, slot.dim] = slot
        if slot.tensor in self.closed:
            self.book.freeze(slot.labels, self.closed[slot.tensor])
        others = [o for (tensor, _), o in self.slots.items() if tensor == slot.tensor]
        if any((other.dim is None) != (slot.dim is None) for other in others):
            self.close(slot.tensor, f"'{slot.tensor}' is used in two ways")

    def rows(self, name: str, dim: int, size: int) -> Tensor:
        """Labels of what the rows of a weight make, new ones at its first use; shape (S,)."""
        if (name, dim) not in self.slots:
            self.bind(name, dim, "out", self.book.fresh(size))
        return self.slots[name, dim].labels


def _integral(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def tensors_in(output: Any) -> list[Tensor]:
    """Every tensor in a nested output (tuple, dict, dataclass of a model zoo) but for a cache,
    which holds what the model remembers, not what it says."""
    return list(_leaves(output, set()))


def _leaves(output: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(output, is_leaf=is_cache):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_cache(leaf):
            continue
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))  # objects may point back at each other
            yield from _leaves(list(vars(leaf).values()), seen)
