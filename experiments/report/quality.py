"""How the quality of a network is told: by accuracy where it classifies, by perplexity of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prune_env.errors import look_up
from prune_env.experiments.report.formats import percent, plain, points

Results = Mapping[str, Any]


class Measured(Protocol):
    """What is known of a network on some data; `Metrics` and recovery's `Quality` are such."""

    @property
    def accuracy(self) -> float: ...
    @property
    def loss(self) -> float: ...


@dataclass(frozen=True)
class Yardstick:
    """The figure that a report compares networks by.

    Attributes:
        name: what it is called; rows of results keep it as `<name>_before` and the like.
        sign: 1 where more is better, -1 where less is.
        predictions: what it is a mean over, for sentences.
        of: the figure of a measured network.
        show: the figure as text.
        gap: a difference of two figures as text, with its sign unless `signed=False`.
        error: its standard error, from the figure, the number of predictions, and the standard
            deviation of their losses.
    """

    name: str
    sign: int
    predictions: str
    of: Callable[[Measured], float]
    show: Callable[[Any], str]
    gap: Callable[..., str]
    error: Callable[[float, int, float], float]

    def key(self, stage: str) -> str:
        """Where rows keep it: stage is before, after, reward, test or val."""
        return f"{self.name}_{stage}"


def binomial_error(accuracy: float, samples: int, loss_std: float = 0.0) -> float:
    """Standard error of a fraction of `samples` independent predictions."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / samples)


def _perplexity(measured: Measured) -> float:
    return math.exp(min(measured.loss, 700.0))  # a ruined network must not overflow the report


def _perplexity_error(perplexity: float, samples: int, loss_std: float) -> float:
    """First order: the standard error of the mean loss, times the perplexity."""
    return perplexity * loss_std / math.sqrt(samples)


def _difference(value: Any, signed: bool = True) -> str:
    text = plain(value, 3)
    return f"+{text}" if signed and value is not None and value >= 0 else text


ACCURACY = Yardstick(
    "accuracy", 1, "images", lambda measured: measured.accuracy, percent, points, binomial_error
)
PERPLEXITY = Yardstick(
    "perplexity", -1, "tokens", _perplexity, plain, _difference, _perplexity_error
)
YARDSTICKS = {yardstick.name: yardstick for yardstick in (ACCURACY, PERPLEXITY)}
"""By name, as results hold it. Add a figure of quality here."""


def yardstick_named(name: str) -> Yardstick:
    """The yardstick called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("figure of quality", name, YARDSTICKS)


def yardstick_of(results: Results) -> Yardstick:
    """The yardstick of a run's results; accuracy where they do not say."""
    return yardstick_named(results.get("quality", ACCURACY.name))
