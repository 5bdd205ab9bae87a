"""Laws of a comparison: equal evaluations, one folder per search, resumable, honest intervals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prune_env import Ledger
from prune_env.errors import ConfigError
from prune_env.experiments import tabulate
from prune_env.experiments.compare import main
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.report.aggregates import (
    RESAMPLES,
    chance_below,
    improvement,
    interquartile_mean,
    iqm_over,
)
from prune_env.experiments.report.comparison import _ranking
from prune_env.experiments.report.curves import common_time, compared, curve_of
from prune_env.experiments.report.overall import Overall, closeness, overall, overall_table
from prune_env.experiments.report.summaries import (
    Summary,
    nats,
    spread_of,
    summarise,
    summary_table,
)
from prune_env.experiments.sweeps import compare_task, searching
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.rewards import Outcome, improved
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Metrics
from prune_env.search.searchers import SEARCHERS
from prune_env.testing import toy_task

EVALUATIONS = 12


def hill(ledger: Ledger, seed: int) -> None:
    """A searcher that stops after five plans, whatever it may spend."""
    generator = np.random.default_rng(seed)
    for _ in range(5):
        ledger.measure([ledger.task.decode(generator.random(ledger.task.length).tolist())])


def fixed(ledger: Ledger, seed: int) -> None:
    """Three plans that no seed changes, after a look beyond the budget."""
    task = ledger.task
    ledger.probe([[group.levels[-1] for group in task.groups]])
    for shift in (0.0, 0.1, 0.2):
        ledger.measure([task.decode(np.linspace(0, shift, task.length).tolist())])


def picky(ledger: Ledger, seed: int) -> None:
    """A searcher that is not for this task."""
    raise ConfigError("this task has no blocks.")


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"five": "hill", "fixed": "fixed", "picky": "picky"}
    for name, function in functions.items():
        monkeypatch.setitem(SEARCHERS, name, f"{__name__}:{function}")
    monkeypatch.setitem(SEARCHERS, "absent", "agents.not_there:search")


def arguments(
    runs: Path, searchers: str = "uniform,random", seeds: int = 3, budgets: str = "0.6"
) -> list[str]:
    return [
        "--task", "toy", "--budgets", budgets, "--evaluations", str(EVALUATIONS),
        "--runs", str(runs), "--searchers", searchers, "--seeds", str(seeds),
    ]  # fmt: skip


def compared_by(
    runs: Path, capsys: pytest.CaptureFixture[str], *more: Any, **choice: Any
) -> dict[str, Any]:
    """The comparison's JSON after a run of the command; its last line must be it."""
    assert main([*arguments(runs, **choice), *more]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    (folder,) = runs.glob("compare-*")
    content: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    for said, kept in zip(last["cells"], content["cells"], strict=True):
        assert said["searchers"] == kept["searchers"]
    assert last["settings"]["evaluations"] == EVALUATIONS
    return content


def all_runs(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for cell in content["cells"] for run in cell["runs"]]


def timeless(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs without what another time of day changes."""
    clocks = ("seconds", "times", "kl_at_time")
    return [{k: v for k, v in run.items() if k not in clocks} for run in runs]


def test_every_search_is_charged_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = compared_by(tmp_path, capsys, searchers="uniform,five,random")
    (cell,) = content["cells"]
    spent = {s["searcher"]: (s["seeds"], s["evaluations"]) for s in cell["searchers"]}
    assert spent == {"uniform": (1, 1), "five": (3, 5), "random": (3, EVALUATIONS)}
    for run in cell["runs"]:
        assert len(run["rewards"]) == run["plans"] == run["evaluations"]
        assert run["reward"] == max(run["rewards"])
        assert run["charged"] == list(range(1, run["plans"] + 1))
        assert run["times"] == sorted(run["times"])
        assert run["seconds"] == run["times"][-1] > 0
        assert run["macs_ratio"] <= 0.6
    (folder,) = tmp_path.glob("compare-*")
    assert len(list(folder.glob("b0.6/random-s*/journal.jsonl"))) == 3
    for name in ("compare.html", "compare.md"):
        assert "random" in (folder / name).read_text()


def test_only_eligible_plans_are_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dense plan is closest to a target of nothing, and beyond the budget."""
    assert main([*arguments(tmp_path, "fixed"), "--task", f"{__name__}:untouched"]) == 0
    capsys.readouterr()
    (path,) = tmp_path.glob("compare-*/compare.json")
    (run,) = all_runs(json.loads(path.read_text()))
    assert run["improved"] == [False, True, *run["improved"][2:]]
    assert run["kls"][0] == 0 < run["kl"] == min(run["kls"][1:])
    assert run["macs_ratio"] <= 0.6


def untouched(**options: Any) -> PruningTask:
    return toy_task(target=0.0, **options)


def test_a_searcher_that_no_seed_changes_appears_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = all_runs(compared_by(tmp_path, capsys, searchers="fixed,random"))
    assert [run["seed"] for run in runs if run["searcher"] == "fixed"] == [0]
    assert len(runs) == 4


@pytest.mark.long
def test_seeds_differ_and_runs_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = all_runs(compared_by(tmp_path / "one", capsys))
    two = all_runs(compared_by(tmp_path / "two", capsys))
    assert timeless(one) == timeless(two)
    assert len({tuple(run["rewards"]) for run in one if run["searcher"] == "random"}) == 3


@pytest.mark.long
def test_finished_searches_are_kept_and_killed_ones_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed in the middle of the second seed: no plan is measured a second time."""
    before = all_runs(compared_by(tmp_path, capsys))
    (folder,) = tmp_path.glob("compare-*")
    killed = folder / "b0.6" / "random-s1"
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
    after = all_runs(compared_by(tmp_path, capsys))
    assert len(counted) == EVALUATIONS - 6
    assert timeless(before) == timeless(after)
    (old, new) = (next(r for r in runs if r["seed"] == 1)["times"] for runs in (before, after))
    assert old[:6] == new[:6]


TARGETS = {"now": 0.35}


def changing(**options: Any) -> PruningTask:
    return toy_task(target=TARGETS["now"], **options)


@pytest.mark.long
def test_a_finished_comparison_measures_nothing_and_refuses_another_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {"searchers": "uniform,random,picky", "budgets": "0.6,0.5"}
    task = ["--task", f"{__name__}:changing"]
    before = compared_by(tmp_path, capsys, *task, **choice)

    def measured(*args: Any) -> Any:
        raise AssertionError("a plan was measured")

    monkeypatch.setattr(PruningTask, "outcome", measured)
    assert compared_by(tmp_path, capsys, *task, **choice) == before
    monkeypatch.setitem(TARGETS, "now", 0.6)
    compare_task._opened.cache_clear()  # as in another process
    assert main([*arguments(tmp_path, **choice), *task]) == 2
    assert "was made of other things: evaluate" in capsys.readouterr().err


@pytest.mark.long
def test_more_budgets_seeds_and_searchers_add_to_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = compared_by(tmp_path, capsys, seeds=2)["cells"][0]["runs"]
    content = compared_by(
        tmp_path, capsys, searchers="uniform,random,five", seeds=3, budgets="0.8,0.6"
    )
    assert [cell["budget"] for cell in content["cells"]] == [0.8, 0.6]
    for cell in content["cells"]:
        assert len(cell["runs"]) == 7
        assert all(run["macs_ratio"] <= cell["budget"] for run in cell["runs"])
    more = content["cells"][1]["runs"]
    kept = [r for r in more if r["searcher"] != "five" and r["seed"] < 2]
    assert [r["times"] for r in kept] == [r["times"] for r in few]
    assert [r["kept"] for r in kept] == [r["kept"] for r in few]


@pytest.mark.long
def test_several_processes_give_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = compared_by(tmp_path / "one", capsys, budgets="0.6,0.4")
    together = compared_by(tmp_path / "two", capsys, "--processes", "2", budgets="0.6,0.4")
    assert timeless(all_runs(alone)) == timeless(all_runs(together))


def test_what_cannot_be_run_is_listed_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        content = compared_by(tmp_path, capsys, searchers="picky,uniform,absent")
        (cell,) = content["cells"]
        assert [run["searcher"] for run in cell["runs"]] == ["uniform"]
        assert cell["refused"]["picky"] == "this task has no blocks."
        assert "cannot be imported" in cell["refused"]["absent"]
    (page,) = tmp_path.glob("compare-*/compare.md")
    assert "Not run: picky (this task has no blocks.)" in page.read_text()
    assert list(tmp_path.rglob("picky-s0/figures.json"))
    assert not list(tmp_path.rglob("absent-s0/figures.json"))


def test_a_comparison_of_nothing_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "picky")) == 2
    assert "this task has no blocks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--searchers", "unifrom"], "uniform"),
        (["--searchers", ""], "searchers"),
        (["--seeds", "0"], "at least 1"),
        (["--task", "tyo"], "toy"),
        (["--budgets", "1.2"], "at most 1"),
        (["--budgets", ""], "--budgets is empty"),
        (["--budgets", "half"], "--budgets"),
        (["--evaluation", "3"], "--evaluations"),
        (["--multiple-of", "layer1=2,4"], "--multiple-of"),
        (["--multiple-of", "0"], "--multiple-of"),
        (["--max-sparsity", "1.5"], "--max-sparsity"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path), *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_an_unreachable_budget_is_refused_before_any_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, budgets="0.6,0.0001")) == 2
    assert "of the dense macs cannot be reached" in capsys.readouterr().err
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_the_folder_depends_on_what_decides_a_search() -> None:
    base = CompareConfig()
    same = CompareConfig(seeds=9, searchers=("random",), processes=2, budgets=(0.4,), out="x")
    assert base.folder == same.folder
    others = [
        CompareConfig(reward="amc"), CompareConfig(evaluations=1), CompareConfig(multiple_of="8"),
        CompareConfig(reward_samples=500), CompareConfig(seed=1),
    ]  # fmt: skip
    assert len({base.folder, *(other.folder for other in others)}) == 6
    with pytest.raises(ConfigError):
        CompareConfig(processes=0)


def test_budget_is_an_old_name_of_budgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for old in (["--budget", "0.7"], ["--budget=0.7"]):
        content = compared_by(tmp_path, capsys, *old)
        assert content["settings"]["budgets"] == [0.7]
        assert old[0] in content["command"]


OPENED: list[dict[str, Any]] = []


def remembered(**options: Any) -> PruningTask:
    OPENED.append(options)
    return toy_task(**options)


@pytest.mark.long
def test_options_reach_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OPENED.clear()
    asked = ["--reward-samples", "77", "--calibration-samples", "55", "--stages", "8,16"]
    asked += ["--multiple-of", "layer1*=2, layer2=4", "--ignore", "a,b", "--seed", "5"]
    compared_by(tmp_path, capsys, "--task", f"{__name__}:remembered", *asked, budgets="0.7,0.6")
    (options,) = OPENED
    expected = {
        "reward_samples": 77, "calibration_samples": 55, "stages": (8, 16), "ignore": ("a", "b"),
        "multiple_of": {"layer1*": 2, "layer2": 4}, "seed": 5, "repair_samples": 128,
        "min_sparsity": 0.0, "max_sparsity": 0.9, "precision": "auto",
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    assert CompareConfig(multiple_of="8").multiples == 8


FORGOTTEN: list[OfFunction] = []


class Forgetful(OfFunction):
    """The toy's evaluation with a cache that can be cleared."""

    def forget(self) -> None:
        FORGOTTEN.append(self)


def forgetful(**options: Any) -> PruningTask:
    task = toy_task(**options)
    return replace(task, evaluator=Forgetful(task.evaluator.measure))


def test_every_search_begins_with_nothing_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FORGOTTEN.clear()
    content = compared_by(tmp_path, capsys, "--task", f"{__name__}:forgetful", budgets="0.7,0.6")
    assert len({id(each) for each in FORGOTTEN}) == 1
    assert len(FORGOTTEN) == len(all_runs(content)) == 8


def test_with_one_evaluation_luck_needs_all_seeds(tmp_path: Path) -> None:
    config = CompareConfig(
        task="toy", budgets=(0.6,), evaluations=1, searchers=("random",), seeds=3, runs=tmp_path
    )
    runs = searching.compare(config, "")["cells"][0]["runs"]
    assert len({tuple(run["kept"]) for run in runs}) == 3


@pytest.mark.long
def test_what_is_kept_is_small_and_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kept" / "toy"
    content = compared_by(tmp_path / "runs", capsys, "--out", str(out), budgets="0.7,0.6")
    kept = json.loads(out.with_suffix(".json").read_text())
    assert kept["command"] == content["command"]
    for cell, whole in zip(kept["cells"], content["cells"], strict=True):
        assert "runs" not in cell
        best = cell["best_so_far"]
        assert best["evaluations"][0] == 1
        assert best["evaluations"][-1] == EVALUATIONS
        finals = [run["kl"] for run in whole["runs"] if run["searcher"] == "random"]
        assert cell["seeds"]["random"]["kl"] == pytest.approx(finals, rel=1e-5)
        assert best["kl"]["random"][-1] == pytest.approx(np.median(finals), rel=1e-5)
    page = out.with_suffix(".md").read_text()
    assert "70 % of the MACs" in page
    assert "figures/" not in page
    assert content["command"] in page


@pytest.mark.long
def test_tensorboard_shows_curves_and_fronts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second call replaces the files of the first
        content = compared_by(tmp_path, capsys, searchers="uniform,random,fixed", budgets="0.7,0.6")
    (root,) = tmp_path.glob("compare-*/tensorboard")

    def scalars(folder: str, tag: str) -> dict[int, float]:
        events = EventAccumulator(str(root / folder), {"scalars": 0, "tensors": 0}).Reload()
        return {event.step: event.value for event in events.Scalars(tag)}

    final = {
        round(1000 * cell["budget"]): np.median(
            [run["kl"] for run in cell["runs"] if run["searcher"] == "random"]
        )
        for cell in content["cells"]
    }
    assert scalars("random", "front/kl") == pytest.approx(final)
    curve = scalars("random/b0.6", "best/kl")
    assert list(curve) == list(range(1, EVALUATIONS + 1))
    assert curve[EVALUATIONS] == pytest.approx(final[600])
    rewards = list(scalars("random/b0.6", "best/reward").values())
    assert rewards == sorted(rewards)
    assert list(scalars("fixed/b0.6", "best/kl")) == list(range(2, EVALUATIONS + 1))
    assert len(list(root.rglob("events.*"))) == 1 + 3 * 3
    layouts = EventAccumulator(str(root), {"tensors": 0}).Reload().Tags()["tensors"]
    assert layouts == ["custom_scalars__config__"]


@pytest.mark.long
def test_comparisons_merge_into_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCHERS, "sensitivity", f"{__name__}:fixed")
    monkeypatch.setitem(SEARCHERS, "evolution", f"{__name__}:hill")
    names = "uniform,sensitivity,evolution,random"
    compared_by(tmp_path / "a", capsys, searchers=names, budgets="0.7,0.6")
    compared_by(tmp_path / "b", capsys, "--on", "params", searchers="random,sensitivity")
    folders = [str(next((tmp_path / name).glob("compare-*"))) for name in "ab"]
    out = tmp_path / "agents"
    assert tabulate.main(["--out", str(out), *folders]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.with_suffix(".json").read_text()) == last
    cells = {line["searcher"]: line["cells"] for line in last["overall"]}
    assert cells == {"uniform": 2, "sensitivity": 3, "evolution": 2, "random": 3}
    page = out.with_suffix(".md").read_text()
    for said in (
        "## toy, 70 % of the MACs, 12 evaluations", "## toy, 60 % of the parameters",
        "## All together", "P(below sensitivity)", "P(below evolution)", "--on params",
    ):  # fmt: skip
        assert said in page
    assert "(figures/agents.svg)" in page
    assert "<svg" in (tmp_path / "figures" / "agents.svg").read_text()
    (row,) = [r for r in last["overall"] if r["searcher"] == "sensitivity"]
    assert row["ratio"]["value"] == 1
    assert row["over_sensitivity"] is None


def test_only_comparisons_can_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tabulate.main([str(tmp_path)]) == 2
    assert "compare.json" in capsys.readouterr().err


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


@given(samples, samples)
def test_one_of_two_is_better_or_both_are_equal(one: list[float], other: list[float]) -> None:
    left, right = np.array(one), np.array(other)
    forth = float(chance_below(left, right))
    assert forth + float(chance_below(right, left)) == pytest.approx(1)
    assert 0 <= forth <= 1
    counted = sum((a < b) + 0.5 * (a == b) for a in one for b in other)
    assert forth == pytest.approx(counted / (len(one) * len(other)))


def test_improvement_by_hand() -> None:
    """[1, 2] below [2, 3]: three pairs of four, and one equal: 0.875."""
    assert improvement([([1, 2], [2, 3])]).value == 0.875
    both = improvement([([1, 2], [2, 3]), ([5], [4])])
    assert both.value == pytest.approx((0.875 + 0) / 2)
    assert 0 <= both.low <= both.value <= both.high <= 0.5  # the second cell knows no luck
    sure = improvement([([1, 2], [3, 4])])
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)


def test_intervals_draw_seeds_inside_their_cells() -> None:
    """Cells far apart: drawn across them, the mean of both could be that of one alone."""
    found = iqm_over([[0.0, 1.0], [100.0, 101.0]])
    assert found.value == pytest.approx(50.5)  # the lowest and the highest are left out
    assert 50 <= found.low <= found.high <= 51
    alone = iqm_over([[3.0], [5.0]])
    assert (alone.value, alone.low, alone.high) == (4, 4, 4)


def outcomes(kls: list[float], *, times: list[float] | None = None, **more: Any) -> dict[str, Any]:
    """A run whose reward is -KL."""
    count = len(kls)
    run = {
        "searcher": "a", "seed": 0, "plans": count, "rewards": [-kl for kl in kls], "kls": kls,
        "eligible": [True] * count, "charged": list(range(1, count + 1)),
        "times": times or [float(n) for n in range(1, count + 1)], "accuracy": 0.5, **more,
    }  # fmt: skip
    best = min(kl for kl, ok in zip(kls, run["eligible"], strict=True) if ok)
    measured = [
        Outcome((1,), Metrics(0.5, kl, kl, 1), 1.0, 0.5, 0.5, {"paid": reward}, ok)
        for kl, reward, ok in zip(kls, run["rewards"], run["eligible"], strict=True)
    ]
    run["improved"] = improved(measured)
    return {
        "evaluations": run["charged"][-1], "seconds": run["times"][-1], "kl": best, "reward": -best,
        **run,
    }  # fmt: skip


def test_a_curve_by_hand() -> None:
    """The first is beyond the budget, the third a glimpse at a tenth of the samples."""
    run = outcomes(
        [0.1, 5.0, 0.2, 4.0, 1.0],
        eligible=[False, True, False, True, True],
        charged=[1, 2, 2.1, 3.1, 4.1],
        times=[10.0, 20.0, 21.0, 31.0, 41.0],
    )
    curve = curve_of(run, before=7.0)
    assert curve.at([1, 2, 3, 4, 5, 99]).tolist() == [7, 5, 5, 4, 1, 1]
    assert curve.at_seconds([0, 20, 40.9, 41]).tolist() == [7, 5, 4, 1]
    assert curve.until(4.5) == 3.1
    assert curve.until(0.5) is None
    assert curve.area(5) == pytest.approx((7 + 5 + 5 + 4 + 1) / 5)
    assert curve_of(run).at(1) == 5
    assert np.isnan(curve.reward_at(1))


def test_the_best_is_by_reward_and_shown_by_kl() -> None:
    run = outcomes([1.0, 2.0, 0.5], rewards=[0.0, 1.0, 0.5])
    assert curve_of(run).at([1, 2, 3]).tolist() == [1, 2, 2]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_curves_never_rise_and_end_at_the_best(kls: list[float]) -> None:
    curve = curve_of(outcomes(kls))
    values = curve.at(np.arange(1, len(kls) + 1))
    assert (np.diff(values) <= 0).all()
    assert values[-1] == min(kls)
    assert min(kls) <= curve.area(len(kls)) + 1e-9 <= max(kls) + 2e-9
    assert curve.until(min(kls)) == 1 + kls.index(min(kls))


def test_equal_time_is_that_of_the_quickest_full_search() -> None:
    """Of "slow" and "quick" with medians of 40 and 9 s; "early" stopped before all was spent."""
    slow = [outcomes([4, 3, 2, 1], times=[10, 20, 30, 40.0], searcher="slow")]
    quick = [
        outcomes([8, 7, 6, 5], times=[1, 2, 3, t], searcher="quick", seed=s)
        for s, t in enumerate((8.0, 9.0, 99.0))
    ]
    early = [outcomes([9, 9], times=[0.1, 0.2], searcher="early")]
    single = [outcomes([6.5], times=[50.0], searcher="uniform")]
    runs = [*slow, *quick, *early, *single]
    assert common_time(runs, 4) == 9
    at_time = {(r["searcher"], r["seed"]): r["kl_at_time"] for r in compared(runs, 4)}
    assert at_time == {
        ("slow", 0): 6.5,  # the uniform plan stands for what it has not got yet
        ("quick", 0): 5, ("quick", 1): 5, ("quick", 2): 6, ("early", 0): 9, ("uniform", 0): 6.5,
    }  # fmt: skip
    until = {r["searcher"]: r["until"] for r in compared(runs, 4)}
    assert until == {"slow": 4, "quick": None, "early": None, "uniform": None}
    assert common_time([*early, *single], 4) is None
    assert compared([*early, *single], 4)[0]["kl_at_time"] is None


def cell(**kls: list[float]) -> dict[str, Any]:
    runs = [
        {"searcher": name, "kl": kl, "held_out": 1 - kl}
        for name, each in kls.items()
        for kl in each
    ]
    return {"runs": runs, "quality": "accuracy"}


def test_all_cells_together_by_hand() -> None:
    cells = [
        cell(sensitivity=[0.2], evolution=[0.1, 0.2], ppo=[0.1, 0.4]),
        cell(sensitivity=[0.4], evolution=[0.3, 0.3], ppo=[0.1, 0.2]),
    ]
    lines = {line.searcher: line for line in overall(cells)}
    ppo = lines["ppo"]
    assert ppo.cells == 2
    assert ppo.over_sensitivity
    assert ppo.over_sensitivity.value == pytest.approx((0.5 + 1) / 2)
    assert ppo.over_evolution
    assert ppo.over_evolution.value == pytest.approx((0.375 + 1) / 2)
    assert ppo.held_out == ppo.over_sensitivity  # the same order on test
    # 0.5, 2, 0.25, 0.5 without the lowest and the highest
    assert ppo.ratio
    assert ppo.ratio.value == pytest.approx(0.5)
    assert lines["sensitivity"].over_sensitivity is None
    table = overall_table(overall(cells))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["sensitivity", "evolution", "ppo"]


def test_without_the_searchers_to_beat_nothing_is_said_together() -> None:
    assert overall_table(overall([cell(uniform=[0.1], ppo=[0.2, 0.3])])) is None
    (line,) = overall([cell(sensitivity=[0.0])])
    assert line == Overall("sensitivity", 1, None, None, None, None)  # nothing can be divided by 0


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
    assert best[0].count("*") == 1  # KL; the accuracies are equal


def test_summaries_survive_json() -> None:
    (summary,) = summarise([{**run_of("a", s, s / 7), "area": 1.0, "until": s} for s in range(5)])
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    assert (summary.until, summary.kl_at_time) == (2, None)


def test_never_is_a_dash() -> None:
    reached = [{**run_of("a", s, 1.0), "until": u} for s, u in enumerate((3, None, None))]
    (summary,) = summarise(reached)
    assert summary.until is None
    assert "–" in summary_table([summary]).plain()


def test_small_kls_keep_four_digits() -> None:
    assert [nats(v) for v in (0.0053124, 0.51637, 7.1, 0.0, None)] == [
        "0.005312", "0.5164", "7.100", "0.000", "–",
    ]  # fmt: skip


def held_out_cell(**pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """A cell of runs with a KL of the reward and one of test."""
    runs = [
        {"searcher": name, "seed": seed, "kl": paid, "kl_held_out": true, "accuracy": 1 - paid,
         "held_out": 1 - true, "kept": [len(name), seed], "reward": -paid, "evaluations": 4.0,
         "seconds": 1.0}
        for name, each in pairs.items() for seed, (paid, true) in enumerate(each)
    ]  # fmt: skip
    return {"runs": runs, "quality": "accuracy"}


def test_what_searchers_are_compared_by_is_measured_where_nothing_was_chosen() -> None:
    """One that fools itself leads on the reward samples and falls behind on test."""
    cell = held_out_cell(
        sensitivity=[(0.3, 0.3)], evolution=[(0.1, 0.5), (0.1, 0.6)], ppo=[(0.2, 0.2), (0.2, 0.25)]
    )
    assert closeness([cell]) == "kl_held_out"
    lines = {line.searcher: line for line in overall([cell])}
    assert lines["ppo"].over_evolution
    assert lines["ppo"].over_evolution.value == 1
    assert lines["ppo"].ratio
    assert lines["ppo"].ratio.value == pytest.approx(0.225 / 0.3)
    table = overall_table(list(lines.values()), closeness([cell]))
    assert table is not None
    assert "P(below evolution), test" in table.columns
    for run in cell["runs"]:
        del run["kl_held_out"]
    assert closeness([cell]) == "kl"


def test_reported_minus_held_out_is_in_the_table() -> None:
    cell = held_out_cell(evolution=[(0.1, 0.5), (0.2, 0.5)], ppo=[(0.2, 0.2), (0.2, 0.2)])
    found = summarise(cell["runs"])
    assert [each.flattery and each.flattery.mean for each in found] == pytest.approx([-0.35, 0.0])
    table = summary_table(found)
    assert table.columns[3:6] == ("KL, nats, test", "reported minus that", "KL, nats")
    assert table.rows[0][4].text == "-0.3500"
    assert not table.rows[0][4].best
    assert table.rows[1][3].best
    assert _ranking(cell["runs"]) == [], "four plans are too few"
    more = held_out_cell(ppo=[(0.1 * k, 0.2 * k) for k in range(1, 7)])
    assert _ranking(more["runs"]) == ["Rank correlation of both KLs over the 6 best plans: 1.00."]
