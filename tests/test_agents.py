"""Searchers: one contract for all, and agents that learn."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import idle

from prune_env import Ledger, PruningTask
from prune_env.agents.settings import SETTINGS, settings
from prune_env.errors import ConfigError, RunError
from prune_env.mdp.rewards import Outcome
from prune_env.search.searchers import SEARCHERS, run_search, searcher_named
from prune_env.search.workers import Processes
from prune_env.storage import read_json
from prune_env.testing import check_searcher, toy_task

ROOT = Path(__file__).parent.parent
AGENTS = sorted(SETTINGS)


def with_scores(task: PruningTask, scores: list[Any]) -> PruningTask:
    named = {g.name: torch.as_tensor(s) for g, s in zip(task.groups, scores, strict=True)}
    return dataclasses.replace(task, scores=named)


# --- the contract ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four() -> Iterator[Processes]:
    with Processes(4) as workers:
        yield workers


@pytest.mark.long
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_keeps_the_contract(name: str, four: Processes) -> None:
    """From any half of its journal, and with four workers."""
    check_searcher(searcher_named(name), evaluations=9, workers=four)


@pytest.mark.long
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_agents_spend_even_the_smallest_limit_exactly(name: str, evaluations: int) -> None:
    result = run_search(toy_task(budget=0.6), name, evaluations, seed=0)
    assert len(result.history) == evaluations


@pytest.mark.parametrize("name", [*AGENTS, "random"])
def test_everything_is_spent_and_seeds_differ(name: str) -> None:
    task = toy_task(budget=0.6)
    plans = [[o.kept for o in run_search(task, name, 7, seed).history] for seed in (0, 1)]
    assert [len(p) for p in plans] == [7, 7]
    assert plans[0] != plans[1]


@pytest.mark.parametrize("name", AGENTS)
def test_a_search_leaves_the_random_states_alone(name: str) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    run_search(toy_task(), name, 4, seed=5)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


def test_a_search_does_not_depend_on_the_random_states() -> None:
    first = run_search(toy_task(budget=0.6), "ppo", 6, seed=5)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert [o.kept for o in run_search(toy_task(budget=0.6), "ppo", 6, 5).history] == [
        o.kept for o in first.history
    ]


@pytest.mark.long
def test_the_list_of_names_costs_no_heavy_import() -> None:
    code = "import sys, prune_env.search.searchers; assert 'stable_baselines3' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("pppo", "'ppo'"), ("globl", "'global'"), ("nowhere.at:all", "nowhere"), ("agents:x", "'x'")],
)
def test_unknown_searchers_are_answered_with_the_nearest_or_the_cause(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        searcher_named(name)


# --- learning ----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("name", "evaluations"), [("ppo", 120), ("sac", 250)])
def test_an_agent_solves_the_toy_within_2000_steps(name: str, evaluations: int) -> None:
    """The last plan is that of the deterministic policy: chance finds do not count."""
    task = toy_task(target=0.35, leftover="leave")
    assert evaluations * task.length <= 2000
    history = run_search(task, name, evaluations, seed=1).history
    untrained, learned = -history[0].reward, -history[-1].reward
    assert untrained == pytest.approx(0.35)
    assert learned <= 0.05


@pytest.mark.parametrize("name", AGENTS)
def test_an_untrained_policy_is_about_the_prior(name: str) -> None:
    """Two evaluations: the prior (all free paths give one plan here), then the policy."""
    history = run_search(toy_task(budget=0.6, width=100), name, 2, 0).history
    prior, policy = (np.array(o.kept) / 100 for o in history)
    assert np.abs(policy - prior).max() < 0.05


def reward(outcome: Outcome) -> float:
    return outcome.reward


@pytest.mark.parametrize("name", AGENTS)
def test_a_search_never_ends_below_its_prior(name: str) -> None:
    task = toy_task(target=[0.2, 0.5, 0.6, 0.3], budget=0.6)
    history = run_search(task, name, 12, 0).history
    assert max(map(reward, history)) >= max(map(reward, history[:2]))


@given(length=st.integers(1, 120), lanes=st.integers(2, 64))
def test_settings_follow_from_length_and_lanes(length: int, lanes: int) -> None:
    for name in AGENTS:
        chosen = settings(name, length, lanes)
        assert chosen["gamma"] == 1.0
        if "train_freq" in chosen:  # off-policy
            assert chosen["buffer_size"] >= length * lanes
            continue
        assert chosen["n_steps"] == (1 if name == "ppo_plan" else length)
        if "batch_size" in chosen:
            assert chosen["n_steps"] * lanes % chosen["batch_size"] == 0
            assert chosen["batch_size"] > 1


# --- baselines ---------------------------------------------------------------------------------


def kept_by_global(task: PruningTask) -> tuple[int, ...]:
    (outcome,) = run_search(task, "global", 5, 0).history
    return outcome.kept


@given(seed=st.integers(0, 1000), budget=st.floats(0.3, 1.0))
def test_global_meets_the_budget_ignores_scale_and_is_monotone(seed: int, budget: float) -> None:
    generator = np.random.default_rng(seed)
    scores = [generator.exponential(size=20) for _ in range(4)]
    scaled = [s * 10.0**k for k, s in enumerate(scores)]
    task = with_scores(toy_task(budget=budget, leftover="leave"), scores)
    kept = kept_by_global(task)
    assert task.within_budget(kept)
    assert kept == kept_by_global(with_scores(task, scaled))
    tighter = kept_by_global(dataclasses.replace(task, budget=0.8 * budget))
    assert all(less <= more for less, more in zip(tighter, kept, strict=True))


def test_global_keeps_more_where_scores_are_even() -> None:
    """Half the units of the first group hold next to nothing; those of the others are alike."""
    uneven, even = np.linspace(2.0, 1.9, 20), np.linspace(1.1, 0.9, 20)
    uneven[10:] = 0.01
    task = with_scores(toy_task(budget=0.8), [uneven, even, even + 1, even + 2])
    kept = kept_by_global(task)
    assert kept[0] < min(kept[1:])
    full = task.fill(kept, [1 - k / 20 for k in kept])
    assert full == kept, "budget was left over"


def test_random_is_random_from_its_first_plan_on() -> None:
    task = toy_task(budget=0.6)
    plans = {outcome.kept for outcome in run_search(task, "random", 20, 0).history}
    assert len(plans) > 15
    assert run_search(task, "random", 20, 0).history[0].kept != task.decode([0.0] * 4)


# --- folders -----------------------------------------------------------------------------------


def test_a_finished_search_returns_at_once_and_refuses_other_settings(tmp_path: Path) -> None:
    task = toy_task(budget=0.6)
    first = run_search(task, "ppo", 6, 0, tmp_path / "a")
    again = run_search(idle(task), "ppo", 6, 0, tmp_path / "a")
    assert (again.history, again.seconds) == (first.history, first.seconds)
    assert again.plan == first.plan
    notes = {"searcher": "ppo", "seed": 0, "evaluations": 6, "budget": 0.6, "on": "macs"}
    assert notes.items() <= first.plan.notes.items()
    assert first.plan.notes["reward"] == first.best.reward
    with pytest.raises(RunError, match="seed 0 there, 1 now"):
        run_search(task, "ppo", 6, 1, tmp_path / "a")


@pytest.mark.parametrize("lost", ["plan.json", "search.json", "policy.safetensors"])
def test_a_lost_file_is_made_again_without_measuring(tmp_path: Path, lost: str) -> None:
    first = run_search(toy_task(budget=0.6), "td3", 6, 0, tmp_path)
    (tmp_path / "search.json").unlink(missing_ok=True)  # as if killed just before the end
    (tmp_path / lost).unlink(missing_ok=True)
    again = run_search(idle(toy_task(budget=0.6)), "td3", 6, 0, tmp_path)
    assert again.history == first.history
    assert (tmp_path / lost).exists()


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(RunError, match=r"search\.json"):
        run_search(toy_task(), "uniform", 1, 0, tmp_path)
    with pytest.raises(ConfigError, match="at least 1"):
        run_search(toy_task(), "uniform", 0, 0)


@pytest.mark.long
def test_policies_are_kept_on_the_way_and_the_last_one_gives_the_last_plan(tmp_path: Path) -> None:
    from prune_env.agents.sb3 import load_policy, plan_by
    from prune_env.mdp.env import PruneEnv
    from prune_env.search.allocators import best_prior

    task, seen = toy_task(budget=0.6), []

    def listen(ledger: Ledger, outcome: Outcome) -> None:
        seen.append((tmp_path / "policy.safetensors").exists())

    result = run_search(task, "ppo", 30, 0, tmp_path, on_outcome=listen)
    assert seen[0] is False
    assert seen[20] is True
    ledger = Ledger(task, 20)
    policy = load_policy("ppo", tmp_path / "policy.safetensors")
    plan = plan_by(policy, task.around(best_prior(ledger)), PruneEnv, task.budget)
    assert plan == result.history[-1].kept
    assert read_json(tmp_path / "search.json", "search")["done"]["seconds"] > 0
