"""Searchers of Optuna, beyond the contract that every searcher keeps."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from prune_env import PruningTask
from prune_env.errors import ConfigError
from prune_env.search.searchers import run_search, searcher_named
from prune_env.testing import check_searcher, toy_task

ROOT = Path(__file__).parent.parent
NAMES = ["tpe", "cmaes"]


def uneven_task(length: int) -> PruningTask:
    """A toy whose best plan is far from uniform and spends the budget exactly."""
    targets = np.clip(0.5 + 0.2 * np.random.default_rng(0).standard_normal(length), 0.05, 0.95)
    kept = [round((1 - target) * 64) for target in targets]
    priced = toy_task(targets.tolist(), width=64)
    return toy_task(targets.tolist(), width=64, budget=float(priced.costs.ratio(kept, "macs")))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds_beyond_the_first_random_points(name: str) -> None:
    check_searcher(searcher_named(name), evaluations=40)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_search_improves_on_chance(name: str) -> None:
    task = uneven_task(10)
    errors = {n: -run_search(task, n, 150, 0).best.reward for n in (name, "uniform", "random")}
    assert errors[name] < 0.6 * min(errors["uniform"], errors["random"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0.35, 0.6, 0.9])
def test_uniform_is_measured_first(name: str, budget: float) -> None:
    task = toy_task(budget=budget, width=23)
    (first,) = run_search(task, name, 1, 0).history
    assert first.kept == task.decode([0.0] * task.length)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_one_group_is_searched(name: str) -> None:
    assert len(run_search(toy_task(length=1, budget=0.6), name, 15, 0).history) == 15


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_and_nothing_outside_is_changed(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def states() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), optuna.logging.get_verbosity()  # noqa: NPY002

    before = states()
    plans = [
        [o.kept for o in run_search(toy_task(budget=0.6), name, 15, seed).history]
        for seed in (0, 1)
    ]
    assert states() == before
    assert plans[0] != plans[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("package", ["optuna", "cmaes"])
def test_a_missing_package_is_named_with_the_cure(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "prune_env.agents.optuna_search", raising=False)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install -e '\.\[search\]'"):
        searcher_named(name)


@pytest.mark.long
def test_the_list_of_names_does_not_import_optuna() -> None:
    code = "import sys, prune_env.search.searchers; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
