"""Laws of a comparison: equal evaluations, one folder per search, resumable, honest intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.search import SEARCHERS
from experiments import searching
from experiments.compare import main
from experiments.compare_config import CompareConfig
from experiments.summaries import (
    RESAMPLES,
    Summary,
    interquartile_mean,
    spread_of,
    summarise,
    summary_table,
)
from prune_env import Ledger
from prune_env.errors import ConfigError
from prune_env.mdp.task import PruningTask

EVALUATIONS = 12


def hill(ledger: Ledger, seed: int) -> None:
    """A searcher that stops after five plans, whatever it may spend."""
    generator = np.random.default_rng(seed)
    for _ in range(5):
        ledger.measure(ledger.task.decode(generator.random(ledger.task.length).tolist()))


@pytest.fixture(autouse=True)
def five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHERS, "five", f"{__name__}:hill")


def arguments(runs: Path, searchers: str = "uniform,random", seeds: int = 3) -> list[str]:
    return [
        "--task", "toy", "--budget", "0.6", "--evaluations", str(EVALUATIONS), "--runs", str(runs),
        "--searchers", searchers, "--seeds", str(seeds),
    ]  # fmt: skip


def compared(
    runs: Path, capsys: pytest.CaptureFixture[str], *more: Any, **choice: Any
) -> dict[str, Any]:
    """The comparison's JSON after a run of the command; its last line must be it."""
    assert main([*arguments(runs, **choice), *more]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    (folder,) = runs.glob("compare-*")
    content: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    assert last["searchers"] == content["searchers"]
    assert last["settings"]["evaluations"] == EVALUATIONS
    return content


def test_every_search_is_charged_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = compared(tmp_path, capsys, searchers="uniform,five,random")
    spent = {s["searcher"]: (s["seeds"], s["evaluations"]) for s in content["searchers"]}
    assert spent == {"uniform": (1, 1), "five": (3, 5), "random": (3, EVALUATIONS)}
    for run in content["runs"]:
        assert len(run["rewards"]) == run["evaluations"]
        assert run["reward"] == max(run["rewards"])
        assert run["macs_ratio"] <= 0.6
    (folder,) = tmp_path.glob("compare-*")
    assert len(list(folder.glob("random-s*/journal.jsonl"))) == 3
    for name in ("compare.html", "compare.md"):
        assert "random" in (folder / name).read_text()


def test_seeds_differ_and_runs_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = compared(tmp_path / "one", capsys)["runs"]
    two = compared(tmp_path / "two", capsys)["runs"]
    assert [run["rewards"] for run in one] == [run["rewards"] for run in two]
    assert len({tuple(run["rewards"]) for run in one if run["searcher"] == "random"}) == 3


def test_finished_searches_are_kept_and_killed_ones_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed in the middle of the second seed: no plan is measured a second time."""
    before = compared(tmp_path, capsys)
    (folder,) = tmp_path.glob("compare-*")
    killed = folder / "random-s1"
    (killed / "figures.json").unlink()
    (killed / "search.json").unlink()
    lines = (killed / "journal.jsonl").read_text().splitlines(keepends=True)
    (killed / "journal.jsonl").write_text("".join(lines[:7]) + lines[7][:5])
    counted: list[tuple[int, ...]] = []
    outcome = PruningTask.outcome

    def count(task: PruningTask, kept: Any, rival: Any = None) -> Any:
        counted.append(tuple(kept))
        return outcome(task, kept, rival)

    monkeypatch.setattr(PruningTask, "outcome", count)
    after = compared(tmp_path, capsys)
    assert len(counted) == EVALUATIONS - 7
    assert [r["rewards"] for r in after["runs"]] == [r["rewards"] for r in before["runs"]]
    counted.clear()
    compared(tmp_path, capsys)
    assert not counted


def test_more_seeds_add_to_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = compared(tmp_path, capsys, seeds=2)["runs"]
    more = compared(tmp_path, capsys, searchers="uniform,random,five", seeds=3)["runs"]
    assert few == [r for r in more if r["searcher"] != "five" and r["seed"] < 2]
    assert len(more) == 7


@pytest.mark.long
def test_several_processes_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = compared(tmp_path / "one", capsys)["runs"]
    together = compared(tmp_path / "two", capsys, "--processes", "2")["runs"]
    for run in (*alone, *together):
        run.pop("seconds")
    assert alone == together


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--searchers", "unifrom"], "uniform"),
        (["--searchers", ""], "searchers"),
        (["--seeds", "0"], "at least 1"),
        (["--task", "tyo"], "toy"),
        (["--budget", "0.0001"], "cannot be reached"),
        (["--evaluation", "3"], "--evaluations"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path), *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_the_folder_depends_on_what_decides_a_search() -> None:
    base = CompareConfig()
    assert base.folder == CompareConfig(seeds=9, searchers=("random",), processes=2).folder
    others = [CompareConfig(budget=0.4), CompareConfig(reward="amc"), CompareConfig(evaluations=1)]
    assert len({base.folder, *(other.folder for other in others)}) == 4
    with pytest.raises(ConfigError):
        CompareConfig(processes=0)


def test_with_one_evaluation_luck_needs_all_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CompareConfig(
        task="toy", budget=0.6, evaluations=1, searchers=("random",), seeds=3, runs=tmp_path
    )
    runs = searching.compare(config, "")["runs"]
    assert len({tuple(run["kept"]) for run in runs}) == 3


samples = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(samples)
def test_spreads_lie_inside_their_values(values: list[float]) -> None:
    spread = spread_of(values)
    low, high = min(values) - 1e-9, max(values) + 1e-9
    assert low <= spread.low <= spread.high <= high
    assert low <= spread.iqm <= high
    assert spread.mean == pytest.approx(math.fsum(values) / len(values), abs=1e-9)
    assert spread.std >= 0
    assert spread == spread_of(values)


def test_the_interquartile_mean_ignores_the_extremes() -> None:
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 1000.0])) == 2.5
    assert interquartile_mean(np.array([5.0, 1.0])) == 3.0


def test_the_interval_is_that_of_the_mean_for_few_seeds() -> None:
    """Two seeds: half of the resamples hold both, a quarter each only one of them."""
    spread = spread_of([0.0, 1.0])
    assert (spread.low, spread.high, spread.mean) == (0.0, 1.0, 0.5)
    assert RESAMPLES >= 1000


def run_of(searcher: str, seed: int, reward: float) -> dict[str, Any]:
    return {
        "searcher": searcher, "seed": seed, "evaluations": 9, "seconds": 1.0, "reward": reward,
        "kl": -reward, "accuracy": 0.5,
    }  # fmt: skip


def test_only_separate_intervals_are_marked() -> None:
    overlapping = [run_of(n, s, s + d) for n, d in (("a", 0.0), ("b", 0.5)) for s in range(4)]
    apart = [run_of(n, s, s + d) for n, d in (("a", 0.0), ("b", 9.0)) for s in range(4)]
    assert "*" not in summary_table(summarise(overlapping)).plain()
    best = [line for line in summary_table(summarise(apart)).plain().splitlines() if "*" in line]
    assert len(best) == 1
    assert best[0].startswith("b")
    assert best[0].count("*") == 2  # reward and KL; the accuracies are equal


def test_summaries_survive_json() -> None:
    (summary,) = summarise([run_of("a", seed, seed / 7) for seed in range(5)])
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
