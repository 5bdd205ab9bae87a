"""Patterns: which units may stay together.

A pattern is an order in which units are given up and a step between its levels. Any level keeps a
prefix of the order, so masks nest by construction and no caller has to know the pattern.
"""

from __future__ import annotations

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


PATTERNS: dict[str, type[Pattern]] = {"TopK": TopK}
"""Patterns by class name, for plans read from JSON."""
