"""The whole path as a user starts it: it runs, refuses bad input, and survives kill -9."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_env import Ledger
from prune_env.experiments import evaluate, export
from prune_env.experiments.networks import dense
from prune_env.experiments.run import main
from prune_env.storage import write_json
from prune_env.tasks import digits

ROOT = Path(__file__).parents[1]
QUICK = [
    "--evaluations", "6", "--dense-epochs", "2", "--finetune-epochs", "1", "--threads", "1",
    "--reward-samples", "60", "--calibration-samples", "60", "--baselines", "uniform,random",
]  # fmt: skip


def command(runs: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "experiments.run", *QUICK, "--runs", str(runs), *more]


def run(runs: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(runs, *more), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def facts(runs: Path) -> dict[str, Any]:
    """What must not depend on interruptions: everything but times."""
    (path,) = runs.glob("*/results.json")
    results = json.loads(path.read_text())
    for row in (*results["rows"], results["dense"]):
        row.pop("latency_ms")
        row.pop("search_seconds", None)
    return {key: results[key] for key in ("rows", "dense", "groups", "config")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("runs")
    done = run(runs)
    assert done.returncode == 0, done.stderr
    return runs, done.stdout


@pytest.mark.long
def test_the_path_leads_to_a_report(finished: tuple[Path, str]) -> None:
    runs, output = finished
    (folder,) = (path for path in runs.iterdir() if path.name != "dense")
    last = json.loads(output.strip().splitlines()[-1])
    assert {"dense", "uniform", "random", "ppo", "settings"} == set(last)
    html = (folder / "report.html").read_text()
    assert "ppo" in html
    assert not re.search(r"(src|href)=.?https?:", html)  # self-contained
    assert (folder / "report.md").read_text()
    assert list((folder / "tensorboard" / "ppo").rglob("events.out.*"))
    rows = {row["name"]: row for row in facts(runs)["rows"]}
    assert [rows[name]["evaluations"] for name in ("uniform", "random")] == [1, 6]
    assert rows["ppo"]["evaluations"] == 6
    for row in rows.values():
        # From below, by less than what one more unit anywhere would cost.
        assert 0.45 < row["macs_ratio"] <= 0.5
        assert row["file_bytes"] < 0.8 * facts(runs)["dense"]["file_bytes"]
        assert row["accuracy_after"] is not None


@pytest.mark.long
def test_kill_and_resume_ends_with_the_same_result(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """Killed while it tunes, with a search behind it; searches are killed in test_kill.py."""
    process = subprocess.Popen(
        command(tmp_path, "--no-tensorboard"), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(tmp_path.glob("*/tune/random/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = run(tmp_path, "--no-tensorboard")
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path) == facts(finished[0])


@pytest.mark.long
def test_what_is_delivered_is_what_is_reported(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = (path for path in finished[0].iterdir() if path.name != "dense")
    assert evaluate.main([str(folder)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["name"]: row for row in facts(finished[0])["rows"]}
    assert set(found) == set(rows)
    for name, figures in found.items():
        assert figures["accuracy"] == figures["reported"] == rows[name]["accuracy_after"]
        assert figures["params"] == rows[name]["params"]
    assert export.main([str(folder), "--to", str(tmp_path / "pruned.pt2")]) == 0
    written = torch.export.load(tmp_path / "pruned.pt2").module()
    assert written(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("export", [], "--to is missing"),
        ("export", ["--to", "x.pt3"], ".pt3"),
        ("export", ["--to", "x.pt2", "--searcher", "unifrom"], "uniform"),
        ("evaluate", ["--searchers", "sac"], "sac"),
        ("evaluate", ["--task", "some.module:function"], "some.module"),
    ],
)
def test_bad_words_about_a_run_are_refused(
    finished: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    named: str,
) -> None:
    (folder,) = (path for path in finished[0].iterdir() if path.name != "dense")
    module = {"evaluate": evaluate, "export": export}[command]
    assert module.main([str(folder), *words]) == 2
    assert named in capsys.readouterr().err
    assert module.main([str(folder / "nothing"), *words]) == 2


WRONG: dict[str, list[tuple[str, str]]] = {
    "run": [
        ("--buget 0.5", "--budget"),
        ("--budget a", "float"),
        ("--budget 1.5", "at most 1"),
        ("--evaluations 0", "at least 1"),
        ("--config /nowhere.toml", "/nowhere.toml"),
        ("--data /nowhere/at/all", "/nowhere/at/all"),
        ("--model resnet21", "resnet20"),
        ("--searcher pop", "ppo"),
        ("--searcher json:nothing", "cannot be imported"),
        ("--baselines unifrom", "uniform"),
        ("--criterion l3", "l1"),
        ("--reward kll", "kl"),
        ("--repair least", "least_squares"),
        ("--units structred", "structred"),
        ("--units 5:4", "5:4"),
        ("--on watts", "macs"),
        ("--precision float8", "float32"),
        ("--min-sparsity 0.9 --max-sparsity 0.5", "above"),
        ("--task no.such.module:make", "no.such.module"),
        ("--task digit", "digits"),
        ("--weights /nowhere.safetensors", "/nowhere.safetensors"),
        ("--init-policy /nowhere.safetensors", "/nowhere.safetensors"),
        ("--searcher random --init-policy pyproject.toml", "no policy"),
        ("--runs /proc/nowhere", "/proc/nowhere"),
    ],
    "compare": [
        ("--searchers uniform,pop", "ppo"),
        ("--criterion l3", "l1"),
        ("--reward kll", "kl"),
        ("--repair least", "least_squares"),
        ("--units structred", "structred"),
        ("--task digit", "digits"),
        ("--budgets 0", "above 0"),
        ("--seeds 0", "at least 1"),
        ("--multiple-of two", "whole number"),
        ("--init-policy /nowhere.safetensors", "/nowhere.safetensors"),
    ],
    "pareto": [
        ("--agent random", "no policy"),
        ("--agent pop", "pop"),
        ("--searchers pop", "ppo"),
        ("--criterion l3", "l1"),
        ("--front 2", "at most 1"),
    ],
    "transfer": [
        ("", "--from"),
        ("--from digits --agent random", "no policy"),
        ("--from digits --searchers pop", "ppo"),
        ("--from digits --reward kll", "kl"),
        ("--from digits --from-options criterion=l3", "l1"),
        ("--from digit", "digits"),
        ("--from digits --to digit", "digits"),
        ("--init-policy /nowhere.safetensors", "/nowhere.safetensors"),
    ],
}
"""Command -> wrong options, and what the error must say."""
UNFIT = [("--ignore stage.7.*", "Nearest: stages."), ("--budget 0.01", "cannot be reached")]
"""Options that fit no network of the run, which is asked before it is trained."""
CASES = [
    *((name, *case) for name, cases in WRONG.items() for case in cases),
    *(pytest.param("run", *case, marks=pytest.mark.long) for case in UNFIT),
]


@pytest.mark.parametrize(("script", "options", "said"), CASES)
def test_what_is_wrong_is_one_line_before_anything_is_done(
    script: str,
    options: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was trained or measured")

    for module in (dense, digits):
        monkeypatch.setattr(module, "finetune", trained)
    monkeypatch.setattr(Ledger, "run", trained)
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    main = importlib.import_module(f"experiments.{script}").main
    assert main(["--runs", str(tmp_path / "runs"), *options.split()]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_another_config_in_the_same_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_json(folder / "config.json", {"budget": 0.3})
    before = (folder / "config.json").read_text()
    main = importlib.import_module("experiments.run").main
    assert main([*QUICK, "--runs", str(tmp_path), "--name", "mine"]) == 2
    assert "budget is 0.3 there, 0.5 now" in capsys.readouterr().err
    assert (folder / "config.json").read_text() == before


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys, prune_env.experiments.run as r\n"
        "try: r.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout


@pytest.mark.long
def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run trains nothing")

    monkeypatch.setattr(dense, "finetune", no_training)
    assert main([*QUICK, "--runs", str(tmp_path / "runs"), "--dry-run", "--budget", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "groups", "budget", "search", "tuning", "total",
    ]  # fmt: skip
    assert found["searchers"] == ["uniform", "random", "ppo"]
    assert found["evaluations"] == 1 + 6 + 6
    assert found["epochs"] == 3
    assert 0 < found["least"] < found["budget"] == 0.3
    assert found["search_seconds"] == pytest.approx(13 * found["evaluation_seconds"])
    assert found["tuning_seconds"] > 0
    assert not (tmp_path / "runs").exists()
