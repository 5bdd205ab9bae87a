"""Networks of a finished run, read back from its folder and measured on test once more.

    prune-env evaluate runs/digits-0.5-0123456789

What is in the folder is what the report is of, on whatever machine it is now.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.delivered import EvaluateConfig, run_first


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the figures measured and reported, and one JSON object."""
    config = parse(
        EvaluateConfig, run_first(argv), prog=invoked("evaluate"), description=__doc__ or ""
    )
    from prune_env.experiments.report.page import Cell, Table
    from prune_env.experiments.stages.delivered import Delivered
    from prune_env.pipeline.stages import figures, left

    delivered = Delivered(config)
    names = config.searchers or tuple(delivered.reported)
    for name in names:
        delivered.require(name)
    project = delivered.project
    yardstick, found, rows = project.yardstick, {}, []
    for name in names:
        network, reported = delivered.network(name), delivered.reported[name]
        facts = figures(project, network, "after")
        value, error = facts[yardstick.key("after")], facts[yardstick.key("after_error")]
        params = left(network, delivered.plan(name), project.task)["params"]
        found[name] = {
            yardstick.name: value, "error": error, "reported": reported, "params": params,
        }  # fmt: skip
        shown = (
            name, yardstick.show(value), yardstick.gap(1.96 * error, signed=False),
            yardstick.show(reported), f"{params:,.0f}",
        )  # fmt: skip
        rows.append(tuple(map(Cell, shown)))
    titles = ("", f"{yardstick.name} on test", "95 %: within", "reported", "parameters")
    print(Table(titles, tuple(rows)).plain())
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
