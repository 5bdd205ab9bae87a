"""`prune-env`: every command of experiments/ by one name, wherever the package is installed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

from prune_env.experiments.config.cli import config_error, main_guard, nearest

COMMANDS = (
    "run", "evaluate", "export", "report", "compare", "pareto", "transfer", "ablation", "inspect",
    "tabulate", "tensorboard", "perplexity", "data", "check", "screenshots", "fuzz", "kills",
)  # fmt: skip
"""Modules of this folder with a `main(argv)`; `report` is a folder with one. Add one here."""


@main_guard
def main(argv: Sequence[str]) -> int:
    """Hand the words behind a command's name to it; returns its exit status.

    Raises:
        ConfigError: there is no such command; says the nearest.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = argv
    if name == "--version":
        print(metadata.version("prune_env"))
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise config_error(f"no command '{name}'.{nearest(name, COMMANDS)} There are {known}.")
    status: int = import_module(module_of(name)).main(rest)
    return status


def module_of(command: str) -> str:
    """The module that holds a command's `main`."""
    module = f"{__package__}.{command}"
    return f"{module}.__main__" if (Path(__file__).parent / command).is_dir() else module


def usage() -> str:
    """All commands with what they do, the first line of their modules; none is imported."""
    lines = ["usage: prune-env COMMAND [options]      (prune-env COMMAND --help lists them)", ""]
    width = max(map(len, COMMANDS))
    return "\n".join([*lines, *(f"  {name:{width}}  {_first_line(name)}" for name in COMMANDS)])


def _first_line(command: str) -> str:
    here = Path(__file__).parent / command
    file = here / "__main__.py" if here.is_dir() else here.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main(None))
