"""The pages of a finished run, written again.

python -m experiments.report runs/digits-0.5-0123456789
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prune_env.experiments.config.cli import main_guard
from prune_env.experiments.report.report import format_table, write_report
from prune_env.pipeline.whole import read_results


@main_guard
def main(argv: Sequence[str]) -> int:
    """Write the pages of a finished run again."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print("usage: python -m experiments.report RUN_DIRECTORY")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    results = read_results(argv[0])
    print(write_report(results, argv[0]))
    print(format_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
