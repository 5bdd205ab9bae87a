"""One config from defaults, a file and the command line; bad input is one line and status 2."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env.criteria.elementwise import CRITERIA
from prune_env.errors import BudgetError, ConfigError
from prune_env.experiments.config.cli import as_toml
from prune_env.experiments.config.run import RunConfig, main_guard, parse
from prune_env.experiments.stages.directory import identity
from prune_env.mdp.candidates import TaskOptions
from prune_env.mdp.rewards import REWARDS
from prune_env.storage import write_json

ROOT = Path(__file__).parent.parent


def toml(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "c.toml").write_text(text)
    return ["--config", str(tmp_path / "c.toml")]


def test_no_arguments_give_the_defaults() -> None:
    assert parse(RunConfig, []) == RunConfig()
    assert RunConfig().differences == {}


def _written(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


@given(
    budget=st.floats(0.01, 1),
    evaluations=st.integers(1, 10**6),
    model=st.from_regex(r"[a-z0-9_.:/]+", fullmatch=True),
    ignore=st.lists(st.from_regex(r"[a-z0-9_.*?]+", fullmatch=True)),
    tensorboard=st.booleans(),
)
def test_what_is_written_on_the_command_line_is_read_back(**values: Any) -> None:
    values["ignore"] = tuple(values["ignore"])
    config = replace(RunConfig(), **values)
    argv = [
        f"--{name}={_written(value)}" for name, value in values.items() if name != "tensorboard"
    ]
    argv.append("--tensorboard" if config.tensorboard else "--no-tensorboard")
    assert parse(RunConfig, argv) == config


def test_the_file_gives_differences_and_the_command_line_wins(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        'budget = 0.25\nseed = 7\nruns = "out"\nbaselines = ["uniform"]\n'
        'ignore = "conv1, layer*"\ntensorboard = false\nmin-sparsity = 0\n',
    )
    config = parse(RunConfig, [*file, "--seed", "8"])
    assert config == RunConfig(
        budget=0.25,
        seed=8,
        runs=Path("out"),
        baselines=("uniform",),
        ignore=("conv1", "layer*"),
        tensorboard=False,
    )
    assert parse(RunConfig, ["--seed", "8", *file]) == config
    assert isinstance(config.min_sparsity, float)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "configs").glob("*.toml")))
def test_the_shipped_files_parse(file: Path) -> None:
    assert parse(RunConfig, ["--config", str(file)]) is not None


def test_there_are_shipped_files() -> None:
    names = {file.stem for file in (ROOT / "experiments" / "configs").glob("*.toml")}
    assert names >= {"digits", "resnet20_cifar10"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--buget", "0.5"], r"unknown option '--buget'. Did you mean '--budget'\?"),
        (["--buget=0.5"], "'--budget'"),
        (["--eval", "3"], "unknown option '--eval'"),
        (["stray"], "unknown option 'stray'"),
        (["--budget", "half"], "--budget.*half"),
        (["--evaluations", "1.5"], "--evaluations"),
        (["--budget"], "--budget"),
        (["--budget", "0"], "--budget is 0.0; it must be above 0"),
        (["--budget", "nan"], "--budget"),
        (["--evaluations", "0"], "at least 1"),
        (["--on", "flops"], "macs, params or bytes"),
        (["--max-sparsity", "1"], "--max-sparsity"),
        (["--min-sparsity", "0.8", "--max-sparsity", "0.2"], "above --max-sparsity"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--config", "absent.toml"], r"absent\.toml"),
    ],
)
def test_bad_options_are_refused_with_a_reason(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(RunConfig, argv)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("evaluatons = 5", r"unknown key 'evaluatons' .*Did you mean 'evaluations'\?"),
        ("[search]\nseed = 1", "unknown key 'search'"),
        ("seed = 1.5", "'seed' .* is 1.5, not a whole number"),
        ("seed = true", "not a whole number"),
        ('budget = "half"', "not a number"),
        ("tensorboard = 1", "not true or false"),
        ("ignore = [1]", "not a list of texts"),
        ("stages = [1.5]", "not a list of whole numbers"),
        ("stages = [0]", "--stages is"),
        ('precision = "half"', "--precision is half"),
        ("model = 3", "not a text"),
        ("budget = 2.0", "--budget is 2.0"),
        ("budget =", "cannot read the config file"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(RunConfig, toml(tmp_path, text))


# Values other than the default, all in range.
OTHERS: dict[type, Any] = {str: "other", float: 0.125, int: 3}
SPECIAL: dict[str, Any] = {
    "on": "params",
    "runs": Path("elsewhere"),
    "baselines": ("x",),
    "ignore": ("x",),
}
SPECIAL |= {"goal": "tuned", "stages": (256,), "precision": "float32", "multiple_of": "8"}


@pytest.mark.parametrize("entry", fields(RunConfig), ids=lambda entry: entry.name)
def test_the_digest_changes_with_the_fields_that_make_the_result(entry: Any) -> None:
    value = SPECIAL.get(entry.name, OTHERS.get(type(entry.default)))
    value = not entry.default if isinstance(entry.default, bool) else value
    changed = replace(RunConfig(), **{entry.name: value})
    assert changed != RunConfig()
    incidental = entry.name in (
        "runs", "name", "workers", "threads", "tensorboard", "progress", "dry_run"
    )  # fmt: skip
    assert (changed.digest == RunConfig().digest) == incidental
    assert changed.digest == replace(changed).digest
    assert list(changed.differences) == [entry.name]


def test_every_field_has_a_help_line_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(RunConfig, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for entry in fields(RunConfig):
        assert f"--{entry.name.replace('_', '-')}" in shown
        assert entry.metadata["help"]


def test_defaults_agree_with_those_of_a_task() -> None:
    options = {entry.name: entry.default for entry in fields(TaskOptions)}
    asked = RunConfig().task_options
    assert asked == {name: options[name] for name in asked}
    assert {*options} - {*asked} == {"leftover", "batch_size", "batch"}
    assert RunConfig().criterion in (*CRITERIA, "obs")
    assert RunConfig().reward in REWARDS


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from prune_env.experiments.config.run import RunConfig, parse\n"
        "try: parse(RunConfig, ['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_guard_turns_bad_input_into_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @main_guard
    def main(argv: Sequence[str]) -> None:
        raise BudgetError(f"budget {argv[0]}\n  is too small.")

    assert main(["0.1"]) == 2
    assert capsys.readouterr().err == "error: budget 0.1 is too small.\n"


def test_whatever_else_goes_wrong_is_one_line_and_its_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @main_guard
    def inner(argv: Sequence[str]) -> int:
        return 1 // len(argv)

    outer = main_guard(inner)
    assert outer([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ZeroDivisionError: ")
    assert said.count("\n") == 1
    assert "test_config.py, line " in said
    assert "--debug" in said
    with pytest.raises(ZeroDivisionError):
        outer(["--debug"])
    assert outer([]) == 1, "debugging ends with the command"


def test_the_guard_leaves_results_alone_and_ends_on_interrupts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @main_guard
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    @main_guard
    def terminated(argv: Sequence[str]) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert interrupted([]) == 130
    assert terminated([]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert main_guard(lambda argv: None)([]) == 0
    assert main_guard(lambda argv: 3)([]) == 3
    assert "Traceback" not in capsys.readouterr().err


@given(
    budget=st.floats(0.01, 1),
    evaluations=st.integers(1, 10**6),
    task=st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda text: ":" not in text),
    baselines=st.lists(st.from_regex(r"[a-z0-9_]+", fullmatch=True)).map(tuple),
    progress=st.booleans(),
)
def test_a_printed_config_and_a_runs_own_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, **values: Any
) -> None:
    config, folder = replace(RunConfig(), **values), tmp_path_factory.mktemp("configs")
    (folder / "all.toml").write_text(as_toml(config), "utf-8")
    assert parse(RunConfig, ["--config", str(folder / "all.toml")]) == config
    write_json(folder / "config.json", identity(config))
    again = parse(RunConfig, ["--config", str(folder / "config.json")])
    assert again.digest == config.digest
    assert parse(RunConfig, ["--debug"]) == RunConfig(), "it is the guard's"


def test_print_config_does_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(RunConfig, ["--budget", "0.25", "--print-config"])
    assert end.value.code == 0
    assert "budget = 0.25\n" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"budget": "half"}', '{"bugdet": 1}'])
def test_a_json_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        parse(RunConfig, ["--config", str(tmp_path / "config.json")])


def test_the_guard_reads_the_process_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "7"])
    assert main_guard(lambda argv: int(argv[0]))(None) == 7
