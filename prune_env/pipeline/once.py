"""Stages that leave a file, so that each is done once: the same call again goes on behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_env.errors import RunError
from prune_env.fingerprint import Identity, differences
from prune_env.locks import locked
from prune_env.records import read_record
from prune_env.storage import AGAIN, Unreadable, read_json, write_json


@dataclass(frozen=True)
class _Stage:
    """A stage's file."""

    made_of: Mapping[str, str]
    content: dict[str, Any]


def once(
    path: Path | None,
    made_of: Identity | Callable[[], Identity],
    make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The JSON of a stage in `path`, made and written at the first call; None: made, not kept.

    Raises:
        RunError: it was made of other things (says which), or is damaged.
    """
    if path is None:
        return make()
    made_of = made_of() if callable(made_of) else made_of
    with locked(path.parent):
        if not path.exists():
            write_json(path, {"made_of": dict(made_of), "content": make()})
        found = read_json(path, "stage of a run")
    try:
        stage = read_record(_Stage, found)
    except Unreadable as error:
        raise RunError(f"'{path}' is no stage of a run ({error}). {AGAIN}") from error
    differ = differences(stage.made_of, made_of)
    if differ:
        raise RunError(
            f"'{path}' was made of other things: {differ}. Choose another folder (--runs), or "
            f"delete '{path.parent}'."
        )
    return stage.content
