"""The curves of a comparison as SVG text: best so far, a panel per budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from prune_env.experiments.report.canvas import (
    LOOK,
    WIDTH,
    Floats,
    count_axis,
    limit,
    short,
    svg_of,
)
from prune_env.experiments.report.curves import Curve
from prune_env.experiments.report.series import style_of

Panel = Mapping[str, Sequence[Curve]]
"""Searcher -> the curve of each seed."""
Read = Callable[[Curve, Floats], Floats]

INSTANTS = 300
"""Points of a curve over time."""


def evaluations_figure(panels: Mapping[str, Panel], evaluations: int, every: int = 1) -> str:
    """KL of the best plan so far against charged evaluations, drawn at every so many."""
    steps = np.arange(1, evaluations + 1, every, dtype=float)

    def draw(axes: Axes, panel: Panel) -> None:
        _draw(axes, panel, steps, lambda curve: curve.charged, Curve.at)
        count_axis(axes, "evaluations charged")

    return _figure(panels, draw)


def seconds_figure(panels: Mapping[str, Panel]) -> str:
    """KL of the best plan so far against wall-clock time."""

    def draw(axes: Axes, panel: Panel) -> None:
        _draw(axes, panel, _instants(panel), lambda curve: curve.seconds, Curve.at_seconds)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds")

    return _figure(panels, draw)


def _instants(panel: Panel) -> Floats:
    """From the first plan of any search that goes on to the last improvement."""
    found = [curve.seconds for curves in panel.values() for curve in curves if not curve.once]
    seconds = np.concatenate([*found, [1e-3]]) if not found else np.concatenate(found)
    first = max(1e-4, float(seconds.min()))
    return np.geomspace(first, max(2 * first, float(seconds.max())), INSTANTS)


def _figure(panels: Mapping[str, Panel], draw: Callable[[Axes, Panel], None]) -> str:
    with matplotlib.rc_context(LOOK):
        figure = Figure((WIDTH, 0.6 + 3.4 * len(panels)), layout="constrained")
        rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        entries: dict[str, Any] = {}
        for axes, (title, panel) in zip(rows, panels.items(), strict=True):
            draw(axes, panel)
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_ylabel("KL of the best so far, nats")
            handles, names = axes.get_legend_handles_labels()
            entries = {**dict(zip(names, handles, strict=True)), **entries}
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper left", ncols=min(len(entries), 6)
        )
        return svg_of(figure)


def _draw(
    axes: Axes, panel: Panel, all_places: Floats, steps: Callable[[Curve], Floats], read: Read
) -> None:
    """Median and quartiles over seeds, from where all have a plan; one shot is level."""
    high, final = [], []
    for name, curves in panel.items():
        style, once = style_of(name), all(curve.once for curve in curves)
        first = 0.0 if once else max(float(steps(curve)[0]) for curve in curves)
        places = np.concatenate([[first] if first > 0 else [], all_places[all_places > first]])
        best = np.array([read(curve, places) for curve in curves])
        low, median, top = np.quantile(best, [0.25, 0.5, 0.75], axis=0)
        look: dict[str, Any] = {"color": style.colour, "label": short(name)}
        width = 1.5 if once else 2
        axes.step(places, median, "--" if once else "-", where="post", linewidth=width, **look)
        if not once:
            band: dict[str, Any] = {"color": style.colour, "alpha": 0.18, "linewidth": 0}
            axes.fill_between(places, low, top, step="post", **band)
        high.append(top)
        final += [low[-1], top[-1]]
    limit(axes, high, final, sign=-1)
