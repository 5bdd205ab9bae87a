"""The front of a search of many budgets, beside single searches: rows, verdict, page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from prune_env.experiments.config.pareto import ParetoConfig
from prune_env.experiments.report.aggregates import Estimate, mean_if_known, ratio_of_means
from prune_env.experiments.report.curves import NEAR
from prune_env.experiments.report.findings import leaders
from prune_env.experiments.report.front_figures import front_figure
from prune_env.experiments.report.page import Block, Cell, Fold, Heading, Picture, Table, Text
from prune_env.experiments.report.series import style_of
from prune_env.experiments.report.summaries import interval_cell, nats
from prune_env.experiments.report.tables import settings_table
from prune_env.experiments.sweeps.compare_job import Job
from prune_env.pipeline.formats import MISSING, cost_name, duration, percent, plain
from prune_env.pipeline.yardstick import Yardstick, yardstick_of

Results = Mapping[str, Any]
Run = Mapping[str, Any]
Row = Mapping[str, Any]
MANY, POLICY, SINGLE = "many budgets", "policy alone", "single"
"""Series: the front of the search of many budgets, its policy's own plans, the single searches."""


def rows_of(
    config: ParetoConfig, quality: str, runs: Mapping[Job, Run], manys: Sequence[Run]
) -> list[Row]:
    """A row per budget: of every series the figures of all seeds.

    Args:
        config: the comparison.
        quality: name of the figure of quality.
        runs: figures of the single searches and of the others beside them.
        manys: figures of the searches of many budgets, one per seed.
    """
    rows: list[Row] = []
    for place, budget in enumerate(config.asked):
        entries: dict[str, list[Run]] = {}
        for job, run in runs.items():
            if job.budget == budget:
                name = SINGLE if job.searcher == config.agent else job.searcher
                entries.setdefault(name, []).append(run)
        entries[POLICY] = [many["policy"][place] for many in manys]
        entries[MANY] = [many["front"][place] for many in manys]
        keys = ("kl_held_out", "kl", quality, "held_out")
        series = {n: {k: [e.get(k) for e in each] for k in keys} for n, each in entries.items()}
        rows.append({"budget": budget, "series": series})
    return rows


def seed_by_seed(rows: Sequence[Row]) -> list[Row]:
    """The same flat: a row for every budget, series and seed."""
    return [
        {
            "budget": row["budget"],
            "series": name,
            "seed": seed,
            **dict(zip(figures, each, strict=True)),
        }
        for row in rows
        for name, figures in row["series"].items()
        for seed, each in enumerate(zip(*figures.values(), strict=True))
    ]


def mean(row: Row, name: str, key: str) -> float | None:
    """Interquartile mean over seeds; None where the row has none."""
    return mean_if_known(row["series"].get(name, {}).get(key, [None]))


def ratios(rows: Sequence[Row]) -> dict[float, Estimate]:
    """KL of the front over that of the single search, at every budget that has one."""
    found = {}
    for row in rows:
        if SINGLE in row["series"]:
            many, one = (row["series"][name]["kl"] for name in (MANY, SINGLE))
            found[row["budget"]] = ratio_of_means(many, np.maximum(one, 1e-12))
    return found


def verdict(rows: Sequence[Row]) -> str:
    """Whether one policy of many budgets is as good as one search for each."""
    found = ratios(rows)
    said = ", ".join(
        f"{_ratio_cell(r).plain()} at {percent(b, 0)}" for b, r in sorted(found.items())
    )
    values = [ratio.value for ratio in found.values()]
    lower = sum(value <= 1 for value in values)
    near = sum(value <= 1 + NEAR for value in values)
    clear = sum(ratio.low > 1 for ratio in found.values())
    mean = float(np.exp(np.mean(np.log(np.maximum(values, 1e-12)))))
    return (
        f"KL of the search of many budgets / KL of a single search: {said}; geometric mean "
        f"{mean:.3f}. No worse at {lower} of {len(found)} budgets, at most {percent(NEAR, 0)} "
        f"worse at {near}, clearly worse (the whole interval) at {clear}."
    )


def _ratio_cell(ratio: Estimate) -> Cell:
    return interval_cell(ratio.value, ratio.low, ratio.high, partial(plain, digits=3))


def blocks_of(results: Results, name: str) -> list[Block]:
    """The page; its picture is called `name`."""
    settings, yardstick = results["settings"], yardstick_of(results)
    singles, each = len(settings["budgets"]), settings["evaluations"]
    caption = (
        f"KL to the dense network and {yardstick.name} on the reward samples, before fine-tuning; "
        "dots are all plans that the search of many budgets measured, lines their front and what "
        "its policy (or surrogate) decides without search, stars the single searches."
    )
    return [
        Text(results["verdict"], lead=True),
        Text(
            f"{results['groups']} groups. The {settings['agent']} of many budgets spent "
            f"{singles} x {each:,} = {singles * each:,} evaluations, every plan under a budget "
            f"of its own; each of the {singles} single searches spent {each:,}. The choice of the "
            "prior and the policy's plans below are part of the charge. Seeds: "
            f"{settings['seeds']} (interquartile means). Time of a search of many budgets: "
            f"{duration(results['seconds']['many'])}, of the single ones together: "
            f"{duration(results['seconds']['single'])}."
        ),
        Picture(name, front_figure(results), caption),
        *_tables(results, yardstick),
        Text(
            "Front: the best plan by KL, of all that were measured, whose cost is within the "
            "budget. In brackets: 95 % bootstrap interval over the seeds of both, too narrow with "
            "few of them. The column of test chose nothing."
        ),
        Fold("Settings", (settings_table(settings),)),
    ]


def _tables(results: Results, yardstick: Yardstick) -> list[Block]:
    blocks: list[Block] = []
    dense, tested = (yardstick.show(results[key]) for key in ("dense", "dense_held_out"))
    titles = {
        "kl_held_out": "KL, nats, test",
        "kl": "KL, nats, reward samples",
        yardstick.name: f"{yardstick.name}, reward samples, dense {dense}",
        "held_out": f"{yardstick.name}, test, dense {tested}",
    }
    for key, title in titles.items():
        sign, show = (-1, nats) if key.startswith("kl") else (yardstick.sign, yardstick.show)
        table = front_table(results, key, sign, show)
        if table is not None:
            blocks += [Heading(title), table]
    return blocks


def front_table(results: Results, key: str, sign: int, show: Callable[[Any], str]) -> Table | None:
    """A row per budget, a column per series; None where nothing is known."""
    agent, names = results["settings"]["agent"], results["series"]
    found = ratios(results["rows"])
    lines = []
    for row in results["rows"]:
        values = [mean(row, name, key) for name in names]
        if all(value is None for value in values):
            return None
        best = leaders(values, sign)
        cells = [
            Cell(MISSING if value is None else show(value), best=k in best)
            for k, value in enumerate(values)
        ]
        ratio = found.get(row["budget"])
        more = [Cell(MISSING) if ratio is None else _ratio_cell(ratio)] if key == "kl" else []
        first = Cell(percent(row["budget"], 0), colour=style_of(agent).colour)
        lines.append((first, *cells, *more))
    more_titles = (f"{MANY} / {SINGLE}",) if key == "kl" else ()
    cost = cost_name(results["settings"]["on"])
    return Table((f"{cost} left", *names, *more_titles), tuple(lines))
