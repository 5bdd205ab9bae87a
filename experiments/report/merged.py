"""The page of several comparisons together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune_env.experiments.report.cells import (
    curves_by_searcher,
    name_of,
    published,
    rounded,
    title_of,
)
from prune_env.experiments.report.compare_figures import evaluations_figure
from prune_env.experiments.report.comparison import CURVES, sections
from prune_env.experiments.report.findings import leaders
from prune_env.experiments.report.overall import overall
from prune_env.experiments.report.page import Block, Cell, Code, Heading, Picture, Table, Text
from prune_env.experiments.report.series import style_of
from prune_env.experiments.report.summaries import nats
from prune_env.pipeline.formats import MISSING

Results = Mapping[str, Any]
CellResults = Mapping[str, Any]

EVERY = 4
"""Evaluations between two points of a curve: the picture is kept with the repository."""


def blocks_of(results: Sequence[Results], command: str, name: str) -> list[Block]:
    """An overview, all cells together, each cell, their curves, and the commands that made them.

    The picture is called `name`.
    """
    cells = cells_of(results)
    panels = {title_of(cell): curves_by_searcher(cell) for cell in cells}
    charged = evaluations_figure(panels, max(cell["evaluations"] for cell in cells), EVERY)
    return [
        Text(
            f"{len(cells)} cells, each a task under a budget. First the KL to the dense network of "
            "the best plan, in nats, interquartile mean over seeds; bold: the lowest."
        ),
        _overview(cells),
        *sections(cells, title_of),
        Heading("Best so far"),
        Picture(name, charged, f"KL of the best plan so far against evaluations. {CURVES}"),
        Heading("Made by"),
        *(Code(each["command"]) for each in results),
        Code(command),
    ]


def figures_of(results: Sequence[Results]) -> dict[str, Any]:
    """Everything on the page, and the settings of every comparison."""
    cells = cells_of(results)
    facts = ("title", "command", "machine", "settings")
    figures: dict[str, Any] = rounded(
        {
            "overall": [line.to_dict() for line in overall(cells)],
            "cells": [published(cell) for cell in cells],
            "comparisons": [{key: each[key] for key in facts} for each in results],
        }
    )
    return figures


def cells_of(results: Sequence[Results]) -> list[CellResults]:
    """The cells of all comparisons, in order."""
    return [cell for each in results for cell in each["cells"]]


def _overview(cells: Sequence[CellResults]) -> Table:
    """A row per searcher, a column per cell."""
    names = dict.fromkeys(entry["searcher"] for cell in cells for entry in cell["searchers"])
    columns = []
    for cell in cells:
        found = {entry["searcher"]: entry["kl"]["iqm"] for entry in cell["searchers"]}
        values = [found.get(name) for name in names]
        best = leaders(values, -1)
        columns.append(
            [
                Cell(MISSING if value is None else nats(value), best=k in best)
                for k, value in enumerate(values)
            ]
        )
    rows = tuple(
        (Cell(name, colour=style_of(name).colour), *(column[k] for column in columns))
        for k, name in enumerate(names)
    )
    return Table(("searcher", *(name_of(cell) for cell in cells)), rows)
