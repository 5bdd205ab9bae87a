"""`prune-env`: one name for every command."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from prune_env.experiments.command import COMMANDS, main, module_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_and_a_line_of_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(import_module(module_of(name)).main)
    assert main(["--help"]) == 0
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.split()[:1] == [name]]
    assert len(line.split()) > 3


def test_words_behind_a_name_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    assert "RUN_DIRECTORY" in capsys.readouterr().out


def test_a_wrong_name_ends_with_status_2_and_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["rum"]) == 2
    assert "Did you mean 'run'?" in capsys.readouterr().err


def test_it_is_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"prune-env": f"{main.__module__}:main"}


def test_shipped_configs_are_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "digits.toml", "--searcher", "ppoo"]) == 2
    assert "Did you mean 'ppo'?" in capsys.readouterr().err
