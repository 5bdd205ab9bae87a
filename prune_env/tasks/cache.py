"""Where slow work is kept between processes: tensors in files under one cache folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from prune_env.errors import RunError
from prune_env.storage import load_tensors, save_tensors

Tensors = dict[str, Tensor]

_UNSAVED: dict[Path, Tensors] = {}
"""Results whose file could not be written: made, and warned about, once per process."""


def cache_folder() -> Path:
    """`$PRUNE_ENV_CACHE`, or `~/.cache/prune_env`; not created yet."""
    named = os.environ.get("PRUNE_ENV_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "prune_env"


def cached_tensors(
    path: Path, make: Callable[[], Tensors], fits: Callable[[Tensors], bool]
) -> Tensors:
    """The tensors kept in `path`; made, and kept there, when it is absent, damaged or unfit.

    A folder that cannot be written costs a warning, not the result. Do not change the tensors
    in place.
    """
    if path in _UNSAVED:
        return _UNSAVED[path]
    kept = _read(path)
    if kept is not None and fits(kept):
        return kept
    made = make()
    try:
        save_tensors(path, made)
    except RunError as error:
        _UNSAVED[path] = made
        warnings.warn(
            f"not cached for the next process: {error} PRUNE_ENV_CACHE names the cache folder.",
            RuntimeWarning,
            stacklevel=3,
        )
    return made


def _read(path: Path) -> Tensors | None:
    try:
        return load_tensors(path) if path.is_file() else None
    except (RunError, OSError):
        return None
