"""The tables of finished runs, written where they are kept.

    python -m experiments.publish_run runs/digits-0.5-0123456789 experiments/results/digits

Several run directories, which may differ in their seed only, give the means over them too.
Every number comes from results.json; nothing is measured here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from prune_env.errors import RunError
from prune_env.experiments.config.run import main_guard
from prune_env.experiments.report.findings import verdict
from prune_env.experiments.report.publishing import markdown, publish
from prune_env.experiments.report.tables import main_table, search_table
from prune_env.pipeline.formats import cost_name, percent, plain
from prune_env.pipeline.whole import read_results
from prune_env.pipeline.yardstick import yardstick_of

Results = Mapping[str, Any]
USAGE = (
    "usage: python -m experiments.publish_run RUN_DIRECTORY [RUN_DIRECTORY ...] OUT\n"
    "OUT is a path without suffix; OUT.md and OUT.json are written."
)


@main_guard
def main(argv: Sequence[str]) -> int:
    """Write OUT.md and OUT.json, print both."""
    if len(argv) < 2 or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    runs = [_read(Path(folder)) for folder in argv[:-1]]
    _require_alike(runs, argv[:-1])
    command = "; ".join(results["command"] for results in runs)
    publish(argv[-1], command, page(runs), figures(runs))
    return 0


def _read(folder: Path) -> Results:
    results = read_results(folder)
    if not results.get("dense"):
        raise RunError(f"'{folder}' is of a search only: it has no test figures to publish.")
    return results


def _require_alike(runs: Sequence[Results], folders: Sequence[str]) -> None:
    first, *others = [{**results["config"], "seed": None} for results in runs]
    for folder, config in zip(folders[1:], others, strict=True):
        differ = [key for key in {**first, **config} if first.get(key) != config.get(key)]
        if differ:
            raise RunError(
                f"'{folder}' and '{folders[0]}' differ in {', '.join(differ)}. Runs published "
                "together may differ in their seed only."
            )


def page(runs: Sequence[Results]) -> str:
    """Means where there are several runs, then the tables of each, in Markdown."""
    first = runs[0]
    yardstick, machine = yardstick_of(first), first["machine"]
    text = (
        f"# Pruning {first['title']}\n\n"
        f"Budget: at most {percent(first['budget'], 1)} of the dense "
        f"{cost_name(first['on'])}. {yardstick.name.capitalize()} is that of the "
        f"{first['dense']['test_samples']:,} test {yardstick.predictions}, before and after "
        f"fine-tuning for {first['config']['finetune_epochs']} epoch(s). CPU threads: "
        f"{machine['threads']}, torch {machine['torch']}, {machine['date']}.\n"
    )
    if len(runs) > 1:
        text += f"\n## Means over {len(runs)} runs\n\n{_means(runs)}"
    for results in runs:
        text += (
            f"\n## Seed {results['config']['seed']}\n\n{verdict(results)}\n\n"
            f"{main_table(results).markdown()}\n\nWhat the searches measured, on training "
            f"samples, before fine-tuning:\n\n{search_table(results).markdown()}\n"
        )
    return text


def _means(runs: Sequence[Results]) -> str:
    yardstick, rows = yardstick_of(runs[0]), [row for results in runs for row in results["rows"]]
    before, after = yardstick.key("before"), yardstick.key("after")
    columns = ["plan", "KL to dense, nats", f"{yardstick.name} before", f"{yardstick.name} after"]
    shown = {"kl": plain, before: yardstick.show, after: yardstick.show}
    dense = [results["dense"][yardstick.key("test")] for results in runs]
    lines = [["dense", plain(None), _mean(dense, yardstick.show), plain(None)]]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        lines.append([name, *(_mean([row[key] for row in own], shown[key]) for key in shown)])
    return markdown(columns, lines) + "\nIn brackets the lowest and the highest of the runs.\n"


def _mean(values: Sequence[float | None], show: Any) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return str(show(None))
    return f"{show(mean(there))} ({show(min(there))} to {show(max(there))})"


def figures(runs: Sequence[Results]) -> dict[str, Any]:
    """All but the plans measured on the way, with the settings that made them."""
    names = ("title", "budget", "on", "dense", "machine")
    return {"runs": [{**{n: r[n] for n in names}, **_rows(r)} for r in runs]}


def _rows(results: Results) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k != "history"} for row in results["rows"]]
    return {"rows": rows, "settings": results["config"]}


if __name__ == "__main__":
    sys.exit(main(None))
