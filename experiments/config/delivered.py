"""What is asked of a finished run; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.options import option


@dataclass(frozen=True)
class DeliveredFlags:
    """A finished run, and what it was run on where its files may not say so."""

    run: Path = option(Path(), "run directory; as the first word it needs no --run")  # noqa: RUF009
    task: str = option("", "package.module:function that the run's --task named")


@dataclass(frozen=True)
class EvaluateConfig(DeliveredFlags):
    """The networks of a finished run, read back and measured on test once more."""

    searchers: tuple[str, ...] = option((), "whose networks; empty: all that were tuned")


@dataclass(frozen=True)
class ExportConfig(DeliveredFlags):
    """A network of a finished run, written for programs that do not know this package."""

    to: Path = option(Path(), "file that ends in .pt2 or .onnx, or a folder")  # noqa: RUF009
    searcher: str = option("", "whose network; empty: the run's own searcher")

    def __post_init__(self) -> None:
        if self.to == Path():
            raise config_error("--to is missing: say where to, as in --to pruned.onnx.")


def run_first(argv: Sequence[str]) -> list[str]:
    """`argv` with the run directory named in full."""
    return ["--run", *argv] if argv and not argv[0].startswith("-") else list(argv)
