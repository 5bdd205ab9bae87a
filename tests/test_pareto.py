"""Laws of a front: one search of many budgets, charged like several, resumable, honest."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env import Ledger
from prune_env.agents.sb3 import learn
from prune_env.errors import ConfigError
from prune_env.experiments import compare
from prune_env.experiments.config.pareto import ParetoConfig
from prune_env.experiments.pareto import main
from prune_env.experiments.sweeps.front import MANY, POLICY, SINGLE, ratios, verdict
from prune_env.experiments.sweeps.many import best_within, course_of, drawn, front_prior
from prune_env.mdp.rules import SLACK
from prune_env.mdp.task import PruningTask
from prune_env.search.acquisition import Acquisition, Choice
from prune_env.search.allocators import PATHS, plan_of
from prune_env.search.seen import Seen
from prune_env.storage import read_json
from prune_env.testing import toy_task

EVALUATIONS, BUDGETS, FRONT = 15, (0.6, 0.4), (0.4, 0.5, 0.7)
ASKED = (0.4, 0.5, 0.6, 0.7)
TARGETS = [0.6, 0.2, 0.5, 0.1]


def uneven(**options: Any) -> PruningTask:
    return toy_task(target=TARGETS, **options)


def written(numbers: tuple[float, ...]) -> str:
    return ",".join(map(str, numbers))


def arguments(runs: Path, *more: str) -> list[str]:
    return [
        "--task", f"{__name__}:uneven", "--evaluations", str(EVALUATIONS), "--runs", str(runs),
        "--budgets", written(BUDGETS), "--front", written(FRONT), *more,
    ]  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], argv: list[str]) -> dict[str, Any]:
    """What the last line says."""
    assert main(argv) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(arguments(runs, "--out", str(runs / "out" / "toy"))) == 0
    return runs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The plans that are measured from now on."""
    plans: list[tuple[int, ...]] = []
    outcome = PruningTask.outcome

    def count(task: PruningTask, kept: Any, rival: Any = None) -> Any:
        plans.append(tuple(kept))
        return outcome(task, kept, rival)

    monkeypatch.setattr(PruningTask, "outcome", count)
    return plans


def many_folder(runs: Path) -> Path:
    (folder,) = runs.glob("compare-*/many/ppo-*")
    return folder


@pytest.mark.long
def test_a_front_has_every_series_at_every_budget(finished: Path) -> None:
    results = json.loads((finished / "out" / "toy.json").read_text())
    assert [row["budget"] for row in results["rows"]] == list(ASKED)
    for row in results["rows"]:
        names = {"uniform", "sensitivity", MANY, POLICY}
        assert set(row["series"]) == names | ({SINGLE} if row["budget"] in BUDGETS else set())
        assert row["series"][MANY]["kl"][0] <= row["series"][POLICY]["kl"][0]
    assert set(results["ratios"]) == {"0.4", "0.6"}
    assert "geometric mean" in results["verdict"]
    with (finished / "out" / "toy.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    for row in results["rows"]:
        for name, figures in row["series"].items():
            said = [line for line in flat if line["series"] == name]
            said = [line for line in said if float(line["budget"]) == row["budget"]]
            assert [float(line["kl"]) for line in said] == figures["kl"]
    assert results["settings"]["front"] == list(FRONT)


@pytest.mark.long
def test_the_search_of_many_budgets_is_charged_like_the_single_ones(finished: Path) -> None:
    figures = read_json(many_folder(finished) / "figures.json", "figures")["content"]
    charge = len(BUDGETS) * EVALUATIONS
    assert figures["evaluations"] == len(figures["kl"]) == charge
    assert len((many_folder(finished) / "journal.jsonl").read_text().splitlines()) == 1 + charge
    for row in (*figures["front"], *figures["policy"]):
        assert row["cost"] <= row["budget"] + SLACK
    assert (many_folder(finished) / "policy.safetensors").exists()


def test_the_picture_is_on_every_page(finished: Path) -> None:
    assert "](figures/toy.svg)" in (finished / "out" / "toy.md").read_text()
    assert (finished / "out" / "figures" / "toy.svg").read_text().startswith("<?xml")
    (page,) = finished.glob("compare-*/many/pareto.html")
    assert "data:image/svg+xml" in page.read_text()


@pytest.mark.long
def test_a_killed_search_goes_on_and_a_finished_front_measures_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], counted: list[tuple[int, ...]]
) -> None:
    before, folder = json.loads((finished / "out" / "toy.json").read_text()), many_folder(finished)
    (folder / "figures.json").unlink()
    (folder / "search.json").unlink()
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:17]) + lines[17][:5])
    assert shown(capsys, arguments(finished))["rows"] == before["rows"]
    assert len(counted) == len(lines) - 17
    counted.clear()
    assert shown(capsys, arguments(finished))["rows"] == before["rows"]
    assert counted == []


def test_a_comparison_finds_the_single_searches(
    finished: Path, counted: list[tuple[int, ...]]
) -> None:
    same = [word for word in arguments(finished) if word not in ("--front", written(FRONT))]
    assert compare.main([*same, "--searchers", "uniform,ppo", "--seeds", "1"]) == 0
    assert counted == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--front", "1.2"], "--front is 1.2"),
        (["--front", ""], "--front is empty"),
        (["--agent", "uniform"], "'uniform' has no policy"),
        (["--evaluations", "7"], "too few"),
        (["--front", "0.0001"], "cannot be reached"),
        (["--searchers", "unifrom"], "uniform"),
        (["--budget", "0.5"], "--budgets"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path), *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("journal.jsonl"))


def test_the_folder_is_that_of_a_comparison() -> None:
    ours, theirs = ParetoConfig(), compare.CompareConfig()
    assert ours.folder == theirs.folder
    assert ParetoConfig(front=(0.9,), agent="sac").folder == theirs.folder
    assert ours.asked == (0.3, 0.36, 0.42, 0.5, 0.56, 0.62, 0.7, 0.8)
    assert (ours.charge, ours.wide.budgets) == (600, ours.asked)
    with pytest.raises(ConfigError, match="--front"):
        ParetoConfig(front=(0.5, 0.0))


# --- how many budgets are learned ----------------------------------------------------------------


@given(
    asked=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=9, unique=True),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_lanes_have_the_budgets_asked_for_in_turns(
    asked: list[float], count: int, seed: int
) -> None:
    draw, again = drawn(asked, seed), drawn(asked, seed)
    for _ in range(2):
        budgets = draw(count)
        times = [int((budgets == budget).sum()) for budget in asked]
        assert sum(times) == len(budgets) == count
        assert max(times) - min(times) <= 1
        assert np.array_equal(budgets, again(count))


def test_the_prior_loses_least_over_the_budgets() -> None:
    task = uneven(budget=0.7)
    ledger = Ledger(task, 50)
    chosen = front_prior(ASKED, ledger)

    def lost(path: Any) -> float:
        twins = [task.at(budget) for budget in (0.4, 0.6, 0.7)]
        return float(np.sum([np.log(-task.outcome(plan_of(twin, path)).reward) for twin in twins]))

    assert lost(chosen) == pytest.approx(min(lost(make(task)) for make in PATHS.values()))
    assert ledger.spent <= 3 * len(PATHS)
    assert len({outcome.kept for outcome in ledger.history}) == ledger.spent


def searched(course: Any, evaluations: int, budget: float) -> tuple[PruningTask, Ledger]:
    task = uneven(budget=budget, width=40)
    ledger = Ledger(task, evaluations)
    ledger.run(partial(learn, "ppo", course=course), 0)
    return task, ledger


@pytest.mark.long
def test_plans_of_every_budget_are_measured_and_the_policy_is_asked_for_each() -> None:
    task, ledger = searched(course_of(ASKED), 72, ASKED[-1])
    cost = task.rules.ratio(np.array([outcome.kept for outcome in ledger.history]))
    counts, _ = np.histogram(cost[12:], bins=3, range=(0.35, 0.7))
    assert counts.min() >= 8, counts
    assert ledger.spent == 72
    for budget, left in zip(ASKED, cost[-len(ASKED) :], strict=True):
        assert budget - 0.04 < left <= budget + SLACK


@pytest.mark.long
def test_best_within_loses_less_the_more_may_remain() -> None:
    task, ledger = searched(course_of(ASKED), 30, ASKED[-1])
    cost = [float(task.costs.ratio(outcome.kept, task.on)) for outcome in ledger.history]
    best = [best_within(ledger.history, cost, budget) for budget in ASKED]
    rewards = [outcome.reward for outcome in best]
    assert rewards == sorted(rewards)


class Known:
    """A surrogate that expects the same of every plan."""

    def __call__(self, kept_NG: Any) -> Any:
        return np.zeros(len(kept_NG))

    def spread(self, kept_NG: Any) -> Any:
        return np.full(len(kept_NG), 0.1)


def acquired(budgets: tuple[float, ...]) -> tuple[PruningTask, Any]:
    """One that has seen a plan of each budget."""
    task = uneven(budget=budgets[-1], width=40)
    ledger = Ledger(task, 50)
    for budget in budgets:
        ledger.measure([task.at(budget).decode([0.0] * task.length)])
    acquisition: Any = Acquisition(ledger, Choice(measured=1), 0)
    acquisition.surrogate = Known()
    return task, acquisition


def test_a_surrogate_searches_many_budgets_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counted: list[tuple[int, ...]]
) -> None:
    argv = [*arguments(tmp_path, "--agent", "surrogate"), "--evaluations", "20"]
    found = shown(capsys, argv)
    task = uneven(budget=0.7)
    for row in found["rows"]:
        (front,), (alone,) = (row["series"][name]["kl"] for name in (MANY, POLICY))
        path = PATHS["uniform"](task)
        uniform = task.outcome(plan_of(task.at(row["budget"]), path)).metrics.divergence
        assert front <= alone
        assert front < uniform
    counted.clear()
    assert shown(capsys, argv)["rows"] == found["rows"]
    assert counted == []


@pytest.mark.parametrize("measured", [1, 3, 4, 8])
def test_budgets_take_turns(measured: int) -> None:
    """Small budgets gain more, but what is measured is shared out as the episodes are."""
    task, acquisition = acquired((0.3, 0.8))
    acquisition.choice = Choice(measured=measured)
    budgets, counts = (0.3, 0.5, 0.8), np.zeros(3, int)
    budget_N = np.repeat(budgets, (4, 8, 4))
    generator = np.random.default_rng(0)
    for _ in range(6):
        offset_NG = generator.uniform(-0.3, 0.3, (16, task.length))
        plans = [task.at(b).beside(o.tolist()) for b, o in zip(budget_N, offset_NG, strict=True)]
        found = acquisition.promising(np.array(plans), budget_N)
        assert len(set(found)) == len(found) == measured
        for kept in found:
            counts[np.searchsorted(budgets, task.rules.ratio(np.array(kept)) - SLACK)] += 1
    assert counts.sum() == 6 * measured
    assert np.abs(counts - 6 * measured * np.array([0.25, 0.5, 0.25])).max() < 3, counts


def test_one_of_the_plans_measured_together_is_chosen_without_optimism() -> None:
    task, acquisition = acquired((0.3, 0.8))
    acquisition.choice = Choice(measured=2, neighbours=0)
    plans = [task.at(b).beside([o, 0.0, 0.0, 0.0]) for b in (0.3, 0.8) for o in (-0.4, 0.4)]
    acquisition.surrogate = Doubtful({kept: float(n % 2 == 0) for n, kept in enumerate(plans)})
    likely, seen = set(plans[::2]), set()
    for _ in range(8):
        found = acquisition.promising(np.array(plans), np.repeat([0.3, 0.8], 2))
        assert len(likely.intersection(found)) == 1
        seen.update(found)
    assert seen == set(plans), "no budget goes without the one or the other"


class Doubtful:
    """A surrogate that is unsure of what it expects little of."""

    def __init__(self, expected: dict[Any, float]) -> None:
        self.expected = expected

    def __call__(self, kept_NG: Any) -> Any:
        return np.array([self.expected[tuple(row)] for row in kept_NG.tolist()])

    def spread(self, kept_NG: Any) -> Any:
        return 2.0 * (1.0 - self(kept_NG))


def test_one_budget_of_several_is_judged_by_the_plans_nearest_in_cost(monkeypatch: Any) -> None:
    monkeypatch.setattr("prune_env.search.seen.NEAREST", 3)
    task = uneven(budget=0.8, width=40)
    ledger = Ledger(task, 50)
    for budget in np.linspace(0.2, 0.8, 20):
        ledger.measure([task.at(float(budget)).decode([0.0] * task.length)])
    acquisition: Any = Acquisition(ledger, Choice(), 0)
    cost = task.rules.ratio(np.array([outcome.kept for outcome in ledger.history]))
    for budget in (0.2, 0.5, 0.8):
        judge = acquisition.judge(Seen.of(ledger), budget)
        assert len(judge.place_MG) == 8
        away = np.abs(np.log(cost / budget))
        asked = judge._place(np.array([o.kept for o in ledger.history]))
        used = [bool(np.isclose(judge.place_MG, row).all(1).any()) for row in asked]
        assert max(away[used]) <= min(away[~np.array(used)])


def test_neighbours_stand_in_at_any_budget() -> None:
    task, acquisition = acquired((0.3, 0.5, 0.8))
    seen = Seen.of(acquisition.ledger)
    for budget in (0.3, 0.45, 0.8):
        found = acquisition.neighbours(seen, budget)
        assert len(found) == Choice().neighbours
        assert len(set(found)) > 1
        assert all(task.at(budget).within_budget(kept) for kept in found)
    assert acquisition.neighbours(seen, 0.1) == [], "no plan is known there"


# --- what the page says --------------------------------------------------------------------------


def row(budget: float, many: float, single: float | None = None) -> dict[str, Any]:
    series = {MANY: {"kl": [many]}, POLICY: {"kl": [2 * many]}}
    return {
        "budget": budget,
        "series": series | ({SINGLE: {"kl": [single]}} if single is not None else {}),
    }


def test_the_verdict_counts_budgets_with_a_single_search() -> None:
    rows = [row(0.3, 0.2, 0.1), row(0.4, 0.1), row(0.5, 0.05, 0.1), row(0.7, 0.0101, 0.01)]
    values = {budget: ratio.value for budget, ratio in ratios(rows).items()}
    assert values == pytest.approx({0.3: 2.0, 0.5: 0.5, 0.7: 1.01})
    said = verdict(rows)
    for part in ("2.000 at 30 %", "0.500 at 50 %", "1 of 3 budgets", "2 % worse at 2, clearly"):
        assert part in said


def test_a_ratio_of_several_seeds_has_an_interval() -> None:
    series = {MANY: {"kl": [0.2, 0.3, 0.4, 0.5]}, SINGLE: {"kl": [0.1, 0.2, 0.3, 9.0]}}
    found = ratios([{"budget": 0.5, "series": series}])[0.5]
    assert found.value == pytest.approx(0.35 / 0.25)
    assert found.low < 1 < found.value < found.high
    far = {MANY: {"kl": [0.5, 0.6]}, SINGLE: {"kl": [0.1, 0.2]}}
    said = verdict([{"budget": 0.5, "series": far}, {"budget": 0.7, "series": series}])
    assert said.endswith("clearly worse (the whole interval) at 1.")


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys, prune_env.experiments.pareto as r, prune_env.experiments.transfer as t\n"
        "for main in (r.main, t.main):\n"
        "    try: main(['--help'])\n"
        "    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--front" in done.stdout
    assert "--source" in done.stdout
