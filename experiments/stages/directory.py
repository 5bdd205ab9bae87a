"""The directory of a run: named by its config."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from prune_env.errors import RunError
from prune_env.experiments.config.run import RunConfig
from prune_env.storage import read_json, write_json

CONFIG = "config.json"


def open_run(config: RunConfig) -> Path:
    """The run directory, made if missing.

    Raises:
        RunError: it belongs to a run with another config, or cannot be written.
    """
    folder = run_folder(config)
    if not (folder / CONFIG).exists():
        write_json(folder / CONFIG, identity(config))
    return folder


def run_folder(config: RunConfig) -> Path:
    """Where the run directory is, or will be.

    Raises:
        RunError: it belongs to a run with another config.
    """
    what = config.task.replace(":", ".").replace("/", ".") or config.model
    folder = config.runs / (config.name or f"{what}-{config.budget:g}-{config.digest}")
    facts = identity(config)
    path = folder / CONFIG
    if path.exists():
        found = read_json(path, "run's config", "Delete the run directory.")
        if found != facts:
            keys = [k for k in {**facts, **found} if facts.get(k) != found.get(k)]
            differs = "; ".join(
                f"{k} is {found.get(k)!r} there, {facts.get(k)!r} now" for k in keys
            )
            raise RunError(
                f"'{folder}' holds a run with another config: {differs}. Choose another --name, or "
                "leave it out."
            )
    return folder


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, as JSON holds them."""
    decides = {f.name for f in fields(config) if f.metadata.get("identity", True)}
    values = {name: value for name, value in asdict(config).items() if name in decides}
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return result
