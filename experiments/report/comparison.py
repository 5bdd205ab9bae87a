"""The pages of a comparison, and what of it is kept with the repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.experiments.report.aggregates import RESAMPLES
from prune_env.experiments.report.boards import write_boards
from prune_env.experiments.report.cells import budget_of, curves_by_searcher, published, rounded
from prune_env.experiments.report.compare_figures import evaluations_figure, seconds_figure
from prune_env.experiments.report.correlation import spearman
from prune_env.experiments.report.overall import closeness, overall, overall_table
from prune_env.experiments.report.page import (
    Block,
    Code,
    Fold,
    Heading,
    Picture,
    Table,
    Text,
    write_page,
)
from prune_env.experiments.report.summaries import Summary, summary_table
from prune_env.experiments.report.tables import settings_table
from prune_env.pipeline.formats import cost_name, duration
from prune_env.pipeline.yardstick import yardstick_of
from prune_env.storage import write_text

Results = Mapping[str, Any]
CellResults = Mapping[str, Any]

COLUMNS = Text(
    "A search is charged every plan that it measures, repeated ones too, by the share of the "
    "reward samples it was measured on; passes are the same in forward passes over 1,000 samples, "
    "those of repair and of tuning included. KL to the dense network (or the divergence that the "
    "objective has) and quality are those of its best plan by reward, before fine-tuning; those of "
    "test chose nothing and are of the network that is delivered, the others are of the reward "
    "samples (training data). Reported minus that: how far a search was fooled by its own samples "
    "(below 0), or its quick repair was worse than the one delivered (above 0). Mean KL on the "
    "way: of the best so far, over all evaluations; the uniform plan stands for what precedes a "
    "first one. To within 2 %: evaluations until the KL was that "
    "close to the best of any searcher there, median over seeds. Time: of one thread of the "
    "processor (on a GPU: of the clock), median over seeds; KL at equal time: of the best plan "
    "when the quickest of the searches that spent everything had finished; a single plan counts "
    "as done. Nothing that an earlier search has measured is remembered, but what a process does "
    "once (imports, the levels of ladders) is in the time of the search that asked first."
)
SPREADS = Text(
    "Interquartile mean over seeds and, in brackets, its 95 % bootstrap interval "
    f"({RESAMPLES:,} resamples of the seeds). With fewer than about ten seeds such an interval is "
    "too narrow. Bold: the interval lies wholly on the better side of all others. Searchers that "
    "do not depend on a seed appear once."
)
FEWEST = 5
"""Plans whose ranks are worth comparing."""
CURVES = "Median over seeds and the band between the quartiles; dashed: plans made in one shot."
TOGETHER = Text(
    "P(below x): probability that a seed has a lower KL than a seed of x, averaged over the cells "
    "(tasks under a budget) where both were run; one half is no difference. KL / KL of x: "
    "interquartile mean over all cells and seeds. Intervals: 95 %, stratified bootstrap: seeds are "
    "drawn again inside every cell (Agarwal et al. 2021), so they say nothing about other tasks."
)


def write_comparison(results: Results, folder: Path) -> Path:
    """Write compare.json, compare.md, compare.html and tensorboard/; returns the page.

    Raises:
        RunError: the folder cannot be written.
    """
    write_text(folder / "compare.json", json.dumps(results, indent=1))
    write_boards(results["cells"], folder / "tensorboard")
    blocks = [*_top(results), *sections(results["cells"]), *_pictures(results), *_bottom(results)]
    return write_page(folder, "compare", _title(results), blocks)


def publish_comparison(results: Results, out: str) -> None:
    """Write `out`.md and `out`.json: the page without pictures, figures without evaluations."""
    blocks = [*_top(results), *sections(results["cells"]), *_bottom(results)]
    write_text(f"{out}.md", markdown_of(_title(results), blocks))
    together = [line.to_dict() for line in overall(results["cells"])]
    cells = [published(cell) for cell in results["cells"]]
    kept = rounded({**results, "cells": cells, "overall": together})
    write_text(f"{out}.json", json.dumps(kept, allow_nan=False) + "\n")


def figures(results: Results) -> dict[str, Any]:
    """The last line of the command: what every searcher reached, and the settings."""
    names = ("budget", "time", "refused", "searchers")
    return {
        "cells": [{name: cell[name] for name in names} for cell in results["cells"]],
        "overall": [line.to_dict() for line in overall(results["cells"])],
        "settings": results["settings"],
    }


def tables(results: Results) -> str:
    """The tables on a terminal."""
    parts = []
    for block in sections(results["cells"]):
        if isinstance(block, Heading):
            parts.append(f"\n{block.text}")
        elif isinstance(block, Table):
            parts.append(block.plain())
    return "\n".join(parts).strip("\n")


def markdown_of(title: str, blocks: Sequence[Block]) -> str:
    """A page as Markdown."""
    body = "\n\n".join(block.markdown() for block in blocks)
    return f"# {title}\n\n{body}\n"


def sections(cells: Sequence[CellResults], name: Any = budget_of) -> list[Block]:
    """All cells together, then one by one, each called by `name`."""
    together = overall_table(overall(cells), closeness(cells))
    blocks: list[Block] = []
    if together is not None:
        blocks += [Heading("All together"), together, TOGETHER]
    for cell in cells:
        found = [Summary.from_dict(entry) for entry in cell["searchers"]]
        blocks += [Heading(name(cell)), summary_table(found, yardstick_of(cell)), *_notes(cell)]
    return [*blocks, COLUMNS, SPREADS]


def _notes(cell: CellResults) -> list[Block]:
    yardstick, said = yardstick_of(cell), []
    if cell["dense"] is not None:
        said.append(
            f"The dense network has {yardstick.name} {yardstick.show(cell['dense'])} on the reward "
            "samples"
        )
        test = cell["dense_held_out"]
        said[-1] += "." if test is None else f" and {yardstick.show(test)} on test."
    if cell["time"] is not None:
        said.append(f"Equal time: {duration(cell['time'])}.")
    said += _ranking(cell.get("runs", ()))
    said += [f"Not run: {name} ({reason})" for name, reason in cell["refused"].items()]
    return [Text(" ".join(said))] if said else []


def _ranking(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the KL that is reported ranks the best plans, beside the one on test."""
    true = {tuple(run["kept"]): run.get("kl_held_out") for run in runs}
    if len(true) < FEWEST or None in true.values():
        return []
    reported = {tuple(run["kept"]): run["kl"] for run in runs}
    rank = float(spearman(np.array(list(reported.values())), np.array(list(true.values()))))
    return [f"Rank correlation of both KLs over the {len(true)} best plans: {rank:.2f}."]


def _title(results: Results) -> str:
    return f"Searchers on {results['title']}"


def _top(results: Results) -> list[Block]:
    settings, machine = results["settings"], results["machine"]
    *others, last = [budget_of(cell).partition(" of ")[0] for cell in results["cells"]]
    budgets = f"{', '.join(others)} or {last}" if others else last
    predictions = results["predictions"]
    on = f" of {predictions:,} predictions" if predictions else ""
    cost = cost_name(settings["on"])
    return [
        Text(
            f"{results['groups']} groups; at most {budgets} of the dense {cost} may remain, and "
            f"every search may spend {settings['evaluations']:,} evaluations{on}.",
            lead=True,
        ),
        Text(
            f"{machine['cpu']}, one thread per search, {settings['processes']} at a time, "
            f"Python {machine['python']}, torch {machine['torch']}, {machine['date']}."
        ),
        Code(results["command"]),
    ]


def _pictures(results: Results) -> list[Block]:
    panels = {budget_of(cell): curves_by_searcher(cell) for cell in results["cells"]}
    charged = evaluations_figure(panels, results["settings"]["evaluations"])
    return [
        Heading("Best so far"),
        Picture("compare", charged, f"KL of the best plan so far against evaluations. {CURVES}"),
        Picture("compare_time", seconds_figure(panels), "The same against time."),
    ]


def _bottom(results: Results) -> list[Block]:
    return [Fold("Settings", (settings_table(results["settings"]),))]
