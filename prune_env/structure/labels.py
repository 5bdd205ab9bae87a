"""Labels: which unit every element of a tensor belongs to.

A label tensor has the shape of the tensor it describes and holds one integer per element: 0 where
no unit owns the element, else the label of a unit. Labels that must live or die together are tied;
labels that must stay are frozen with a reason. Both are only recorded here and resolved at the end,
with one union-find. Constant dims have stride 0, so a label tensor costs a few bytes per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


def squash(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dim where they do not vary."""
    shape, small = labels.shape, core(labels)
    for dim in range(small.ndim):
        if small.shape[dim] > 1:
            first = small.narrow(dim, 0, 1)
            if bool((small == first).all()):
                small = first
    return small.clone().expand(shape)


def core(labels: Tensor) -> Tensor:
    """`labels` with every stride-0 dim cut to size 1."""
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether squashed `labels` differ along `dim`."""
    return core(labels).shape[dim] > 1


def no_units(shape: Sequence[int]) -> Tensor:
    """Labels of a tensor of which no element belongs to a unit."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


class LabelBook:
    """Hands out labels and remembers which are tied and which are frozen, and why."""

    def __init__(self) -> None:
        self._next = 1
        self._ties: list[Ints] = []
        self._frozen: list[tuple[Ints, str]] = []

    def fresh(self, count: int) -> Tensor:
        """`count` labels never used before, shape (count,)."""
        self._next += count
        return torch.arange(self._next - count, self._next)

    def tie(self, first: Tensor, second: Tensor, reason: str = "fixed values in between") -> None:
        """Labels at the same place live and die together; a partner 0 freezes with `reason`."""
        a, b = torch.broadcast_tensors(core(first), core(second))
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)]).numpy()
        pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
        fixed = (pairs == 0).any(axis=0)
        if fixed.any():
            self._frozen.append((pairs[:, fixed].max(axis=0), reason))
        if not fixed.all():
            self._ties.append(pairs[:, ~fixed])

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Units with any of these labels cannot be pruned; the first reason given is kept."""
        found = np.unique(core(labels).numpy())
        if found[-1:].any():
            self._frozen.append((found[found > 0], reason))

    def roots(self) -> Ints:
        """For every label the smallest label it is tied to; shape (labels,), index 0 is 0."""
        parent = np.arange(self._next)
        pairs = np.concatenate([*self._ties, np.zeros((2, 0), dtype=np.int64)], axis=1)
        while True:
            a, b = parent[pairs[0]], parent[pairs[1]]
            low, high = np.minimum(a, b), np.maximum(a, b)
            if (low == high).all():
                return parent
            np.minimum.at(parent, high, low)
            while (parent != parent[parent]).any():
                parent = parent[parent]

    def reasons(self, roots: Ints) -> dict[int, str]:
        """Why a root is frozen, for each frozen root."""
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for root in np.unique(roots[labels]).tolist():
                reasons.setdefault(root, reason)
        return reasons
