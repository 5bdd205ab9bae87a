"""The pages of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import comparison_figure
from experiments.formats import cost_name, percent
from experiments.page import Block, Code, Fold, Heading, Picture, Table, Text, write_page
from experiments.quality import yardstick_of
from experiments.summaries import RESAMPLES, Summary, summary_table
from experiments.tables import settings_table
from prune_env.storage import write_text

Results = Mapping[str, Any]


def write_comparison(results: Results, folder: Path) -> tuple[Path, str]:
    """Write compare.json, compare.md and compare.html; returns the page and the table as text.

    Raises:
        RunError: the folder cannot be written.
    """
    write_text(folder / "compare.json", json.dumps(results, indent=1))
    table = _table(results)
    title = f"Searchers on {results['title']}"
    return write_page(folder, "compare", title, _blocks(results, table)), table.plain()


def _table(results: Results) -> Table:
    return summary_table(
        [Summary.from_dict(entry) for entry in results["searchers"]], yardstick_of(results)
    )


def _blocks(results: Results, table: Table) -> list[Block]:
    settings, machine = results["settings"], results["machine"]
    dense, yardstick = results["dense"], yardstick_of(results)
    quality = yardstick.show(dense[yardstick.name]) if dense else ""
    beside = f" The dense network has {yardstick.name} {quality} on them." if dense else ""
    curves = {
        name: [np.array(run["rewards"]) for run in results["runs"] if run["searcher"] == name]
        for name in dict.fromkeys(run["searcher"] for run in results["runs"])
    }
    return [
        Text(
            f"{results['groups']} groups, at most {percent(settings['budget'], 1)} of the dense "
            f"{cost_name(settings['on'])} may remain; every search may measure "
            f"{settings['evaluations']:,} plans, and each is charged, repeated ones too.",
            lead=True,
        ),
        Text(
            f"{machine['cpu']}, one thread per search, {settings['processes']} at a time, "
            f"Python {machine['python']}, torch {machine['torch']}, {machine['date']}."
        ),
        Code(results["command"]),
        Heading("Best plan of each search"),
        table,
        Text(
            "Measured on the reward samples (training data), before fine-tuning; the column of "
            "test, where there is one, chose nothing." + beside
        ),
        Text(
            "Mean ± standard deviation over seeds; below, the interquartile mean (IQM) and its "
            f"95 % bootstrap interval ({RESAMPLES:,} resamples of the seeds). With fewer than "
            "about ten seeds such an interval is too narrow. Bold: the interval lies wholly on the "
            "better side of all others. Searchers that do not depend on a seed appear once."
        ),
        Heading("Best reward so far"),
        Picture(
            "compare",
            comparison_figure(curves, "best reward so far"),
            "Median over seeds and the band between the quartiles; dashed: plans made in one shot.",
        ),
        Fold("Settings", (settings_table(settings),)),
    ]
