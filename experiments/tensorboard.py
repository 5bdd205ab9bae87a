"""TensorBoard of all runs of a folder, for this machine only.

prune-env tensorboard --runs runs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prune_env.experiments.config.cli import config_error, invoked, main_guard, parse
from prune_env.experiments.config.options import option

HOST = "127.0.0.1"
"""Nobody else sees it."""


@dataclass(frozen=True)
class TensorBoardConfig:
    """TensorBoard of all runs of a folder, for this machine only."""

    runs: Path = option(Path("runs"), "folder of runs, or one of them")  # noqa: RUF009
    port: int = option(6006, "of the page; the next free one where it is taken")

    def __post_init__(self) -> None:
        if not self.runs.is_dir():
            raise config_error(f"--runs: there is no folder '{self.runs}'. Give one with runs.")


@main_guard
def main(argv: Sequence[str]) -> int:
    """Serve until interrupted."""
    config = parse(TensorBoardConfig, argv, prog=invoked("tensorboard"))
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(["tensorboard", *arguments(config)])
    status: int = board.main()
    return status


def arguments(config: TensorBoardConfig) -> list[str]:
    """Of TensorBoard's own command; a port that is said must be free, so the default is not."""
    words = ["--logdir", str(config.runs), "--host", HOST]
    return words if config.port == TensorBoardConfig.port else [*words, "--port", str(config.port)]


if __name__ == "__main__":
    sys.exit(main(None))
