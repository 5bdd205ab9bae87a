"""The whole path as a user starts it: it runs, refuses bad input, and survives kill -9."""

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

ROOT = Path(__file__).parents[1]
QUICK = [
    "--evaluations", "12", "--dense-epochs", "2", "--finetune-epochs", "2", "--threads", "1",
    "--reward-samples", "200", "--calibration-samples", "100",
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
    (folder,) = runs.iterdir()
    last = json.loads(output.strip().splitlines()[-1])
    assert {"dense", "uniform", "global", "random", "ppo", "settings"} == set(last)
    html = (folder / "report.html").read_text()
    assert "ppo" in html
    assert not re.search(r"(src|href)=.?https?:", html)  # self-contained
    assert (folder / "report.md").read_text()
    assert list((folder / "tensorboard" / "ppo").rglob("events.out.*"))
    rows = {row["name"]: row for row in facts(runs)["rows"]}
    assert [rows[name]["evaluations"] for name in ("uniform", "global", "random")] == [1, 1, 12]
    assert rows["ppo"]["evaluations"] == 12
    for row in rows.values():
        # From below, by less than what one more unit anywhere would cost.
        assert 0.45 < row["macs_ratio"] <= 0.5
        assert row["file_bytes"] < 0.8 * facts(runs)["dense"]["file_bytes"]
        assert row["accuracy_after"] is not None


@pytest.mark.long
def test_kill_and_resume_ends_with_the_same_result(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    for seconds in (3.5, 5.5, 7.5):
        process = subprocess.Popen(
            command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path) == facts(finished[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--buget", "0.5"], ["--budget"]),
        (["--budget", "0.01"], ["0.01", "remain"]),
        (["--ignore", "stage.7.*"], ["stage.7.*", "stages."]),
        (["--data", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--model", "resnet21"], ["resnet20"]),
        (["--searcher", "pop"], ["ppo"]),
        (["--criterion", "l3"], ["l1"]),
        (["--task", "no.such.module:make"], ["no.such.module"]),
        (["--weights", "/nowhere.safetensors"], ["/nowhere.safetensors"]),
        (["--runs", "/proc/nowhere"], ["/proc/nowhere"]),
    ],
)
@pytest.mark.long
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, "--dense-epochs", "0", *arguments)
    assert done.returncode == 2, done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "Traceback" not in done.stderr
    assert all(word in error[0] for word in words), error[0]


@pytest.mark.long
def test_another_config_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"budget": 0.3}')
    done = run(tmp_path, "--name", "mine")
    assert done.returncode == 2
    assert "budget is 0.3 there, 0.5 now" in done.stderr
    assert (folder / "config.json").read_text() == '{"budget": 0.3}'


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys, experiments.run as r\n"
        "try: r.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout
