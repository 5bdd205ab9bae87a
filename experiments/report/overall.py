"""Searchers over all cells together: how probably each is better than the ones to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prune_env.experiments.report.aggregates import Estimate, improvement, iqm_over
from prune_env.experiments.report.findings import leaders
from prune_env.experiments.report.page import Cell, Table
from prune_env.experiments.report.series import style_of
from prune_env.experiments.report.summaries import interval_cell, nats
from prune_env.pipeline.formats import MISSING, plain
from prune_env.pipeline.yardstick import yardstick_of

Run = Mapping[str, Any]
CellResults = Mapping[str, Any]
"""A cell: `runs`, and `quality`, the name of the figure of quality of its task."""

YARDSTICK, RIVAL = "sensitivity", "evolution"
"""The searchers to beat: the best plan that needs no search, and evolution from the same prior."""


@dataclass(frozen=True)
class Overall:
    """One searcher over all cells; a field is None where the cells do not allow it.

    Attributes:
        cells: how many it was run in.
        over_sensitivity, over_evolution: probability that a seed of it has a lower KL (see
            `closeness`) than a seed of the other, averaged over the cells where both were run.
        held_out: the same as the first, of quality on test.
        ratio: interquartile mean over cells and seeds of its KL, divided by sensitivity's there.
    """

    searcher: str
    cells: int
    over_sensitivity: Estimate | None
    held_out: Estimate | None
    over_evolution: Estimate | None
    ratio: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON-able data."""
        return asdict(self)


def overall(cells: Sequence[CellResults]) -> list[Overall]:
    """One line per searcher, in the order they appear."""
    names = dict.fromkeys(run["searcher"] for cell in cells for run in cell["runs"])
    key = closeness(cells)
    return [
        Overall(
            searcher=name,
            cells=sum(bool(_values(cell, name, key)) for cell in cells),
            over_sensitivity=_chance(cells, name, YARDSTICK, key),
            held_out=_chance(cells, name, YARDSTICK, "held_out"),
            over_evolution=_chance(cells, name, RIVAL, key),
            ratio=_ratio(cells, name, key),
        )
        for name in names
    ]


def closeness(cells: Sequence[CellResults]) -> str:
    """The KL that searchers are compared by: on test, or of the reward where some have no other."""
    runs = [run for cell in cells for run in cell["runs"]]
    known = all(run.get("kl_held_out") is not None for run in runs)
    return "kl_held_out" if runs and known else "kl"


def _values(cell: CellResults, searcher: str, key: str) -> list[float]:
    """A figure of each seed of a searcher, less is better; none where some seed has none."""
    found = [run.get(key) for run in cell["runs"] if run["searcher"] == searcher]
    sign = -yardstick_of(cell).sign if key == "held_out" else 1
    return [] if None in found else [sign * value for value in found if value is not None]


def _chance(cells: Sequence[CellResults], name: str, other: str, key: str) -> Estimate | None:
    pairs = [(_values(cell, name, key), _values(cell, other, key)) for cell in cells]
    shared = [pair for pair in pairs if all(pair)]
    return improvement(shared) if shared and name != other else None


def _ratio(cells: Sequence[CellResults], name: str, key: str) -> Estimate | None:
    pairs = [(_values(cell, name, key), _values(cell, YARDSTICK, key)) for cell in cells]
    shared = [
        [value / float(np.mean(unit)) for value in mine]
        for mine, unit in pairs
        if mine and unit and np.mean(unit) > 0
    ]
    return iqm_over(shared) if shared else None


def overall_table(lines: Sequence[Overall], key: str = "kl") -> Table | None:
    """What the cells say together; None where they hold none of the searchers to beat.

    `key` is their `closeness`.
    """
    where = ", test" if key == "kl_held_out" else ""
    best = _ahead(lines)
    columns = {
        f"KL / KL of {YARDSTICK}{where}": [
            _cell(line.ratio, nats, k in best) for k, line in enumerate(lines)
        ],
        f"P(below {YARDSTICK}){where}": [_cell(line.over_sensitivity, _chances) for line in lines],
        f"P(better figure than {YARDSTICK}), test": [
            _cell(line.held_out, _chances) for line in lines
        ],
        f"P(below {RIVAL}){where}": [_cell(line.over_evolution, _chances) for line in lines],
    }
    shown = {k: v for k, v in columns.items() if any(cell.text != MISSING for cell in v)}
    if not shown:
        return None
    rows = []
    for k, line in enumerate(lines):
        name = Cell(line.searcher, colour=style_of(line.searcher).colour)
        rows.append((name, Cell(str(line.cells)), *(cells[k] for cells in shown.values())))
    return Table(("searcher", "cells", *shown), tuple(rows))


def _ahead(lines: Sequence[Overall]) -> set[int]:
    """Of those that were run in all cells, the one whose interval lies below all others."""
    most = max(line.cells for line in lines)
    ratios = [line.ratio if line.cells == most else None for line in lines]

    def clear(best: int, other: int) -> bool:
        one, two = ratios[best], ratios[other]
        return bool(one and two and one.high < two.low)

    return leaders([ratio and ratio.value for ratio in ratios], -1, clear)


def _chances(value: Any) -> str:
    return plain(value, 2)


def _cell(estimate: Estimate | None, show: Any, best: bool = False) -> Cell:
    if estimate is None:
        return Cell(MISSING)
    return interval_cell(estimate.value, estimate.low, estimate.high, show, best)
