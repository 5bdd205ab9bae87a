"""Depth: residual branches (attention, MLP) as groups of one unit.

x + branch(x) without its branch is x, so the unit is the whole branch: masked, all its tensors are
zero; compact, they are empty and the branch is skipped. Layers keep their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prune_env.structure.copies import copied
from prune_env.structure.groups import Axis, PrunableGroup, Role, Span
from prune_env.structure.inputs import Inputs, call_model
from prune_env.structure.rewrite import places_of, tensors_of
from prune_env.structure.scenes import Scene
from prune_env.structure.skip import BRANCHES, OUTPUTS, first_values
from prune_env.structure.trace import tensors_in
from prune_env.structure.verify import Probe

LONGEST = 4
"""Modules in a row that one branch may consist of."""


def sublayer_groups(
    model: nn.Module, example_inputs: Inputs, *, seed: int = 0
) -> tuple[PrunableGroup, ...]:
    """Every residual branch that is a row of modules, in order of execution.

    A branch is recognised where its output is added to the very tensor it was computed from: a
    norm and attention, a norm and an MLP, or without the norm where that comes after. Branches of
    inline code are not seen. Use these groups beside, or instead of, those of `find_groups`.

    Args:
        model: the dense network; it is not changed.
        example_inputs: one batch, as for `find_groups`.
        seed: of the verification.

    Raises:
        ModelError: the model cannot be copied.
    """
    dense = copied(model)
    calls = _Calls(dense)
    with torch.no_grad(), calls.watching(dense):
        call_model(dense, example_inputs)
    groups: dict[str, PrunableGroup] = {}
    taken: set[str] = set()
    for branch in calls.branches:
        group = _group(dense, branch, calls)
        touched = set() if group is None else {axis.tensor for axis in group.axes}
        if group is not None and not touched & taken:
            groups[group.name] = group
            taken |= touched
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = Probe(dense, Scene(example_inputs))
        return tuple(_judged(probe, group) for group in groups.values())


def _judged(probe: Probe, group: PrunableGroup) -> PrunableGroup:
    fault = probe.fault([group], trials=1)
    return replace(group, frozen=fault, verified=not fault)


def _group(model: nn.Module, branch: list[str], calls: _Calls) -> PrunableGroup | None:
    """One unit that owns every tensor of the modules in `branch`; None when others share one."""
    tensors, places = tensors_of(model), places_of(model)
    inside = {id(m) for path in branch for m in model.get_submodule(path).modules()}
    names = [name for path in branch for name in tensors if name.startswith(f"{path}.")]
    names = [name for name in names if tensors[name].ndim]
    if any(id(module) not in inside for name in names for module, _ in places[name]):
        return None
    axes = [_whole(name, tensors[name]) for name in names]
    for path in branch:
        outputs = calls.outputs[path]
        axes.append(Axis(f"{path}.{BRANCHES}", (0,), (Span(0, 1),), (1,), "count"))
        axes.append(Axis(f"{path}.{OUTPUTS}", (0,), (Span(0, 0),), (outputs,), "count"))
    return PrunableGroup(f"{branch[0]} (branch)", (1,), tuple(axes), min_keep=0)


def _whole(name: str, tensor: Tensor) -> Axis:
    # A mask that is no number goes with the branch, and is left alone where that is only zero.
    role: Role = "out" if tensor.is_floating_point() else "stat"
    return Axis(name, (0,), (Span(0, len(tensor)),), (len(tensor),), role)


class _Calls(TorchDispatchMode):
    """Which module made which tensor from which, and where two tensors were added.

    Attributes:
        branches: paths of the modules of each branch, the last to run first.
        outputs: by path, the length of the tuple a module returned, 0 for a tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.branches: list[list[str]] = []
        self.outputs: dict[str, int] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}
        self._alive: list[Any] = []
        holding = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        self._paths = [
            path
            for path, _ in model.named_modules()
            if path and any(f"{owner}.".startswith(f"{path}.") for owner in holding)
        ]

    def watching(self, model: nn.Module) -> ExitStack:
        stack = ExitStack()
        for path in self._paths:
            module = model.get_submodule(path)
            handle = module.register_forward_hook(self._hook(path), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(self)
        return stack

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            values = [v for v in chain(args, kwargs.values()) if isinstance(v, Tensor)]
            result = output[0] if type(output) is tuple else output
            if isinstance(result, Tensor) and any(v.is_floating_point() for v in values):
                self.outputs[path] = len(output) if type(output) is tuple else 0
                # The hook of an outer module runs later: the outermost maker is kept.
                self._made[id(result)] = (path, first_values(values))
                self._alive.append((result, values))

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._alive.append(out)
        if func.overloadpacket.__name__ in ("add", "add_") and len(tensors_in(args)) == 2:
            for stream, end in (args[:2], args[1::-1]):
                branch = list(self._back(end, stream))
                if branch and branch[-1] is not None:
                    self.branches.append([path for path in branch if path is not None])
        return out

    def _back(self, end: Tensor, start: Tensor) -> Iterator[str | None]:
        """Paths of the modules that made `end` from `start`; None last when they did not."""
        for _ in range(LONGEST):
            if id(end) not in self._made:
                yield None
                return
            path, end = self._made[id(end)]
            yield path
            if end is start:
                return
        yield None
