"""The figures of a report as SVG text; the same results give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator, PercentFormatter, ScalarFormatter

from prune_env.experiments.report.canvas import (
    LOOK,
    WIDTH,
    Floats,
    count_axis,
    legend,
    limit,
    note_hidden,
    short,
    svg_of,
)
from prune_env.experiments.report.series import DENSE, style_of
from prune_env.pipeline.formats import number
from prune_env.pipeline.yardstick import Yardstick, yardstick_of

Results = Mapping[str, Any]

LABELS = 40
"""Group names written below an axis at most; with more groups every n-th one is named."""


def ticks(yardstick: Yardstick) -> Formatter:
    """How an axis writes the figure of quality."""
    return PercentFormatter(1) if yardstick.as_percent else ScalarFormatter()


def sparsity_figure(results: Results) -> str:
    """Share of MACs of every group, and below it what each plan removes there, in layer order."""
    rows = [row for row in results["rows"] if row.get("sparsity")]
    shares = {g["name"]: number(g.get("macs_share")) for g in results["groups"] if not g["frozen"]}
    names = list(dict.fromkeys([*shares, *(name for row in rows for name in row["sparsity"])]))
    with matplotlib.rc_context(LOOK):
        figure = Figure((WIDTH, 1.5 + 0.95 * (1 + len(rows))), layout="constrained")
        panels = figure.subplots(1 + len(rows), 1, sharex=True, squeeze=False)[:, 0]
        places = np.arange(len(names))
        panels[0].bar(places, [shares.get(n, math.nan) for n in names], 0.8, color="#b8c0c7")
        panels[0].set_title("share of MACs", loc="left", fontsize=9)
        panels[0].yaxis.set_major_locator(MaxNLocator(3))
        for panel, row in zip(panels[1:], rows, strict=True):
            heights = [number(row["sparsity"].get(name)) for name in names]
            panel.bar(places, heights, 0.8, color=style_of(row["name"]).colour)
            panel.set_title(f"{short(row['name'])}: removed", loc="left", fontsize=9)
            panel.set_ylim(0, 1)
            panel.set_yticks([0, 0.5, 1])
        for panel in panels:
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            panel.grid(axis="x", visible=False)
        _name_groups(panels[-1], names)
        return svg_of(figure)


def _name_groups(axes: Axes, names: Sequence[str]) -> None:
    step = max(1, math.ceil(len(names) / LABELS))
    axes.set_xticks(range(0, len(names), step), [short(name) for name in names[::step]])
    axes.tick_params(axis="x", labelrotation=90, length=0, labelsize=8)
    axes.set_xlim(-0.6, max(0, len(names) - 1) + 0.6)


def learning_figure(results: Results) -> str:
    """Reward of every evaluation as a dot, the best so far as a line, one-shot plans level."""
    with matplotlib.rc_context(LOOK):
        figure = Figure((WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        dots, levels = [], []
        for row in results["rows"]:
            style, rewards = style_of(row["name"]), history(row, "reward")
            best = best_so_far(rewards)
            look: dict[str, Any] = {"color": style.colour, "label": short(row["name"])}
            levels.append(best[-1] if len(best) else number(row.get("reward")))
            if len(rewards) < 2:
                axes.axhline(levels[-1], linestyle="--", linewidth=1.5, **look)
                continue
            steps = np.arange(1, len(rewards) + 1)
            axes.scatter(steps, rewards, 9, style.colour, alpha=0.5, linewidths=0, rasterized=True)
            axes.step(steps, best, where="post", linewidth=2, **look)
            dots.append(rewards)
        note_hidden(axes, limit(axes, dots, levels))
        count_axis(axes, "evaluation")
        axes.set_ylabel("reward")
        legend(figure, axes)
        return svg_of(figure)


def scatter_figure(results: Results) -> str:
    """Cost and quality of every measured plan on the reward samples; the chosen ones large."""
    yardstick = yardstick_of(results)
    with matplotlib.rc_context(LOOK):
        figure = Figure((WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        chosen, dots = [], []
        for row in results["rows"]:
            style, values = style_of(row["name"]), history(row, yardstick.name)
            cost = history(row, "flops_ratio")
            axes.scatter(cost, values, 9, style.colour, alpha=0.5, linewidths=0, rasterized=True)
            dots.append(values)
        for row in results["rows"]:
            style, level = style_of(row["name"]), number(row.get(yardstick.key("reward")))
            axes.scatter(
                [number(row.get("macs_ratio"))], [level], 90, style.colour, marker=style.marker,
                edgecolors="white", linewidths=1.2, label=short(row["name"]), zorder=4,
            )  # fmt: skip
            chosen.append(level)
        beyond = "lower" if yardstick.sign > 0 else "higher"
        note_hidden(axes, limit(axes, dots, chosen, yardstick.sign), beyond)
        if results.get("on") == "macs":
            budget = number(results.get("budget"))
            axes.axvline(budget, color=DENSE.colour, linestyle=":", label="budget")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(ticks(yardstick))
        axes.set_xlabel("MACs left")
        axes.set_ylabel(f"{yardstick.name}, reward samples")
        legend(figure, axes)
        return svg_of(figure)


def best_so_far(values: Floats) -> Floats:
    """The running maximum; NaN counts as nothing."""
    result: Floats = np.fmax.accumulate(values) if len(values) else values
    return result


def history(row: Mapping[str, Any], key: str) -> Floats:
    """One figure of every evaluation of a row."""
    return np.array([number(entry.get(key)) for entry in row.get("history") or ()], dtype=float)
