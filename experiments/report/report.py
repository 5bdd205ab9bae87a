"""The report: a pure function of a run's results, for people.

Every number comes from results.json; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_env.experiments.report.figures import learning_figure, scatter_figure, sparsity_figure
from prune_env.experiments.report.findings import best_row, error_of, measured_on, stage_of, verdict
from prune_env.experiments.report.page import Block, Code, Fold, Heading, Picture, Text, write_page
from prune_env.experiments.report.publishing import write_csv
from prune_env.experiments.report.tables import (
    frozen_table,
    groups_table,
    main_table,
    search_table,
    settings_table,
)
from prune_env.pipeline.formats import cost_name, percent
from prune_env.pipeline.yardstick import yardstick_of

Results = Mapping[str, Any]

FEW_GROUPS = 40
"""With more groups than this, the table of groups starts folded."""


def write_report(results: Results, folder: str | Path) -> Path:
    """Write report.html (self-contained), report.md with figures/, and report.csv, a row per plan.

    Returns the HTML file.

    Raises:
        RunError: the folder cannot be written.
    """
    write_csv(Path(folder) / "report.csv", results["rows"])
    return write_page(Path(folder), "report", f"Pruning {results['title']}", blocks(results))


def format_table(results: Results) -> str:
    """The main table as aligned text; an asterisk marks the best of a column."""
    return main_table(results).plain()


def blocks(results: Results) -> list[Block]:
    """The whole page."""
    return [
        Text(verdict(results), lead=True),
        Text(_setup(results)),
        Code(results["command"]),
        Heading("Result"),
        main_table(results),
        *(Text(line) for line in _remarks(results)),
        Heading("What the searches measured"),
        search_table(results),
        Text(
            "Measured on the reward samples, before fine-tuning. These are training data: no "
            "search saw a test sample. Bold marks the best; the samples are the same for all."
        ),
        *_figures(results),
        *_groups(results),
        Fold("Configuration", (settings_table(results["config"]),)),
    ]


def _setup(results: Results) -> str:
    machine = results["machine"]
    return (
        f"Budget: at most {percent(results['budget'], 1)} of the dense "
        f"{cost_name(results['on'])} remain. "
        f"Measured on {machine.get('cpu', 'an unknown CPU')}, CPU threads: "
        f"{machine.get('threads', '?')}, Python {machine.get('python', '?')}, "
        f"torch {machine.get('torch', '?')}, prune_env {machine.get('prune_env', '?')}, "
        f"{machine.get('date', 'undated')}."
    )


def _remarks(results: Results) -> list[str]:
    yardstick = yardstick_of(results)
    name, stage = yardstick.name, stage_of(results["rows"], yardstick)
    on = measured_on(results)
    remarks = [
        f"{name.capitalize()} is that of the {on} {yardstick.predictions}, before and after "
        "fine-tuning. Bold marks the best plan of a column; "
        f"for {name} and latency only where the lead is larger than the noise. "
        "Percentages below MACs and parameters are what is left of the dense network, times below "
        "a latency are its quartiles. Evaluations and search time are the price of a plan and are "
        "not ranked."
    ]
    error = error_of(results)
    best = best_row(results["rows"], stage, yardstick)
    if error is not None and best is not None and stage != "reward":
        value = best[yardstick.key(stage)]
        one, apart = (yardstick.gap(k * error(value), signed=False) for k in (1.0, 2.8))
        remarks.append(
            f"{name.capitalize()} is measured on {results['dense']['test_samples']:,} {on} "
            f"{yardstick.predictions}: at {yardstick.show(value)} its standard error is {one}, so "
            f"differences below about {apart} are not told apart. Each plan was applied and tuned "
            "once; what another training seed would change comes on top."
        )
    if results.get("note"):
        remarks.append(str(results["note"]))
    return remarks


def _figures(results: Results) -> list[Block]:
    if not results["rows"]:
        return []
    return [
        Heading("Where the plans cut"),
        Picture(
            "sparsity",
            sparsity_figure(results),
            "Fraction of units removed from every group, in layer order; above, the fraction of "
            "the dense MACs that depends on the group.",
        ),
        Heading("How the searches went"),
        Picture(
            "learning",
            learning_figure(results),
            "Dots: reward of every evaluated plan. Lines: best so far. Dashed: plans made in one "
            "shot.",
        ),
        Heading(f"{yardstick_of(results).name.capitalize()} against cost"),
        Picture(
            "scatter",
            scatter_figure(results),
            "Every plan that was measured, on the reward samples and before fine-tuning; large "
            "marks are the plans chosen by reward.",
        ),
    ]


def _groups(results: Results) -> list[Block]:
    live = [group for group in results["groups"] if not group["frozen"]]
    frozen = len(results["groups"]) - len(live)
    title = f"Kept units in {len(live)} group{'s' * (len(live) != 1)}"
    parts: list[Block] = [Fold(title, (groups_table(results),), open=len(live) <= FEW_GROUPS)]
    if frozen:
        few = frozen <= FEW_GROUPS
        parts.append(
            Fold(
                f"{frozen} group{'s' * (frozen != 1)} left alone",
                (frozen_table(results),),
                open=few,
            )
        )
    return parts
