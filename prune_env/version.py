"""Which version of this package it is."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def version() -> str:
    """That of the package, and in a checkout the commit: '0.1.0+a80437d'."""
    commit = _commit(Path(__file__).parents[1] / ".git")
    return f"{__version__}+{commit[:7]}" if commit else __version__


def _commit(git: Path) -> str:
    """What HEAD is, read from the files, for there may be no git; empty where there is none."""
    try:
        at = (git / "HEAD").read_text("utf-8").strip()
        if not at.startswith("ref: "):
            return at
        name = at.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text("utf-8").strip()
        lines = (git / "packed-refs").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")
