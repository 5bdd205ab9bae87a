"""Pictures of a search for TensorBoard, drawn through matplotlib's object API: no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prune_env import PruningTask
from prune_env.mdp.rewards import Outcome

MARKERS = "sD^vP*X<>"
GREY, BEST = "#888888", "#e0912f"


def scatter(
    task: PruningTask, history: Sequence[Outcome], baselines: Mapping[str, Outcome]
) -> NDArray[np.uint8]:
    """Quality against cost of every plan measured so far; shape (H, W, 3), uint8.

    The budgeted cost hardly varies, since every plan uses up its budget; the other one does. So
    accuracy stands over FLOPs and KL over parameters.
    """
    figure = Figure(figsize=(9.6, 3.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _panel(left, history, baselines, lambda o: (o.flops_ratio, o.metrics.accuracy))
    _panel(right, history, baselines, lambda o: (o.params_ratio, o.metrics.kl))
    left.set(xlabel="FLOPs left", ylabel="accuracy", title=f"{task.name}: {len(history)} plans")
    right.set(xlabel="parameters left", ylabel="KL to the dense network")
    limited = {"macs": left, "params": right}.get(task.on)
    if limited is not None:
        limited.axvline(task.budget, color=GREY, linestyle="--", linewidth=1, label="budget")
    left.legend(fontsize=8, loc="best")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panel(
    axes: Any, history: Sequence[Outcome], baselines: Mapping[str, Outcome], place: Any
) -> None:
    """All plans, darker the later; the best of them; the baselines."""
    x, y = zip(*(place(outcome) for outcome in history), strict=True)
    axes.scatter(x, y, c=range(len(x)), cmap="Blues", vmin=-len(x) / 2, s=14, label="searched")
    for number, (name, outcome) in enumerate(baselines.items()):
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(*place(outcome), marker=marker, s=44, color=GREY, edgecolor="k", label=name)
    best = max(history, key=lambda outcome: outcome.reward)
    axes.scatter(*place(best), marker="o", s=70, facecolor="none", edgecolor=BEST, linewidth=2,
                 label="best")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.locator_params(axis="x", nbins=5)
