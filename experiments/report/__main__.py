"""The pages of a finished run, written again.

python -m experiments.report runs/digits-0.5-0123456789
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from prune_env.errors import RunError
from prune_env.experiments.config.cli import main_guard
from prune_env.experiments.report.report import format_table, write_report


@main_guard
def main(argv: Sequence[str]) -> int:
    """Write the pages of a finished run again."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print("usage: python -m experiments.report RUN_DIRECTORY")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    path = Path(argv[0]) / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read '{path}': {error}. Give a finished run directory.") from error
    print(write_report(results, argv[0]))
    print(format_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
