"""Where models and data lie: as named, in `$PRUNE_ENV_DATA`, beside the checkout, downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from prune_env.errors import DataError
from prune_env.experiments.data.fetch import DATA_SETS
from prune_env.tasks.cache import cache_folder

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""A folder that some checkouts have beside them, with `models/` and `data/` in it."""


def locate(name: str | Path, kind: str = "data") -> Path:
    """The file or folder `name`: a path, or a name in one of the known places.

    Args:
        name: looked up as it is, then under `$PRUNE_ENV_DATA`, there in `kind`/ first, then beside
            the checkout and among what `prune-env data` downloaded.
        kind: "data" or "models".

    Raises:
        DataError: it is in none of the places; lists them.
    """
    path = Path(name).expanduser()
    root = os.environ.get("PRUNE_ENV_DATA")
    roots = [Path(root).expanduser()] if root else []
    folders = [*(r / kind for r in roots), *(r.parent / kind for r in roots), *roots, SHARED / kind]
    folders.append(cache_folder() / kind)
    places = [path, *([] if path.is_absolute() else [folder / path for folder in folders])]
    for place in places:
        if place.exists():
            return place
    looked = " or ".join(f"'{place.absolute()}'" for place in places)
    cure = f" `prune-env data {name}` downloads it." if str(name) in DATA_SETS else ""
    raise DataError(
        f"nothing at {looked}. Give a path, or let $PRUNE_ENV_DATA name its folder.{cure}"
    )
