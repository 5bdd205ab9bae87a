"""What all figures share: their look, their frame, and the way to SVG.

matplotlib through its object API: no pyplot, nothing global stays changed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH = 9.0
NAME = 28
"""Characters of a name shown in a figure."""
LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949c",
    "axes.labelcolor": "#333333",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "xtick.color": "#5b6670",
    "ytick.color": "#5b6670",
    "legend.frameon": False,
    "svg.hashsalt": "prune_env",
    "svg.fonttype": "path",
    "text.parse_math": False,
}

DIGITS = re.compile(r"(\.\d\d)\d+")
"""Of a coordinate, kept and dropped."""

NOTE: dict[str, Any] = {
    "color": "#5b6670",
    "zorder": 5,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 2},
}


def short(name: str) -> str:
    """A name that fits into a figure; the end of a layer's name tells more than its start."""
    name = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
    return f" {name}" if name.startswith("_") else name  # matplotlib hides labels like "_x"


def limit(axes: Axes, dots: Sequence[Any], levels: Sequence[float], sign: int = 1) -> int:
    """Frame what matters vertically: a few very bad plans must not flatten all the others.

    All of `levels` (what each searcher ended with) are inside, and nine tenths of the dots.
    More is better for `sign` 1, less for -1. Returns how many dots lie beyond the bad end.
    """
    loose, fixed = sign * _finite(dots), sign * _finite([levels])
    if not len(loose) + len(fixed):
        return 0
    low = min([*fixed, *([np.quantile(loose, 0.1)] if len(loose) else [])])
    high = max([*fixed, *loose])
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(*sorted((sign * (low - room), sign * (high + room))))
    return int((loose < low - room).sum())


def note_hidden(axes: Axes, count: int, where: str = "lower") -> None:
    """Say in the corner how many dots the frame leaves out."""
    if count:
        text = f"{count} {'lies' if count == 1 else 'lie'} {where}"
        axes.annotate(text, (0.995, 0.02), xycoords="axes fraction", ha="right", **NOTE)


def _finite(parts: Sequence[Any]) -> Floats:
    joined = np.concatenate([np.asarray(part, dtype=float) for part in parts] or [np.zeros(0)])
    return joined[np.isfinite(joined)]


def legend(figure: Figure, axes: Axes) -> None:
    """The series by name, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 6))


def svg_of(figure: Figure) -> str:
    """The figure as SVG text, without a date; a hundredth of a point is as fine as paths get."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    return re.sub(' d="[^"]*"', lambda path: DIGITS.sub(r"\1", path[0]), buffer.getvalue())


def count_axis(axes: Axes, label: str) -> None:
    """A horizontal axis of whole numbers."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
