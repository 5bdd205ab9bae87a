"""Several searchers and seeds on one task, all charged the same evaluations.

    python -m experiments.compare --task digits --searchers uniform,random,ppo --seeds 5

Every search has its own folder under runs/compare-<digest>/ and is skipped when it is finished, so
the same command goes on where it was killed, and more seeds or searchers add to what is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from experiments.compare_config import CompareConfig
from experiments.config import main_guard, parse


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run what is missing, print the table and write the pages; returns the exit status."""
    config = parse(CompareConfig, argv, prog="python -m experiments.compare")
    from experiments.comparison import write_comparison
    from experiments.searching import compare  # torch comes with it; --help must not wait for that

    results = compare(config, " ".join(["python -m experiments.compare", *argv]))

    page, table = write_comparison(results, config.folder)
    print(table)
    print(f"comparison: {page}")
    print(json.dumps({"searchers": results["searchers"], "settings": config.settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
