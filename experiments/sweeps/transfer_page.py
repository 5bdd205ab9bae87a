"""What a transfer shows: the target's rows, the verdict, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune_env.experiments.config.transfer import TransferConfig
from prune_env.experiments.report.aggregates import mean_if_known
from prune_env.experiments.report.findings import leaders
from prune_env.experiments.report.page import Block, Cell, Fold, Heading, Table, Text
from prune_env.experiments.report.series import style_of
from prune_env.experiments.report.summaries import nats
from prune_env.experiments.report.tables import settings_table
from prune_env.experiments.sweeps.compare_job import Job
from prune_env.pipeline.formats import MISSING, cost_name, percent
from prune_env.pipeline.yardstick import yardstick_of

Results = Mapping[str, Any]
Run = Mapping[str, Any]
PRIOR, POLICY, PLAN = "best prior", "policy", "plan"
"""Rows that a transfer measures."""


def rows_of(
    config: TransferConfig, quality: str, runs: Mapping[Job, Run], moved: Sequence[Run]
) -> list[dict[str, Any]]:
    """Of every budget its rows, each with the figures of all seeds.

    Args:
        config: the transfer.
        quality: name of the figure of quality.
        runs: figures of searches on the target.
        moved: figures of the policies on the target.
    """
    result = []
    for budget in config.budgets:
        rows: dict[str, list[Run]] = {}
        for job, run in runs.items():
            if job.budget == budget:
                rows.setdefault(_name(config, job), []).append(run)
        for run in (each for each in moved if each["budget"] == budget):
            for name, row in run["rows"].items():
                rows.setdefault(name, []).append(row)
        result.append({"budget": budget, "rows": _together(rows, quality)})
    return result


def _name(config: TransferConfig, job: Job) -> str:
    if job.searcher != config.agent:
        return job.searcher
    return f"{config.agent}, {'going on' if job.config.init_policy else 'afresh'}"


def _together(rows: Mapping[str, Sequence[Run]], quality: str) -> list[dict[str, Any]]:
    """Searchers, what the transfer measured, searches by the agent."""
    last = ("going on", "afresh")
    names = sorted(rows, key=lambda name: (name.endswith(last), name in (PRIOR, POLICY, PLAN)))
    keys = ("kl_held_out", "kl", quality, "held_out", "evaluations", "macs_ratio", "params_ratio")
    return [{"name": n, **{key: [run.get(key) for run in rows[n]] for key in keys}} for n in names]


def mean(row: Mapping[str, Any], key: str) -> float | None:
    """Interquartile mean over seeds."""
    return mean_if_known(row[key])


def verdict(config: TransferConfig, entry: Mapping[str, Any]) -> str:
    """How the policy does beside what needs no training."""
    kl = {row["name"]: mean(row, "kl") or 0.0 for row in entry["rows"]}
    others = [name for name in kl if name not in (POLICY, PLAN) and "," not in name]
    said = ", ".join(f"{kl[POLICY] / max(kl[name], 1e-12):.3f} of {name}'s" for name in others)
    plan = f" The source's plan moved here: {nats(kl[PLAN])}." if PLAN in kl else ""
    where = config.source or "a saved policy"
    return (
        f"At {percent(entry['budget'], 1)} of the {cost_name(config.on)} the {config.agent} of "
        f"{where}, run on {config.task} without training, reaches a KL of {nats(kl[POLICY])}: "
        f"{said}.{plan}"
    )


def blocks_of(results: Results) -> list[Block]:
    """The page."""
    settings = results["settings"]
    blocks: list[Block] = [Text(line, lead=True) for line in results["verdict"]]
    for entry in results["budgets"]:
        cost = f"{percent(entry['budget'], 1)} of the {cost_name(settings['on'])}"
        blocks += [Heading(cost), transfer_table(results, entry["rows"])]
    blocks.append(
        Text(
            f"Source: {results['source']}. Rows: {PRIOR}: the best of the allocations that need no "
            f"search, measured to be chosen; {POLICY}: what the deterministic policy decides "
            "around the allocation that it was trained around (around the best, if a file is all "
            "that is known of it). "
            + _plan_said(results)
            + "KL and quality on the reward samples of the target, before fine-tuning; the column "
            f"of test chose nothing. Interquartile means over {settings['seeds']} seed(s)."
        )
    )
    return [*blocks, Fold("Settings", (settings_table(settings),))]


def _plan_said(results: Results) -> str:
    names = {row["name"] for entry in results["budgets"] for row in entry["rows"]}
    if PLAN not in names:
        return ""
    return (
        f"{PLAN}: the source's best plan, at the same offsets from the path of its prior, at the "
        "budget of the target. "
    )


def transfer_table(results: Results, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per way to a plan."""
    yardstick, agent = yardstick_of(results), results["settings"]["agent"]
    shows = {
        "kl_held_out": ("KL, nats, test", -1, nats),
        "kl": ("KL, nats", -1, nats),
        yardstick.name: (yardstick.name, yardstick.sign, yardstick.show),
        "held_out": (f"{yardstick.name}, test", yardstick.sign, yardstick.show),
    }
    columns = []
    for key, (_, sign, show) in shows.items():
        values = [mean(row, key) for row in rows]
        best = leaders(values, sign)
        columns.append(
            [Cell(MISSING if v is None else show(v), best=k in best) for k, v in enumerate(values)]
        )
    lines = []
    for k, row in enumerate(rows):
        ours = row["name"] == POLICY or row["name"].startswith(f"{agent},")
        colour = style_of(agent if ours else row["name"]).colour
        first = Cell(row["name"], colour=colour)
        count = Cell(f"{mean(row, 'evaluations') or 0:.4g}")
        lines.append((first, *(column[k] for column in columns), count))
    titles = (title for title, _, _ in shows.values())
    return Table(("plan", *titles, "evaluations"), tuple(lines))
