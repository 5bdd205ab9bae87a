"""How every benchmark runs: options, threads, time, a page, and figures as a last line of JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.options import AT_LEAST_0, option, require
from prune_env.experiments.report.publishing import command_of, markdown, publish, settings_of

Config = TypeVar("Config", bound="BenchFlags")
Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """What every benchmark is asked for."""

    threads: int = option(1, "CPU threads of torch; 0: its own choice", identity=False)
    out: str = option(
        "", "path without suffix of the .md and .json to write; empty: print only", identity=False
    )


def bench(
    name: str,
    config: type[Config],
    measure: Callable[[Config], Figures],
    page: Callable[[Figures], str],
    failed: Callable[[Figures], bool] = lambda figures: False,
) -> Callable[[Sequence[str] | None], int]:
    """The command of a benchmark.

    Args:
        name: of its module.
        config: its options.
        measure: from the options to figures, usually with "rows", one per row and column.
        page: from the figures, with their "settings", to Markdown.
        failed: whether the command ends with status 1.
    """

    def main(argv: Sequence[str]) -> int:
        chosen = parse(config, argv, prog=invoked(name))
        require(chosen, {"threads": AT_LEAST_0})
        import torch

        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        start = time.perf_counter()
        figures = {**measure(chosen), "seconds": round(time.perf_counter() - start, 1)}
        figures["settings"] = settings_of(chosen)
        publish(chosen.out, command_of(name, argv), page(figures), figures)
        return int(failed(figures))

    return main_guard(main)


def pivoted(
    rows: Sequence[Figures],
    lines: Mapping[str, Callable[[Figures], str]],
    column: Callable[[Figures], str],
    cell: Callable[[Sequence[Figures]], str],
) -> str:
    """A Markdown table with a line and a column for everything that rows are told apart by.

    Args:
        rows: figures of each.
        lines: title of a leading column, and the row's text in it.
        column: title of the row's column.
        cell: from the rows that share a line and a column to text.
    """
    across = list(dict.fromkeys(map(column, rows)))
    found: dict[tuple[str, ...], dict[str, list[Figures]]] = {}
    for row in rows:
        line = tuple(text(row) for text in lines.values())
        found.setdefault(line, {}).setdefault(column(row), []).append(row)
    cells = [
        [*line, *(cell(own[title]) if title in own else "" for title in across)]
        for line, own in found.items()
    ]
    return markdown([*lines, *across], cells)
