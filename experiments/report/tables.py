"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prune_env.experiments.report.findings import (
    known,
    latency_leaders,
    leaders,
    measured_on,
    quality_leaders,
    stage_of,
)
from prune_env.experiments.report.page import Cell, Table
from prune_env.experiments.report.series import DENSE, style_of
from prune_env.pipeline.formats import (
    MISSING,
    count,
    duration,
    milliseconds,
    percent,
    plain,
    scaled,
    setting,
)
from prune_env.pipeline.yardstick import Yardstick, yardstick_of

Results = Mapping[str, Any]
Row = Mapping[str, Any]

COLUMNS = (
    "plan",
    "{} before",
    "{} after",
    "against dense",
    "MACs",
    "parameters",
    "file",
    "latency, ms",
    "evaluations",
    "search time",
)
"""Of the main table; braces stand for the figure of quality."""


def main_table(results: Results) -> Table:
    """Dense and every plan side by side; columns without any value are left out."""
    dense, rows, yardstick = results["dense"], results["rows"], yardstick_of(results)
    before, after = f"{yardstick.name} before", f"{yardstick.name} after"
    marks = {
        before: quality_leaders(results, "before"),
        after: quality_leaders(results, "after"),
        "MACs": leaders([row.get("macs") for row in rows], -1),
        "parameters": leaders([row.get("params") for row in rows], -1),
        "file": leaders([row.get("file_bytes") for row in rows], -1),
        "latency, ms": latency_leaders(rows),
    }
    first = {
        "plan": Cell("dense", colour=DENSE.colour),
        before: Cell(yardstick.show(dense.get(yardstick.key("test")))),
        **_sizes(dense),
    }
    lines = [_line(row, dense, yardstick) for row in rows]
    for column, best in marks.items():
        for k in best:
            lines[k][column] = replace(lines[k][column], best=True)
    return _table([*([first] if dense else []), *lines], yardstick)


def _line(row: Row, dense: Row, yardstick: Yardstick) -> dict[str, Cell]:
    stage = stage_of([row], yardstick)
    reference = dense.get(yardstick.key("test"))
    compared = stage != "reward" and known(reference)
    gap = row[yardstick.key(stage)] - reference if compared else None
    return {
        "plan": _name(row),
        f"{yardstick.name} before": Cell(yardstick.show(row.get(yardstick.key("before")))),
        f"{yardstick.name} after": Cell(yardstick.show(row.get(yardstick.key("after")))),
        "against dense": Cell(yardstick.gap(gap)),
        **_sizes(row),
        "evaluations": Cell(count(row["evaluations"])),
        "search time": Cell(duration(row.get("search_seconds"))),
    }


def _sizes(row: Row) -> dict[str, Cell]:
    times = row.get("latency_ms") or {}
    spread = f"{milliseconds(times.get('low'))} to {milliseconds(times.get('high'))}"
    return {
        "MACs": Cell(scaled(row.get("macs")), _share(row.get("macs_ratio"))),
        "parameters": Cell(scaled(row.get("params")), _share(row.get("params_ratio"))),
        "file": Cell(scaled(row.get("file_bytes"), "B")),
        "latency, ms": Cell(milliseconds(times.get("median")), spread if times else ""),
    }


def _share(ratio: Any) -> str:
    return "" if ratio is None else percent(ratio, 1)


def _table(lines: list[dict[str, Cell]], yardstick: Yardstick) -> Table:
    blank, columns = Cell(MISSING), [column.format(yardstick.name) for column in COLUMNS]
    used = [c for c in columns if any(line.get(c, blank).text != MISSING for line in lines)]
    return Table(tuple(used), tuple(tuple(line.get(c, blank) for c in used) for line in lines))


def _name(row: Row) -> Cell:
    return Cell(row["name"], colour=style_of(row["name"]).colour)


def search_table(results: Results) -> Table:
    """What every search found on its own samples."""
    rows, yardstick = results["rows"], yardstick_of(results)
    best_reward = leaders([row.get("reward") for row in rows])
    best_kl = leaders([row.get("kl") for row in rows], -1)
    held_out = any(known(row.get("kl_held_out")) for row in rows)
    lines = [
        (
            _name(row),
            Cell(plain(row.get("reward")), best=k in best_reward),
            Cell(plain(row.get("kl")), best=k in best_kl),
            *_held_out(row, held_out),
            Cell(yardstick.show(row.get(yardstick.key("reward")))),
            Cell(count(row["evaluations"])),
            Cell(setting(row.get("seed"))),
        )
        for k, row in enumerate(rows)
    ]
    columns = (
        "plan",
        "reward",
        f"{yardstick.apart}, to dense",
        *([f"on {measured_on(results)}", "reported minus that"] if held_out else []),
        yardstick.name,
        "evaluations",
        "seed",
    )
    return Table(columns, tuple(lines))


def _held_out(row: Row, shown: bool) -> tuple[Cell, ...]:
    """The divergence where nothing was chosen, and how far the search's own is from it.

    The 95 % interval of the difference holds 0 where the search did not fool itself. The network is
    repaired on more samples than while it was searched, so it may also be better than reported.
    """
    if not shown:
        return ()
    there = row.get("kl_held_out")
    if not known(there):
        return Cell(MISSING), Cell(MISSING)
    gap = row["kl"] - there
    reach = 1.96 * math.hypot(row.get("kl_error") or 0.0, row.get("kl_held_out_error") or 0.0)
    return Cell(plain(there)), Cell(f"{gap:+.4f} ({gap - reach:+.4f} to {gap + reach:+.4f})")


def groups_table(results: Results) -> Table:
    """Kept units of every group in every plan."""
    rows = results["rows"]
    lines = []
    for group in (group for group in results["groups"] if not group["frozen"]):
        kept = [row["kept"].get(group["name"], (None,))[0] for row in rows]
        share = Cell(percent(group["macs_share"], 1))
        cells = [Cell(MISSING if k is None else str(k)) for k in kept]
        lines.append((Cell(group["name"]), Cell(str(group["units"])), share, *cells))
    columns = ("group", "units", "share of MACs", *(row["name"] for row in rows))
    return Table(columns, tuple(lines))


def frozen_table(results: Results) -> Table:
    """Groups left alone, with the reason."""
    frozen = [group for group in results["groups"] if group["frozen"]]
    lines = [(Cell(g["name"]), Cell(str(g["units"])), Cell(g["frozen"])) for g in frozen]
    return Table(("group", "units", "reason"), tuple(lines))


def settings_table(config: Mapping[str, Any]) -> Table:
    """Every setting of the run."""
    lines = tuple((Cell(str(key)), Cell(setting(value))) for key, value in config.items())
    return Table(("setting", "value"), lines)
