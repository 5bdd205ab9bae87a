"""Patterns: which units may stay together.

A pattern is an order in which units are given up and a step between its levels. Any level keeps a
prefix of the order, so masks nest by construction and no caller has to know the pattern.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Pattern(ABC):
    """A rule for the units of one grid."""

    @abstractmethod
    def order(self, scores: Tensor) -> Tensor:
        """Flat unit indices, the last to be removed first; `scores` has the shape of the grid."""

    @abstractmethod
    def step(self, grid: Sequence[int]) -> int:
        """Kept units come in multiples of this."""

    @property
    @abstractmethod
    def shrinks(self) -> bool:
        """Whether removing units makes tensors smaller (else they are only set to zero)."""

    def turns(self, grid: Sequence[int]) -> Tensor:
        """Which units of a row of the grid compete: a number each, shape (U,).

        Before a number loses its next unit, every other one has lost as many; every number has as
        many units as any other. Unless a pattern says otherwise there is only one.
        """
        return torch.zeros(math.prod(grid[1:]), dtype=torch.int64)


@dataclass(frozen=True)
class TopK(Pattern):
    """Any units may go: the highest scores stay. Ties are broken by position, so it is stable."""

    def order(self, scores: Tensor) -> Tensor:
        return torch.sort(scores.reshape(-1), descending=True, stable=True).indices

    def step(self, grid: Sequence[int]) -> int:
        return 1

    @property
    def shrinks(self) -> bool:
        return True


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single weights, or blocks of them: the highest scores of the whole matrix stay.

    Attributes:
        levels_per_group: about how many levels the units are divided into.
    """

    levels_per_group: int = 64

    def order(self, scores: Tensor) -> Tensor:
        return TopK().order(scores)

    def step(self, grid: Sequence[int]) -> int:
        return math.ceil(math.prod(grid) / self.levels_per_group)

    @property
    def shrinks(self) -> bool:
        return False


@dataclass(frozen=True)
class PerRow(Unstructured):
    """As many weights of every row as of any other, or one more (Wanda, Sun et al. 2023, 3)."""

    def order(self, scores: Tensor) -> Tensor:
        best = TopK().order(scores)
        ranks = _ranks(scores.flatten(1)).flatten()
        return best[ranks[best].argsort(stable=True)]


@dataclass(frozen=True)
class NM(Pattern):
    """N:M sparsity: the same number of every `m` neighbours along dim 1 of the grid.

    The levels are 0, 1, ..., m of m; a group that must not fall below n of m says so by `min_keep`.
    """

    m: int = 4

    def order(self, scores: Tensor) -> Tensor:
        neighbours = scores.movedim(1, -1)
        ranks = _ranks(neighbours.reshape(-1, self.m)).reshape(neighbours.shape)
        return ranks.movedim(-1, 1).flatten().argsort(stable=True)

    def step(self, grid: Sequence[int]) -> int:
        return math.prod(grid) // self.m

    @property
    def shrinks(self) -> bool:
        return False

    def turns(self, grid: Sequence[int]) -> Tensor:
        kernel = math.prod(grid[2:])
        blocks = torch.arange(grid[1]) // self.m
        return (blocks[:, None] * kernel + torch.arange(kernel)).flatten()


def _ranks(scores_RU: Tensor) -> Tensor:
    """Place of every unit in its row, 0 for the highest score."""
    return scores_RU.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


PATTERNS: dict[str, type[Pattern]] = {
    "TopK": TopK,
    "Unstructured": Unstructured,
    "PerRow": PerRow,
    "NM": NM,
}
"""Patterns by class name, for plans read from JSON."""
