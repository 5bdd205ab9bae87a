"""The picture of a front: KL and quality of plans against the cost that they leave, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from prune_env.experiments.report.canvas import LOOK, WIDTH, legend, limit, svg_of
from prune_env.experiments.report.figures import ticks
from prune_env.experiments.report.series import style_of
from prune_env.pipeline.formats import cost_name
from prune_env.pipeline.yardstick import yardstick_of

Results = Mapping[str, Any]
Row = Mapping[str, Any]


def front_figure(results: Results) -> str:
    """Above KL, below quality: the front as a line, single searches as large marks."""
    yardstick = yardstick_of(results)
    with matplotlib.rc_context(LOOK):
        figure = Figure((WIDTH, 7.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        _draw(above, results, "kl")
        above.set_yscale("log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter(NullFormatter())
        above.set_ylabel(f"{yardstick.apart}, to the dense network")
        high = _draw(below, results, yardstick.name)
        below.yaxis.set_major_formatter(ticks(yardstick))
        below.set_ylabel(f"{yardstick.name}, reward samples")
        below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        below.set_xlabel(f"{cost_name(results['settings']['on'])} left")
        limit(below, [], high, yardstick.sign)
        legend(figure, above)
        return svg_of(figure)


def _draw(axes: Axes, results: Results, key: str) -> list[float]:
    """Every measured plan as a dot, then the series; returns what must be seen."""
    agent = results["settings"]["agent"]
    colour = style_of(agent).colour
    for dots in results["measured"]:
        axes.scatter(
            dots["cost"], dots[key], 5, colour, alpha=0.25, linewidths=0, rasterized=True, zorder=1
        )
    shown: list[float] = []
    for name, looks in _looks(agent, results).items():
        budgets, values = _points(results["rows"], name, key)
        axes.plot(budgets, values, label=name, **looks)
        shown += values
    if key == "kl":
        axes.set_ylim(0.7 * max(min(shown), 1e-6), 1.5 * max(shown))
    return shown


def _looks(agent: str, results: Results) -> dict[str, dict[str, Any]]:
    """How each series is drawn."""
    colour = style_of(agent).colour
    size: dict[str, Any] = {"markersize": 4, "linewidth": 1.5}
    looks: dict[str, dict[str, Any]] = {
        name: {"color": style_of(name).colour, "marker": style_of(name).marker, "ls": ":", **size}
        for name in results["settings"]["searchers"]
    }
    looks["policy alone"] = {"color": colour, "marker": ".", "ls": "--", "linewidth": 1}
    looks["many budgets"] = {"color": colour, "marker": "o", "ls": "-", **size, "linewidth": 2}
    looks["single"] = {
        "color": "#d55e00", "marker": "*", "ls": "", "markersize": 13, "markeredgecolor": "white",
        "zorder": 5,
    }  # fmt: skip
    return looks


def _points(rows: Sequence[Row], name: str, key: str) -> tuple[list[float], list[float]]:
    """Budgets and medians over seeds of a series."""
    found = [(row["budget"], row["series"][name][key]) for row in rows if name in row["series"]]
    return [budget for budget, _ in found], [float(np.median(values)) for _, values in found]
