"""Costs as arithmetic: MACs, parameters and bytes of a plan without building its network.

MACs of a tensor = (positions it is applied at) x (elements it has left), and the elements left are
a product, over the tensor's dims, of numbers linear in the kept units of each group. So the cost of
a network is a polynomial in the kept units, and a plan is priced in microseconds.

Convention: FLOPs = 2 x MACs, batch 1, elementwise ops excluded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prune_env.errors import BudgetError
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, batch_size, call_model, eval_mode
from prune_env.structure.rewrite import require_tensors, tensors_of
from prune_env.structure.skip import first_values

Metric = Literal["macs", "params", "bytes"]
METRICS: tuple[Metric, ...] = ("macs", "params", "bytes")
Floats = NDArray[np.float64]
Key = TypeVar("Key")
MASK_MACS = "mask_macs"
"""Attribute of a module that multiplies activations with each other only where masks allow it.

For every mask, a buffer of the module by its own name, a function from the first input of a call to
what one of its elements costs: the MACs, for the whole batch, of all products that it allows.
"""


@dataclass(frozen=True, eq=False)
class CostModel:
    """The cost polynomial of one network over its groups.

    Legend: G groups, R factors (sizes that depend on the plan), T tensors, F factors of a tensor.

    Attributes:
        names: group names, in the order of kept vectors.
        units: units per group, (G,).
        base_R, slope_RG: size of each factor = base + slope @ kept; factor 0 is the constant 1.
        factors_TF: which factors multiply to the size of each tensor.
        prices_TM: cost of one unit of that product in each metric.
        fixed_M: cost that no group changes, in each metric.
        masked: whether a group only sets weights to zero, (G,).
    """

    names: tuple[str, ...]
    units: NDArray[np.int64]
    base_R: Floats
    slope_RG: Floats
    factors_TF: NDArray[np.int64]
    prices_TM: Floats
    fixed_M: Floats
    masked: NDArray[np.bool_]

    @staticmethod
    def of(model: nn.Module, example_inputs: Inputs, groups: Sequence[PrunableGroup]) -> CostModel:
        """Price `model` as a function of the kept units of `groups`.

        Args:
            model: the dense network, in eval mode during one forward pass; not changed.
            example_inputs: one batch of any size; MACs are per sample.
            groups: the groups that may vary, in the order that kept vectors will have.

        Raises:
            GroupError: a group does not fit the model.
        """
        require_tensors(model, groups)
        counter = _counted(model, example_inputs)
        batch = batch_size(example_inputs)
        builder = CostBuilder(groups)
        seen: set[int] = set()
        parameters = {id(p) for p in model.parameters()}
        for name, tensor in tensors_of(model).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                params = 1.0 if id(tensor) in parameters else 0.0
                macs = counter.applied.get(name, 0.0)
                if name in counter.masks:
                    macs = counter.masks[name] * _set_share(name, tensor, groups)
                prices = (macs / batch, params, float(tensor.element_size()))
                builder.add(name, tuple(tensor.shape), prices)
        for names, macs in counter.products.items():
            builder.add_product(names, macs / batch)
        for name, macs in counter.parts.items():
            builder.add_part(name, macs / batch)
        return builder.finish()

    def __call__(self, kept: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Costs of plans: kept (..., G) -> (..., M) in the order of `METRICS`."""
        sizes = self.base_R + np.asarray(kept, dtype=np.float64) @ self.slope_RG.T
        result: Floats = sizes[..., self.factors_TF].prod(axis=-1) @ self.prices_TM + self.fixed_M
        return result

    def effective(self, kept: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Costs without a format and a kernel that skip zeros: (..., G) -> (..., M).

        Groups that only set weights to zero (single ones, N:M, blocks) then save nothing; a call
        counts only what is not zero.
        """
        return self(np.where(self.masked, self.units, np.asarray(kept)))

    @property
    def dense(self) -> Floats:
        """Costs of the whole network, (M,)."""
        return self(self.units)

    def ratio(self, kept: Sequence[int] | NDArray[np.int64], on: Metric = "macs") -> Floats:
        """Cost as a fraction of the dense cost: kept (..., G) -> (...)."""
        column = metric_index(on)
        result: Floats = self(kept)[..., column] / self.dense[column]
        return result

    def share(self, group: int, on: Metric = "macs") -> float:
        """Fraction of the dense cost that goes away with all units of one group."""
        kept = self.units.copy()
        kept[group] = 0
        return 1.0 - float(self.ratio(kept, on))


def metric_index(on: str) -> int:
    """Column of a metric in cost arrays.

    Raises:
        BudgetError: there is no such metric.
    """
    if on not in METRICS:
        raise BudgetError(f"there is no cost '{on}'. Choose one of {', '.join(METRICS)}.")
    return METRICS.index(on)


class CostBuilder:
    """Collects the factors of every tensor."""

    def __init__(self, groups: Sequence[PrunableGroup]) -> None:
        self.groups = groups
        self.rows: dict[tuple[float, ...], int] = {(1.0, *[0.0] * len(groups)): 0}
        self.tensors: list[tuple[list[int], Floats]] = []
        self.fixed_M = np.zeros(len(METRICS))
        self.slots: dict[str, dict[tuple[int, ...], list[tuple[int, int, int]]]] = {}
        self.makers: dict[str, tuple[int, ...]] = {}
        self.switches: dict[str, list[int]] = {}
        for number, group in enumerate(groups):
            for axis in group.axes:
                size = math.prod(axis.sizes)
                if axis.role == "count":
                    continue
                if group.units == 1 and axis.width == size:
                    self.switches.setdefault(axis.tensor, []).append(number)
                    continue
                slot = self.slots.setdefault(axis.tensor, {}).setdefault(axis.dims, [])
                slot.append((number, axis.width, size))
                if axis.role == "out" and len(axis.dims) == 1 and group.pattern.shrinks:
                    self.makers[axis.tensor] = axis.dims

    def add(self, name: str, shape: tuple[int, ...], prices: tuple[float, ...]) -> None:
        """Note a tensor and what one element of it costs in each metric."""
        rest = float(math.prod(shape))
        factors = [self._switch(number) for number in self.switches.get(name, ())]
        for owners in self.slots.get(name, {}).values():
            factors.append(self._factor(owners))
            rest /= owners[0][2]
        self._put(factors, rest * np.array(prices))

    def add_product(self, names: frozenset[str], macs: float) -> None:
        """Note a product of two activations that the tensors `names` made.

        Units pass through such a product as entries of its batch (heads of attention) or not at
        all, so its MACs are proportional to the rows left in any tensor that makes them.
        """
        switches = {number for name in names for number in self.switches.get(name, ())}
        factors = [self._switch(number) for number in sorted(switches)]
        for maker in sorted(names & self.makers.keys())[:1]:
            owners = self.slots[maker][self.makers[maker]]
            factors.append(self._factor(owners))
            macs /= owners[0][2]
        self._put(factors, np.array([macs] + [0.0] * (len(METRICS) - 1)))

    def add_part(self, name: str, macs: float) -> None:
        """Note that parts of a tensor were multiplied, as many whatever else is in it."""
        factors = [self._switch(number) for number in self.switches.get(name, ())]
        self._put(factors, np.array([macs] + [0.0] * (len(METRICS) - 1)))

    def _put(self, factors: list[int], prices: Floats) -> None:
        if factors:
            self.tensors.append((factors, prices))
        else:
            self.fixed_M += prices

    def _switch(self, number: int) -> int:
        """Number of the factor that is 1 or 0: whether a group of one unit keeps it."""
        row = [0.0] * (1 + len(self.groups))
        row[1 + number] = 1.0
        return self.rows.setdefault(tuple(row), len(self.rows))

    def _factor(self, owners: Sequence[tuple[int, int, int]]) -> int:
        """Number of the factor that is the size left along one dim of a tensor."""
        row = [float(owners[0][2]), *[0.0] * len(self.groups)]
        for number, width, _ in owners:
            row[0] -= self.groups[number].cells * width
            row[1 + number] += width
        return self.rows.setdefault(tuple(row), len(self.rows))

    def finish(self) -> CostModel:
        """The polynomial."""
        rows = np.array(list(self.rows))
        depth = max((len(factors) for factors, _ in self.tensors), default=1)
        padded = [factors + [0] * (depth - len(factors)) for factors, _ in self.tensors]
        return CostModel(
            names=tuple(group.name for group in self.groups),
            units=np.array([group.units for group in self.groups], dtype=np.int64),
            base_R=rows[:, 0],
            slope_RG=rows[:, 1:],
            factors_TF=np.array(padded, dtype=np.int64).reshape(len(padded), depth),
            prices_TM=np.array([p for _, p in self.tensors]).reshape(len(padded), len(METRICS)),
            fixed_M=self.fixed_M.copy(),
            masked=np.array([_sets_weights(group) for group in self.groups], dtype=bool),
        )


def _set_share(name: str, mask: Tensor, groups: Sequence[PrunableGroup]) -> float:
    """Share of the elements of a mask that are set; 1 where the units of a group are those set."""
    if any(a.tensor == name and not g.pattern.shrinks for g in groups for a in g.axes):
        return 1.0
    return float(mask.count_nonzero()) / max(1, mask.numel())


def _sets_weights(group: PrunableGroup) -> bool:
    return any(axis.role == "weight" for axis in group.axes)


class _Counter(TorchDispatchMode):
    """Counts, for every tensor of the model, at how many positions it is multiplied.

    Attributes:
        applied: positions by tensor.
        products: MACs of products without a tensor of the model (attention scores), by the tensors
            that made the operands.
        parts: MACs of products with a part of a tensor: the data chooses it (an expert), so the
            others do not make it cost.
        masks: MACs of one element of the masks of `MASK_MACS`; what their modules multiply is not
            in `products`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Views of a weight (its transpose) share its storage, so the storage names it.
        self._tensors = {
            t.untyped_storage().data_ptr(): (name, t)
            for name, t in reversed(list(tensors_of(model).items()))
        }
        self.applied: dict[str, float] = {}
        self.products: dict[frozenset[str], float] = {}
        self.parts: dict[str, float] = {}
        self.masks: dict[str, float] = {}
        self._made_by: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.is_inference_mode_enabled():  # then conv2d and linear arrive whole
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        makers = self._count(func.overloadpacket.__name__, args, out, self._makers(read))
        for result in tree_leaves(out):
            if makers and isinstance(result, Tensor):
                self._made_by[result] = makers
        return out

    def _makers(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        return frozenset[str]().union(*(self._made_by.get(t, ()) for t in tensors))

    def _count(self, name: str, args: Any, out: Any, makers: frozenset[str]) -> frozenset[str]:
        """Note what one op costs; returns the tensors that made its result."""
        if name in ("convolution", "_convolution"):
            inner = args[0] if args[6] else out
            return self._add(args[1], inner.numel() / inner.shape[1], makers)
        if name in ("mm", "addmm"):
            x, matrix = args[-2:]
            if self._holder(matrix) is None and self._holder(x) is not None:
                return self._add(x, matrix.shape[1], makers)
            return self._add(matrix, x.shape[0], makers)
        if name in ("bmm", "baddbmm"):
            x, matrix = args[-2:]
            self._note(self.products, makers, float(x.numel() * matrix.shape[-1]))
        if name == "_grouped_mm" and (holder := self._holder(args[1])) is not None:
            # Every row meets the one matrix it was routed to, however many there are.
            macs = float(args[0].numel() * args[1].shape[-1])
            self._note(self.parts, holder[0], macs)
        return makers

    def _holder(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The tensor of the model, and its name, that this is or is a part of."""
        return self._tensors.get(tensor.untyped_storage().data_ptr())

    def _add(self, weight: Tensor, positions: float, makers: frozenset[str]) -> frozenset[str]:
        macs, holder = weight.numel() * positions, self._holder(weight)
        if holder is None:  # computed on the fly
            self._note(self.products, frozenset[str](), macs)
            return makers
        name, whole = holder
        if weight.numel() < whole.numel():
            self._note(self.parts, name, macs)
            return makers
        self._note(self.applied, name, positions)
        return frozenset((name,))

    def watching(self, model: nn.Module) -> ExitStack:
        """A context in which the counter counts, and hears of calls of modules with masks."""
        stack = ExitStack()
        for path, module in model.named_modules():
            if hasattr(module, MASK_MACS):
                handle = module.register_forward_pre_hook(self._hear(path), with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(self)
        return stack

    def _hear(self, path: str) -> Callable[..., None]:
        prefix = f"{path}." if path else ""

        def hear(module: nn.Module, args: Any, kwargs: Any) -> None:
            values = first_values(chain(args, kwargs.values()))
            for leaf, macs_of in getattr(module, MASK_MACS).items():
                self._note(self.masks, prefix + leaf, macs_of(values))

        return hear

    def forget_masked(self) -> None:
        """Drop the products that the elements of masks account for."""
        owners = tuple(name.removesuffix(name.rpartition(".")[2]) for name in self.masks)
        self.products = {
            names: macs
            for names, macs in self.products.items()
            if not any(name.startswith(owners) for name in names)
        }

    @staticmethod
    def _note(table: dict[Key, float], key: Key, amount: float) -> None:
        table[key] = table.get(key, 0.0) + amount


def _counted(model: nn.Module, inputs: Inputs) -> _Counter:
    """What one forward pass of a batch costs, attention in its plain form."""
    counter = _Counter(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        plain = sdpa_kernel(SDPBackend.MATH)
        with eval_mode(model), torch.no_grad(), plain, counter.watching(model):
            call_model(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counter.forget_masked()
    return counter
