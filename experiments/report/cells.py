"""A cell of a comparison: one task under one budget, with all its searches, as JSON-able data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.report.curves import Curve, common_time, compared, curves_of
from prune_env.experiments.report.summaries import summarise
from prune_env.pipeline.formats import cost_name, percent
from prune_env.pipeline.yardstick import yardstick_of

Run = Mapping[str, Any]
CellResults = Mapping[str, Any]
Facts = Mapping[str, Any]

KEPT = 20
"""Numbers of evaluations at which published results hold the best so far."""
DIGITS = 6
"""Of a published figure."""


def cell_of(
    facts: Facts, config: CompareConfig, budget: float, runs: Sequence[Run]
) -> dict[str, Any]:
    """Runs and refusals of one budget, with what the runs say together."""
    found = [run for run in runs if "refused" not in run]
    measured = compared(found, config.evaluations)
    return {
        **{key: facts[key] for key in ("title", "quality", "yardstick", "dense", "dense_held_out")},
        "units": config.units,
        "on": config.on,
        "budget": budget,
        "evaluations": config.evaluations,
        "time": common_time(found, config.evaluations),
        "refused": {run["searcher"]: run["refused"] for run in runs if "refused" in run},
        "searchers": [each.to_dict() for each in summarise(measured, yardstick_of(facts))],
        "runs": measured,
    }


def budget_of(cell: CellResults) -> str:
    """'50 % of the MACs'."""
    return f"{percent(cell['budget'], 1).replace('.0 %', ' %')} of the {cost_name(cell['on'])}"


def name_of(cell: CellResults) -> str:
    """The cell among those of other tasks."""
    units = "" if cell["units"] == "structured" else f" ({cell['units']})"
    return f"{cell['title']}{units}, {budget_of(cell)}"


def title_of(cell: CellResults) -> str:
    """The same as a heading."""
    return f"{name_of(cell)}, {cell['evaluations']:,} evaluations"


def curves_by_searcher(cell: CellResults) -> dict[str, list[Curve]]:
    """The curves of every searcher's seeds."""
    result: dict[str, list[Curve]] = {}
    for run, curve in zip(cell["runs"], curves_of(cell["runs"]), strict=True):
        result.setdefault(run["searcher"], []).append(curve)
    return result


def published(cell: CellResults) -> dict[str, Any]:
    """A cell to keep: of every searcher the median best so far at a few numbers of evaluations."""
    steps = np.unique(np.geomspace(1, cell["evaluations"], KEPT).round())
    curves = {
        name: np.median([curve.at(steps) for curve in each], axis=0).tolist()
        for name, each in curves_by_searcher(cell).items()
    }
    seeds: dict[str, dict[str, list[Any]]] = {}
    for run in cell["runs"]:
        for key in ("kl_held_out", "kl", cell["quality"], "held_out", "evaluations", "seconds"):
            if key in run:  # older searches had no divergence on test
                seeds.setdefault(run["searcher"], {}).setdefault(key, []).append(run[key])
    best = {"evaluations": steps.astype(int).tolist(), "kl": curves}
    without = {key: value for key, value in cell.items() if key != "runs"}
    return {**without, "seeds": seeds, "best_so_far": best}


def rounded(value: Any) -> Any:
    """JSON-able data with as many digits as are worth keeping."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
