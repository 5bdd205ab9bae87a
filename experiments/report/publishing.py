"""How figures are published: a page in Markdown, a JSON line, the command that made them."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import invoked


def settings_of(config: Any) -> dict[str, Any]:
    """The settings, as JSON holds them."""
    import torch

    settings: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return {**settings, "threads": torch.get_num_threads(), "torch": torch.__version__}


def command_of(script: str, argv: Sequence[str]) -> str:
    """What was typed, to be typed again."""
    return f"{invoked(script)} {shlex.join(argv)}".rstrip()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def publish(out: str, command: str, text: str, figures: Mapping[str, Any]) -> None:
    """Print the page and, last, the JSON line; with `out`, write both to `out`.md and .json."""
    from prune_env.storage import write_text

    line = json.dumps(_finite({"command": command, **figures}), allow_nan=False)
    if out:
        write_text(f"{out}.md", f"{text}\nMade by\n\n    {command}\n")
        write_text(f"{out}.json", line + "\n")
    print(text)
    print(line)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The plain values of all rows, a column for each that any of them has.

    Raises:
        RunError: the file cannot be written.
    """
    from prune_env.storage import write_text

    plain = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in plain for key in row)))
    writer.writeheader()
    writer.writerows(plain)
    return write_text(path, text.getvalue())


def _finite(value: Any) -> Any:
    """JSON knows no NaN: an undefined figure is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(line: str) -> None:
    """Progress, where it does not disturb the figures."""
    print(line, file=sys.stderr, flush=True)
