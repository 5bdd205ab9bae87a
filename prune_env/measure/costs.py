"""Costs as arithmetic: MACs, parameters and bytes of a plan without building its network.

MACs of a tensor = (positions it is applied at) x (elements it has left), and the elements left are
a product, over the tensor's dims, of numbers linear in the kept units of each group. So the cost of
a network is a polynomial in the kept units, and a plan is priced in microseconds.

Convention: FLOPs = 2 x MACs, batch 1, elementwise ops excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from prune_env.errors import BudgetError
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, batch_size, call_model, eval_mode
from prune_env.structure.rewrite import require_tensors, tensors_of

Metric = Literal["macs", "params", "bytes"]
METRICS: tuple[Metric, ...] = ("macs", "params", "bytes")
Floats = NDArray[np.float64]


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
    """

    names: tuple[str, ...]
    units: NDArray[np.int64]
    base_R: Floats
    slope_RG: Floats
    factors_TF: NDArray[np.int64]
    prices_TM: Floats
    fixed_M: Floats

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
        applied, other = _applications(model, example_inputs)
        builder = CostBuilder(groups)
        seen: set[int] = set()
        parameters = {id(p) for p in model.parameters()}
        for name, tensor in tensors_of(model).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                params = 1.0 if id(tensor) in parameters else 0.0
                prices = (applied.get(name, 0.0), params, float(tensor.element_size()))
                builder.add(name, tuple(tensor.shape), prices)
        return builder.finish(other)

    def __call__(self, kept: Sequence[int] | NDArray[np.int64]) -> Floats:
        """Costs of plans: kept (..., G) -> (..., M) in the order of `METRICS`."""
        sizes = self.base_R + np.asarray(kept, dtype=np.float64) @ self.slope_RG.T
        result: Floats = sizes[..., self.factors_TF].prod(axis=-1) @ self.prices_TM + self.fixed_M
        return result

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
        for number, group in enumerate(groups):
            for axis in group.axes:
                if axis.role != "count":
                    slot = self.slots.setdefault(axis.tensor, {}).setdefault(axis.dims, [])
                    slot.append((number, axis.width, math.prod(axis.sizes)))

    def add(self, name: str, shape: tuple[int, ...], prices: tuple[float, ...]) -> None:
        """Note a tensor and what one element of it costs in each metric."""
        slots = self.slots.get(name)
        rest = float(math.prod(shape))
        if slots is None:
            self.fixed_M += rest * np.array(prices)
            return
        factors = []
        for owners in slots.values():
            size = owners[0][2]
            row = [float(size), *[0.0] * len(self.groups)]
            for number, width, _ in owners:
                row[0] -= self.groups[number].units * width
                row[1 + number] += width
            factors.append(self.rows.setdefault(tuple(row), len(self.rows)))
            rest /= size
        self.tensors.append((factors, rest * np.array(prices)))

    def finish(self, other_macs: float) -> CostModel:
        """The polynomial, with MACs that belong to no tensor (attention scores) as a constant."""
        rows = np.array(list(self.rows))
        depth = max((len(factors) for factors, _ in self.tensors), default=1)
        padded = [factors + [0] * (depth - len(factors)) for factors, _ in self.tensors]
        fixed = self.fixed_M.copy()
        fixed[0] += other_macs
        return CostModel(
            names=tuple(group.name for group in self.groups),
            units=np.array([group.units for group in self.groups], dtype=np.int64),
            base_R=rows[:, 0],
            slope_RG=rows[:, 1:],
            factors_TF=np.array(padded, dtype=np.int64).reshape(len(padded), depth),
            prices_TM=np.array([p for _, p in self.tensors]).reshape(len(padded), len(METRICS)),
            fixed_M=fixed,
        )


class _Counter(TorchDispatchMode):
    """Counts, for every tensor of the model, at how many positions it is multiplied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Views of a weight (its transpose) share its storage, so the storage names it.
        self.names = {
            t.untyped_storage().data_ptr(): name
            for name, t in reversed(list(tensors_of(model).items()))
        }
        self.applied: dict[str, float] = {}
        self.other = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.is_inference_mode_enabled():  # then conv2d and linear arrive whole
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "_convolution"):
            x, weight, transposed = args[0], args[1], args[6]
            inner = x if transposed else out
            self._add(weight, inner.numel() / inner.shape[1])
        elif name in ("mm", "addmm"):
            x, matrix = args[-2:]
            self._add(matrix, x.shape[0]) if self._is_weight(matrix) else self._add(
                x, matrix.shape[1]
            )
        elif name in ("bmm", "baddbmm"):
            x, matrix = args[-2:]
            self.other += x.numel() * matrix.shape[-1]
        return out

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.names

    def _add(self, weight: Tensor, positions: float) -> None:
        if self._is_weight(weight):
            name = self.names[weight.untyped_storage().data_ptr()]
            self.applied[name] = self.applied.get(name, 0.0) + positions
        else:
            self.other += weight.numel() * positions


def _applications(model: nn.Module, inputs: Inputs) -> tuple[dict[str, float], float]:
    """Positions per sample each weight is applied at, and MACs that involve no weight."""
    counter, batch = _Counter(model), batch_size(inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            call_model(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {name: n / batch for name, n in counter.applied.items()}, counter.other / batch
