"""How the quality of a network is told: by accuracy where it classifies, by perplexity of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prune_env.errors import look_up
from prune_env.pipeline.formats import percent, plain, points
from prune_env.quality.evaluators import Metrics
from prune_env.quality.objectives import Objective

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Yardstick:
    """The figure that a report compares networks by.

    Attributes:
        name: what it is called; rows of results keep it as `<name>_before` and the like.
        sign: 1 where more is better, -1 where less is.
        predictions: what it is a mean over, for sentences.
        show: the figure as text.
        gap: a difference of two figures as text, with its sign unless `signed=False`.
        error: its standard error, from the figure, the number of predictions, and their `spread`.
        spread: of one prediction, from what was measured.
        distance: what the divergence from the dense network is called.
    """

    name: str
    sign: int
    predictions: str
    show: Callable[[Any], str]
    gap: Callable[..., str]
    error: Callable[[float, int, float], float]
    spread: Callable[[Metrics], float]
    distance: str = "KL"

    def of(self, metrics: Metrics) -> float:
        """The figure of a measured network."""
        return metrics.more.get(self.name, metrics.figure)

    @property
    def apart(self) -> str:
        """The divergence as the head of a column."""
        return f"{self.distance}, nats" if self.distance == "KL" else self.distance

    @property
    def as_percent(self) -> bool:
        """Whether it is a fraction that is shown as percent."""
        return self.show is percent

    @property
    def record(self) -> dict[str, Any]:
        """What results keep of it; see `yardstick_of`."""
        kept = {"sign": self.sign, "percent": self.as_percent, "distance": self.distance}
        return {"quality": self.name, "yardstick": kept}

    def key(self, stage: str) -> str:
        """Where rows keep it: stage is before, after, reward, test or val."""
        return f"{self.name}_{stage}"


def binomial_error(accuracy: float, samples: int, loss_std: float = 0.0) -> float:
    """Standard error of a fraction of `samples` independent predictions."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / samples)


def _perplexity_error(perplexity: float, samples: int, loss_std: float) -> float:
    """First order: the standard error of the mean loss, times the perplexity."""
    return perplexity * loss_std / math.sqrt(samples)


def _of_loss(metrics: Metrics) -> float:
    return metrics.loss_error * math.sqrt(metrics.samples)


def _of_figure(metrics: Metrics) -> float:
    return metrics.figure_error * math.sqrt(metrics.samples)


def _of_spread(value: float, samples: int, spread: float) -> float:
    return spread / math.sqrt(samples)


def _difference(value: Any, signed: bool = True) -> str:
    text = plain(value, 3)
    return f"+{text}" if signed and value is not None and value >= 0 else text


ACCURACY = Yardstick("accuracy", 1, "images", percent, points, binomial_error, lambda measured: 0.0)
PERPLEXITY = Yardstick("perplexity", -1, "tokens", plain, _difference, _perplexity_error, _of_loss)
YARDSTICKS = {yardstick.name: yardstick for yardstick in (ACCURACY, PERPLEXITY)}
"""Those with a way of their own to tell a standard error."""


def _made(name: str, sign: int, as_percent: bool, distance: str) -> Yardstick:
    """A yardstick for any figure."""
    show, gap = (percent, points) if as_percent else (plain, _difference)
    return Yardstick(name, sign, "samples", show, gap, _of_spread, _of_figure, distance)


def yardstick_for(objective: Objective, name: str = "") -> Yardstick:
    """What networks of an objective are compared by: its first figure, or the one called `name`.

    Raises:
        ConfigError: the objective has no such figure.
    """
    figures = {objective.figure.name: objective.figure, **{f.name: f for f in objective.figures}}
    figure = look_up("figure of quality", name, figures) if name else objective.figure
    distance = {"kl": "KL"}.get(objective.distance, objective.distance)
    if figure.name in YARDSTICKS:
        return replace(YARDSTICKS[figure.name], distance=distance)
    return _made(figure.name, 1 if figure.higher else -1, figure.unit == "%", distance)


def yardstick_of(results: Results) -> Yardstick:
    """The yardstick of a run's results; accuracy where they do not say."""
    name, kept = results.get("quality", ACCURACY.name), results.get("yardstick", {})
    distance = kept.get("distance", "KL")
    if name in YARDSTICKS:
        return replace(YARDSTICKS[name], distance=distance)
    return _made(name, kept.get("sign", 1), kept.get("percent", False), distance)
