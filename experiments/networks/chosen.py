"""Options of a task as projects choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prune_env.mdp.candidates import TaskOptions


def without_samples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `TaskOptions`."""
    return {name: value for name, value in options.items() if name != "sample_kind"}


def preferred(options: Mapping[str, Any], **ours: Any) -> dict[str, Any]:
    """`options`, with our values where they are absent or at the default of `TaskOptions`."""
    defaults = {entry.name: entry.default for entry in fields(TaskOptions)}
    said = {k: v for k, v in options.items() if k not in ours or v != defaults.get(k)}
    return {**ours, **said}
