"""Several searchers, seeds and budgets on one task, all charged the same evaluations.

    python -m experiments.compare --task digits --budgets 0.5,0.3 --searchers uniform,random,ppo

Every search has its own folder under runs/compare-<digest>/b<budget>/ and is skipped when it is
finished, so the same command goes on where it was killed, and more budgets, seeds or searchers add
to what is there. `python -m experiments.tabulate` makes one page of several comparisons.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from prune_env.experiments.config.cli import invoked
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import main_guard, parse
from prune_env.experiments.report.publishing import command_of

ONE_BUDGET = "--budget"
"""What --budgets was called when there was one."""


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run what is missing, print the tables and write the pages; returns the exit status."""
    command = command_of("compare", argv)
    argv = [word.replace(ONE_BUDGET, "--budgets") if _is_old(word) else word for word in argv]
    config = parse(CompareConfig, argv, prog=invoked("compare"))
    # torch comes with these; --help must not wait for that
    from prune_env.experiments.report.comparison import (
        figures,
        publish_comparison,
        tables,
        write_comparison,
    )
    from prune_env.experiments.sweeps.searching import compare

    results = compare(config, command)
    page = write_comparison(results, config.folder)
    if config.out:
        publish_comparison(results, config.out)
    print(tables(results))
    print(f"comparison: {page}")
    print(json.dumps(figures(results), allow_nan=False))
    return 0


def _is_old(word: str) -> bool:
    return word == ONE_BUDGET or word.startswith(f"{ONE_BUDGET}=")


if __name__ == "__main__":
    sys.exit(main(None))
