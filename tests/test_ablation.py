"""Laws of an ablation: one part is removed at a time; its searches are a comparison's."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_env import Ledger
from prune_env.agents import sb3
from prune_env.agents.lanes import at_the_end
from prune_env.experiments import ablation, compare
from prune_env.experiments.ablation import AblationConfig, rows_of
from prune_env.experiments.sweeps import variants as parts
from prune_env.experiments.sweeps.variants import HERE, variants
from prune_env.mdp.leftover import leave
from prune_env.mdp.rewards import figure
from prune_env.mdp.task import PruningTask
from prune_env.mdp.transforms import absolute
from prune_env.search.neighbours import best_plans, nearby
from prune_env.search.screening import screened
from prune_env.search.searchers import searcher_named
from prune_env.testing import check_searcher, toy_task

TARGETS = [0.2, 0.5, 0.6, 0.3]
EVALUATIONS = 8
KEYS = list(variants())


def uneven(**options: Any) -> PruningTask:
    return toy_task(target=TARGETS, **options)


def arguments(runs: Path) -> list[str]:
    return [
        "--task", f"{__name__}:uneven", "--evaluations", str(EVALUATIONS), "--seeds", "2",
        "--budgets", "0.6", "--runs", str(runs),
    ]  # fmt: skip


# --- what is removed ---------------------------------------------------------------------------


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(agent, task, course) of every call that would have learned."""
    calls: list[Any] = []

    def learn(name: str, ledger: Ledger, seed: int, course: sb3.Course) -> None:
        calls.append((name, ledger.task, course))

    monkeypatch.setattr(sb3, "learn", learn)
    return calls


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("agent", ["ppo", "ppo_plan"])
def test_a_row_differs_from_the_whole_agent_in_its_part_alone(
    key: str, agent: str, learned: list[Any]
) -> None:
    before = toy_task(budget=0.6)
    searcher_named(f"{HERE}:{agent}_{key}")(Ledger(before, 3), 0)
    ((name, task, course),) = learned
    assert name == agent
    changed = {
        entry.name
        for one, other in ((sb3.COURSE, course), (before, task))
        for entry in fields(one)
        if getattr(one, entry.name) is not getattr(other, entry.name)
    }
    expected = {
        "no_prior": {"prior"}, "no_shaping": {"help"}, "accuracy": {"reward"},
        "unspent": {"leftover"}, "absolute": {"help"}, "no_neighbours": {"practice"},
            "measured": {"practice"},
        "measured_often": {"practice", "lanes"},
    }  # fmt: skip
    assert changed == expected[key]
    assert (course.help.credit is at_the_end) == (key == "no_shaping")
    assert (course.help.standing is absolute) == (key == "absolute")
    assert (course.practice is None) == key.startswith("measured")
    assert (task.reward is figure) == (key == "accuracy")
    assert (task.leftover is leave) == (key == "unspent")


def test_without_prior_only_the_uniform_plan_is_measured_beforehand() -> None:
    task = uneven(budget=0.6)
    ledger = Ledger(task, 20)
    path = parts.uniform_prior(ledger)
    (outcome,) = ledger.history
    assert outcome.kept == task.beside([0.0] * 4)
    assert np.array_equal(path.kept_TG, task.path.kept_TG)


@pytest.mark.long
@pytest.mark.parametrize("name", [*(f"ppo_{key}" for key in KEYS), "sac_absolute"])
def test_every_row_keeps_the_contract_of_a_searcher(name: str) -> None:
    check_searcher(searcher_named(f"{HERE}:{name}"), evaluations=9)


def test_names_that_are_no_row_are_refused() -> None:
    for name in ("ppo_no_such_part", "no_prior", "__path__"):
        assert not hasattr(parts, name)


# --- the surrogate without a policy ------------------------------------------------------------


def test_screened_plans_stay_in_the_budget_around_the_best() -> None:
    ledger = Ledger(uneven(budget=0.6, width=100), 30)
    ledger.run(searcher_named("random"), 0)
    plans_NG = nearby(ledger.task, best_plans(ledger.seen), 60, np.random.default_rng(0))
    assert plans_NG.shape == (60, 4)
    assert all(ledger.task.within_budget(kept) for kept in plans_NG)
    assert len(np.unique(plans_NG, axis=0)) > 50
    best = sorted(ledger.history, key=lambda outcome: -outcome.reward)[:3]
    away = np.abs(plans_NG[:, None] - np.array([outcome.kept for outcome in best])).sum(2).min(1)
    anywhere = np.abs(plans_NG[:, None] - np.array(ledger.history[0].kept)).sum(2).min(1)
    assert away.mean() < anywhere.mean()


def test_screening_finds_what_evolution_finds_with_fewer_evaluations() -> None:
    found = {}
    for name, search in (("screened", screened), ("evolution", searcher_named("evolution"))):
        ledger = Ledger(uneven(budget=0.6, width=100), 32)
        ledger.run(search, 0)
        assert ledger.spent == 32
        found[name] = ledger.best.metrics.divergence
    assert found["screened"] <= found["evolution"]


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished ablation, its page beside it as one.md and one.json."""
    runs = tmp_path_factory.mktemp("ablation")
    assert ablation.main([*arguments(runs), "--out", str(runs / "one")]) == 0
    return runs


@pytest.mark.long
def test_every_row_has_its_figures_and_a_sentence(finished: Path) -> None:
    (entry,) = json.loads((finished / "one.json").read_text())["ablations"]
    page = (finished / "one.md").read_text()
    rows = {row["searcher"]: row for row in entry["rows"]}
    ours = {"ppo": "ppo"} | {f"{HERE}:ppo_{key}": v.name for key, v in variants().items()}
    others = ["ppo_plan", "screened", "evolution", "uniform"]
    assert list(rows) == [*ours, *others]
    for name, row in rows.items():
        assert list(row["kl"]) == ["2", "4", "8"]
        ends = [spread["mean"] for spread in row["kl"].values()]
        assert ends == sorted(ends, reverse=True) or name.endswith("accuracy")
        assert row["evaluations"] == (1 if name == "uniform" else EVALUATIONS)
        assert row["chance"] is None if name == "ppo" else 0 <= row["chance"]["value"] <= 1
        assert row["seconds"] > 0
        assert f"- {row['name']}: {row['said']}" in page
        assert f"| {row['name']} | {row['seeds']} |" in page
    assert "| ppo | seeds | KL at 2 | KL at 4 | KL at 8 |" in page


@pytest.mark.long
def test_a_finished_ablation_measures_nothing_and_serves_a_comparison(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*args: Any) -> Any:
        raise AssertionError("a plan was measured")

    monkeypatch.setattr(PruningTask, "outcome", measured)
    before = json.loads((finished / "one.json").read_text())["ablations"]
    assert ablation.main([*arguments(finished), "--out", str(finished / "one")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ablations"] == before
    assert compare.main([*arguments(finished), "--searchers", "ppo,evolution"]) == 0
    assert len(list(finished.glob("compare-*"))) == 1


@pytest.mark.long
def test_earlier_tables_come_first_on_the_same_page(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*arguments(finished), "--beside", str(finished / "one")]
    words[words.index("--budgets")] = "--budget"  # what it was called in `compare`
    assert ablation.main(words) == 0
    page = capsys.readouterr().out
    one, two = json.loads(page.splitlines()[-1])["ablations"]
    assert [row["kl"] for row in one["rows"]] == [row["kl"] for row in two["rows"]]
    assert page.index(one["command"]) < page.index(two["command"])
    assert page.count("## ") == 2


def test_agents_that_do_not_walk_have_no_steps_to_shape() -> None:
    walking, planning = (rows_of(AblationConfig(agent=agent)) for agent in ("ppo", "ppo_plan"))
    assert f"{HERE}:ppo_no_shaping" in walking
    assert f"{HERE}:ppo_plan_no_shaping" not in planning
    assert planning["ppo"].name == "walk instead of plan"
    assert "ppo_plan" not in rows_of(AblationConfig(agent="sac"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--agent", "evolution"], "no agent 'evolution'"),
        (["--searchers", "evolutoin"], "'evolution'"),
        (["--beside", "nowhere/page"], "--beside"),
        (["--agents", "ppo"], "--agent"),
        (["--init-policy", "policy.safetensors"], "--init-policy"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main([*arguments(tmp_path), *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("journal.jsonl"))
