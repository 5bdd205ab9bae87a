"""Pictures of a search for TensorBoard, drawn through matplotlib's object API: no global state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prune_env import PruningTask
from prune_env.mdp.rewards import Outcome, best_of

Point = tuple[float, float]
Place = Callable[[Outcome], Point]

MARKERS = "sD^vP*X<>"
COSTS = {"macs": "MACs", "params": "parameters"}
GREY, BEST, FRONT = "#888888", "#e0912f", "#2f6fb0"
DECADE = 10.0
"""KL is drawn on a logarithmic axis when it spans more than this factor."""


def to_dense(task: PruningTask) -> str:
    """The divergence in words."""
    name = task.objective.distance
    return f"{'KL' if name == 'kl' else name} to the dense network"


def scatter(
    task: PruningTask, history: Sequence[Outcome], baselines: Mapping[str, Outcome]
) -> NDArray[np.uint8]:
    """Quality against cost of every plan measured so far; shape (H, W, 3), uint8.

    The budgeted cost hardly varies, since every plan uses up its budget; the other one does. So
    the figure that people read stands over FLOPs, and the divergence over parameters.
    """
    figure, canvas = _figure(6.4, 6.4)
    upper, lower = figure.subplots(2, 1)
    _panel(upper, history, baselines, lambda o: (o.flops_ratio, o.metrics.figure))
    _panel(lower, history, baselines, lambda o: (o.params_ratio, o.metrics.divergence))
    upper.set(
        xlabel="FLOPs left",
        ylabel=task.objective.figure.name,
        title=f"{task.name}: {len(history)} plans",
    )
    lower.set(xlabel="parameters left", ylabel=to_dense(task))
    limited = {"macs": upper, "params": lower}.get(task.on)
    if limited is not None:
        limited.axvline(task.budget, color=GREY, linestyle="--", linewidth=1, label="budget")
    upper.legend(fontsize=8, loc="best")
    return _pixels(canvas)


def front(
    task: PruningTask, history: Sequence[Outcome], baselines: Mapping[str, Outcome]
) -> NDArray[np.uint8]:
    """KL against the budgeted cost, with the front of what was found; shape (H, W, 3), uint8.

    The line is at the least KL found for that cost or less. A search that draws many budgets
    covers the range of costs; one with a single budget crowds below it.
    """

    def place(outcome: Outcome) -> Point:
        return float(task.costs.ratio(outcome.kept, task.on)), outcome.metrics.divergence

    figure, canvas = _figure(6.4, 4.4)
    axes = figure.subplots()
    _panel(axes, history, baselines, place)
    found = non_dominated(place(outcome) for outcome in history)
    x, y = zip(*found, (max(task.budget, found[-1][0]), found[-1][1]), strict=True)
    axes.step(x, y, where="post", color=FRONT, linewidth=1.5, label=f"front ({len(found)})")
    axes.axvline(task.budget, color=GREY, linestyle="--", linewidth=1, label="budget")
    axes.set(xlabel=f"{COSTS.get(task.on, task.on)} left", ylabel=to_dense(task),
             title=f"{task.name}: {len(history)} plans")  # fmt: skip
    values = [o.metrics.divergence for o in (*history, *baselines.values())]
    if 0 < DECADE * min(values) < max(values):
        axes.set_yscale("log")
    axes.legend(fontsize=8, loc="best")
    return _pixels(canvas)


def plans(
    task: PruningTask, history: Sequence[Outcome], baselines: Mapping[str, Outcome]
) -> NDArray[np.uint8]:
    """Sparsity of every group in every plan, in the order measured; shape (H, W, 3), uint8.

    Stripes that settle show what a search is sure of. The baselines are the last columns.
    """
    shown = [outcome.kept for outcome in (*history, *baselines.values())]
    sparsity_GN = 1 - (np.array(shown) / [group.units for group in task.groups]).T
    figure, canvas = _figure(6.4, 1.4 + 0.2 * task.length)
    axes = figure.subplots()
    image = axes.imshow(sparsity_GN, aspect="auto", interpolation="nearest", cmap="viridis",
                        vmin=0, vmax=1, extent=(0.5, len(shown) + 0.5, task.length, 0))  # fmt: skip
    axes.set_yticks(np.arange(task.length) + 0.5, [group.name for group in task.groups], fontsize=8)
    axes.set(xlabel="candidate", title=f"{task.name}: sparsity of {len(history)} plans")
    if baselines:
        axes.axvline(len(history) + 0.5, color="w", linewidth=2)
    figure.colorbar(image, ax=axes, pad=0.01)
    return _pixels(canvas)


def non_dominated(points: Iterable[Point]) -> list[Point]:
    """The (cost, loss) points that no other one beats in both, by rising cost."""
    found: list[Point] = []
    for cost, loss in sorted(points):
        if not found or loss < found[-1][1]:
            found.append((cost, loss))
    return found


def _panel(
    axes: Any, history: Sequence[Outcome], baselines: Mapping[str, Outcome], place: Place
) -> None:
    """All plans, darker the later; the best of them; the baselines."""
    x, y = zip(*(place(outcome) for outcome in history), strict=True)
    axes.scatter(x, y, c=range(len(x)), cmap="Blues", vmin=-len(x) / 2, s=14, label="searched")
    for number, (name, outcome) in enumerate(baselines.items()):
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(*place(outcome), marker=marker, s=44, color=GREY, edgecolor="k", label=name)
    best = best_of(history)
    axes.scatter(*place(best), marker="o", s=70, facecolor="none", edgecolor=BEST, linewidth=2,
                 label="best")  # fmt: skip
    axes.grid(alpha=0.25)
    axes.locator_params(axis="x", nbins=5)


def _figure(width: float, height: float) -> tuple[Figure, FigureCanvasAgg]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _pixels(canvas: FigureCanvasAgg) -> NDArray[np.uint8]:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
