"""Several comparisons as one page: the same columns for every task and budget, and all together.

    python -m experiments.tabulate --out experiments/results/agents runs/compare-a runs/compare-b

Every number comes from the compare.json of a folder; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prune_env.experiments.config.run import main_guard
from prune_env.experiments.report.publishing import command_of

Results = Mapping[str, Any]


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the page and, last, its figures as JSON; write both to OUT.md and OUT.json."""
    parser = argparse.ArgumentParser("python -m experiments.tabulate", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of finished comparisons")
    parser.add_argument("--out", default="", help="path without suffix; empty: only print")
    asked = parser.parse_args(argv)
    from prune_env.experiments.report.comparison import markdown_of
    from prune_env.experiments.report.merged import blocks_of, figures_of
    from prune_env.experiments.report.page import write_pictures
    from prune_env.storage import write_text

    results = [_read(folder) for folder in dict.fromkeys(asked.folders)]
    command = command_of("tabulate", argv)
    blocks = blocks_of(results, command, Path(asked.out or "tabulate").name)
    page = markdown_of("Searchers over all tasks", blocks)
    line = json.dumps({"command": command, **figures_of(results)}, allow_nan=False)
    if asked.out:
        write_text(f"{asked.out}.md", page)
        write_pictures(blocks, Path(asked.out).parent)
        write_text(f"{asked.out}.json", line + "\n")
    print(page)
    print(line)
    return 0


def _read(folder: Path) -> Results:
    from prune_env.errors import RunError

    path = folder / "compare.json"
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        if not all("searchers" in cell for cell in results["cells"]):
            raise ValueError("its cells hold no searchers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"cannot read '{path}': {error!r}. Give the folder of a comparison; the same command "
            "of experiments.compare writes it again."
        ) from error
    return results


if __name__ == "__main__":
    sys.exit(main(None))
