"""Laws of a transfer, and of searches that go on from a saved policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import idle

from prune_env import Ledger
from prune_env.agents.sb3 import AGENTS, load_policy
from prune_env.agents.settings import settings
from prune_env.errors import ConfigError, RunError
from prune_env.experiments import compare, run
from prune_env.experiments.config.run import parse
from prune_env.experiments.config.transfer import TransferConfig, named_in_full
from prune_env.experiments.stages.policies import continuing
from prune_env.experiments.sweeps.compare_job import Job
from prune_env.experiments.sweeps.transferred import prior_of, strayed
from prune_env.experiments.transfer import main
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.search.allocators import PATHS, plan_of, predicted_path
from prune_env.search.searchers import run_search
from prune_env.testing import toy_task

EVALUATIONS = 12


def shorter(**options: Any) -> PruningTask:
    return toy_task(target=[0.6, 0.2, 0.5, 0.1], width=40, **options)


def longer(**options: Any) -> PruningTask:
    return toy_task(target=[0.6, 0.5, 0.3, 0.2, 0.5, 0.1], width=30, **options)


SHORTER, LONGER = f"{__name__}:shorter", f"{__name__}:longer"


def arguments(runs: Path, *more: str) -> list[str]:
    return [
        "--from", SHORTER, "--evaluations", str(EVALUATIONS), "--budget", "0.5",
        "--runs", str(runs), *more,
    ]  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], argv: list[str]) -> dict[str, Any]:
    """What the last line says."""
    assert main(argv) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def rows(results: dict[str, Any]) -> dict[str, Any]:
    (entry,) = results["budgets"]
    return {row["name"]: row for row in entry["rows"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy of every agent that the tests ask for."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("ppo", "a2c", "sac", "ppo_plan"):
        run_search(shorter(budget=0.5), name, EVALUATIONS, 0, folder / name)
    return folder


# --- another network, another budget -----------------------------------------------------------


def test_a_policy_runs_on_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shown(
        capsys, arguments(tmp_path, "--to", LONGER, "--out", str(tmp_path / "out" / "x"))
    )
    found = rows(results)
    assert list(found) == ["uniform", "global", "sensitivity", "best prior", "policy"]
    tried = found["best prior"]["evaluations"][0]
    assert 1 <= tried <= 4, "every different plan of the free paths is measured once"
    assert found["policy"]["evaluations"] == [1], "its prior's kind is known from the source"
    assert all(row["macs_ratio"][0] <= 0.5 for row in found.values())
    free = [found[name]["kl"][0] for name in ("uniform", "global", "sensitivity")]
    assert found["best prior"]["kl"][0] <= min(free)
    assert "without training" in results["verdict"][0]
    assert (tmp_path / "out" / "x.md").exists()
    assert list(tmp_path.glob("compare-*/transfer.html"))


def test_the_prior_that_a_policy_corrects_is_known_from_its_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path, "--to", LONGER)
    shown(capsys, argv)
    config = parse(TransferConfig, named_in_full(argv), prog="transfer")
    name, path = prior_of(Job(config.origin, 0.5, "ppo", 0))
    task = shorter(budget=0.5)
    paid = {n: task.outcome(plan_of(task, make(task))).reward for n, make in PATHS.items()}
    assert paid[name] == max(paid.values())
    assert np.array_equal(path.kept_TG, PATHS[name](task).kept_TG)


def test_a_transfer_measures_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shown(capsys, arguments(tmp_path, "--to", LONGER))
    (folder,) = tmp_path.glob("compare-*/b0.5/transfer-*")
    (folder / "figures.json").unlink()
    for figures in tmp_path.glob("compare-*/b0.5/uniform-s0/figures.json"):
        figures.unlink()

    def never(task: PruningTask, kept: Any, rival: Any = None) -> Any:
        raise AssertionError("measured, although everything is in the journal")

    monkeypatch.setattr(PruningTask, "outcome", never)
    again = shown(capsys, arguments(tmp_path, "--to", LONGER))
    assert rows(again) == rows(first)


def test_a_plan_moves_to_another_budget_of_the_same_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(
        shown(capsys, arguments(tmp_path, "--to", SHORTER, "--from-budget", "0.6", "--seeds", "2"))
    )
    assert found["plan"]["evaluations"] == [1, 1]
    assert len(found["policy"]["kl"]) == 2
    assert max(found["plan"]["macs_ratio"]) <= 0.5
    assert len(list(tmp_path.glob("compare-*"))) == 1


@given(offsets=st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4), budget=st.floats(0.4, 0.8))
def test_a_plan_moved_to_its_own_budget_stays(offsets: list[float], budget: float) -> None:
    task = shorter(budget=budget)
    path = predicted_path(task)
    around = task.around(path)
    plan = around.beside(offsets)
    again = around.beside(strayed(task, path, plan).tolist())
    assert np.abs(np.array(again) - plan).max() <= 3


@pytest.mark.long
def test_searches_on_the_target_go_on_from_the_policy_or_start_afresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(shown(capsys, arguments(tmp_path, "--to", LONGER, "--continue", "14")))
    assert list(found)[-2:] == ["ppo, afresh", "ppo, going on"]
    for name in ("ppo, afresh", "ppo, going on"):
        assert found[name]["evaluations"] == [14]
    journals = list(tmp_path.glob("compare-*/b0.5/ppo-s0/journal.jsonl"))
    counts = sorted(len(p.read_text().splitlines()) - 1 for p in journals)
    assert counts == [EVALUATIONS, 14, 14]


def test_a_policy_may_be_given_as_a_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(trained / "ppo" / "policy.safetensors")
    argv = ["--init-policy", policy, "--to", LONGER, "--budget", "0.5", "--runs", str(tmp_path)]
    results = shown(capsys, argv)
    assert "policy" in rows(results)
    assert results["source"] == policy


def test_sides_have_options_of_their_own() -> None:
    config = TransferConfig(
        source="a", task="b", budgets=(0.5, 0.3), reward_samples=77, from_budget=0.6, further=9,
        from_options="reward-samples=55 units=2:4",
    )  # fmt: skip
    origin, target = config.origin, config.target()
    assert (origin.task, origin.budgets, origin.evaluations) == ("a", (0.6,), 200)
    assert (origin.reward_samples, origin.units) == (55, "2:4")
    assert (target.task, target.budgets, target.evaluations) == ("b", (0.5, 0.3), 9)
    assert (target.reward_samples, target.units) == (77, "structured")
    assert replace(config, from_budget=0.0).origin.budgets == (0.5,)
    assert config.target("x.zip").init_policy == "x.zip"


def test_short_names_are_read_in_full() -> None:
    said = named_in_full(["--from", "a", "--to=b", "--from-budget", "0.5", "--continue=3", "--on"])
    assert said == ["--source", "a", "--task=b", "--from-budget", "0.5", "--further=3", "--on"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--init-policy", "x.zip"], "either --from"),
        (["--agent", "random"], "'random' has no policy"),
        (["--from-options", "reward-sample=3"], "--reward-samples"),
        (["--continue", "-1"], "--continue is -1"),
        (["--searchers", "unifrom"], "uniform"),
        (["--from", "tyo"], "toy"),
        (["--agent", "ppo_plan"], "fit one network only"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path, "--to", LONGER), *wrong]) == 2
    assert said in capsys.readouterr().err


def test_a_source_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--to", LONGER]) == 2
    assert "either --from" in capsys.readouterr().err


# --- going on from a policy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("uniform", "ppo", "searcher 'uniform' has no policy"),
        ("sac", "ppo", "holds no policy of 'sac'"),
        ("ppo", "a2c", "it is of 'a2c'"),
        ("ppo", "ppo_plan", "it is of 'ppo_plan'"),
        ("ppo", "sac", "holds no policy of 'ppo'"),
        ("ppo", "nowhere", "holds no policy: No such file"),
    ],
)
def test_a_policy_must_be_of_the_agent(trained: Path, name: str, file: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        continuing(name, trained / file / "policy.safetensors")


def test_without_a_policy_the_name_says_what_searches() -> None:
    assert continuing("uniform", "") is None
    assert continuing("ppo", "") is None


def test_a_policy_of_whole_plans_fits_its_network_only(trained: Path, tmp_path: Path) -> None:
    agent = continuing("ppo_plan", trained / "ppo_plan" / "policy.safetensors")
    with pytest.raises(ConfigError, match="one network only"):
        run_search(longer(budget=0.5), "ppo_plan", 9, 0, tmp_path, searcher=agent)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_search_goes_on_and_resumes(trained: Path, tmp_path: Path, name: str) -> None:
    """On a longer network, killed once; finished it measures nothing."""
    task, told = longer(budget=0.5), []
    agent = continuing(name, trained / name / "policy.safetensors")
    first = run_search(task, name, 10, 0, tmp_path / "a", searcher=agent)
    assert len(first.history) == 10
    assert first.plan.notes["searcher"] == name
    run_search(task, name, 10, 0, tmp_path / "b", searcher=agent)
    lines = (tmp_path / "b" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "journal.jsonl").write_text("".join(lines[:6]) + lines[6][:9])
    (tmp_path / "b" / "search.json").unlink()

    def tell(ledger: Ledger, outcome: Outcome) -> None:
        told.append(1)

    resumed = run_search(task, name, 10, 0, tmp_path / "b", tell, searcher=agent)
    assert [o.kept for o in resumed.history] == [o.kept for o in first.history]
    assert len(told) == 10
    again = run_search(idle(task), name, 10, 0, tmp_path / "b", tell, searcher=agent)
    assert (again.history, again.seconds) == (resumed.history, resumed.seconds)
    assert len(told) == 10
    with pytest.raises(RunError, match="another search"):
        run_search(task, name, 10, 1, tmp_path / "b", searcher=agent)


@pytest.mark.long
def test_another_seed_or_policy_is_another_search(trained: Path, tmp_path: Path) -> None:
    task = shorter(budget=0.5)
    agent = continuing("ppo", trained / "ppo" / "policy.safetensors")
    plans = [
        tuple(o.kept for o in run_search(task, "ppo", 14, seed, searcher=searcher).history)
        for seed, searcher in ((0, None), (0, agent), (1, agent))
    ]
    assert len(set(plans)) == 3


def test_a_loaded_agent_learns_with_the_settings_of_its_new_task(trained: Path) -> None:
    path = trained / "ppo" / "policy.safetensors"
    assert load_policy("ppo", path, **settings("ppo", 4, 32)).__dict__["n_steps"] == 4
    assert load_policy("ppo", path, **settings("ppo", 6, 32)).__dict__["n_steps"] == 6
    assert set(AGENTS) >= {"ppo", "sac"}


def test_a_run_goes_on_from_a_policy(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--task", LONGER, "--budget", "0.5", "--evaluations", "9", "--baselines", "uniform",
        "--runs", str(tmp_path), "--no-tensorboard", "--no-progress", "--threads", "1",
    ]  # fmt: skip
    policy = ["--init-policy", str(trained / "ppo" / "policy.safetensors")]
    assert run.main([*argv, *policy]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["ppo"]["evaluations"] == 9
    assert said["settings"]["init_policy"] == policy[1]
    assert run.main([*argv, *policy, "--searcher", "random"]) == 2
    assert "'random' has no policy" in capsys.readouterr().err
    assert run.main([*argv, "--init-policy", str(trained / "a2c" / "policy.safetensors")]) == 2
    assert "it is of 'a2c'" in capsys.readouterr().err


def test_agents_of_a_comparison_go_on_and_others_take_no_notice(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--task", LONGER, "--budgets", "0.5", "--evaluations", "9", "--seeds", "1",
        "--searchers", "uniform,ppo,a2c", "--runs", str(tmp_path),
    ]  # fmt: skip
    policy = str(trained / "ppo" / "policy.safetensors")
    assert compare.main([*argv, "--init-policy", policy]) == 0
    (cell,) = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert [entry["searcher"] for entry in cell["searchers"]] == ["uniform", "ppo"]
    assert "it is of 'ppo'" in cell["refused"]["a2c"]
    base = compare.CompareConfig(task=LONGER)
    assert replace(base, init_policy=policy).folder != base.folder
