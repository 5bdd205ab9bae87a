"""Downloads public data, checked by hash, to where --data and the presets find it by name.

python -m experiments.data cifar10
python -m experiments.data                    (what there is)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prune_env.experiments.config.cli import invoked, main_guard


@main_guard
def main(argv: Sequence[str]) -> int:
    """Download what is named, or list what there is; returns the exit status."""
    from prune_env.experiments.data.fetch import DATA_SETS, fetch
    from prune_env.locks import locked
    from prune_env.tasks.cache import cache_folder

    folder = cache_folder() / "data"
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {invoked('data')} NAME ...      (into '{folder}')\n")
        for name, entry in DATA_SETS.items():
            print(f"  {name:16} {entry.about}")
        return 0
    for name in argv:
        with locked(folder):
            print(f"{name}: {fetch(name, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(None))
