"""Plans measured side by side: the same outcomes, whoever measures and whatever dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_env import Ledger, PruningTask
from prune_env.errors import ConfigError, ModelError, PlanError, RunError
from prune_env.experiments import run
from prune_env.mdp.evaluator import Kept, OfFunction
from prune_env.mdp.rewards import Outcome
from prune_env.quality.evaluators import Metrics
from prune_env.search import Processes, proposing, run_search
from prune_env.search.baselines import TOGETHER
from prune_env.search.ledger import Exhausted
from prune_env.search.workers import cores
from prune_env.testing import check_searcher, toy_inputs, toy_model, toy_task

ROOT = Path(__file__).parent.parent
LIMIT = 20


def task() -> PruningTask:
    return toy_task(budget=0.6)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2, factory=task) as workers:
        yield workers


# ---- the same outcomes


@pytest.mark.long
def test_batches_are_what_one_plan_at_a_time_was(two: Processes) -> None:
    plans = [task().decode(row) for row in np.random.default_rng(0).random((12, 4)).tolist()]
    plans += plans[3:6]
    together, single = Ledger(task(), LIMIT, workers=two), Ledger(task(), LIMIT)
    together.measure(plans)
    for kept in plans:
        single.measure([kept])
    assert together.history == single.history
    assert together.charged == len(plans)


def test_a_batch_is_cut_at_what_is_left(two: Processes) -> None:
    ledger = Ledger(task(), 5, workers=two)
    with pytest.raises(Exhausted):
        ledger.measure([task().decode([0.1 * n] * 4) for n in range(8)])
    assert (ledger.spent, ledger.exhausted) == (5, True)


@pytest.mark.long
def test_a_task_of_a_network_measures_the_same_elsewhere() -> None:
    """To the bit, repair and BatchNorm included, with as many threads."""
    data = [(toy_inputs("residual", n, 8), torch.arange(8) % 5) for n in range(6)]
    found = PruningTask.from_model(toy_model("residual"), data, calibration_samples=24)
    here, there = (run_search(found, "random", 4, 0, workers=n).history for n in (1, 2))
    assert here == there


@pytest.mark.long
def test_more_threads_than_cores_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with Processes(cores() + 1) as workers:
        Ledger(task(), LIMIT, workers=workers).measure(plans((9, 9, 9, 9))[:2])
    said = rf"{cores() + 1} workers of 1 thread each share {cores()} cores; .*set_num_threads\(1\)"
    assert re.search(said, caplog.text)


@pytest.mark.long
@pytest.mark.parametrize("first", ["one", "two"])
def test_a_search_goes_on_with_other_workers(tmp_path: Path, two: Processes, first: str) -> None:
    workers: list[Any] = [1, two] if first == "one" else [two, 1]
    journal = tmp_path / "journal.jsonl"
    for number in range(2):
        found = run_search(task(), "random", LIMIT, 0, tmp_path, workers=workers[number])
        rows = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([rows[0], *rows[9:4:-1]]))
    assert found.history == run_search(task(), "random", LIMIT, 0).history


@pytest.mark.long
def test_a_run_takes_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--task", "toy", "--searcher", "random", "--baselines", "uniform", "--evaluations", "9"]
    found, threads = [], torch.get_num_threads()
    for count in ("1", "2"):
        try:
            assert run.main([*argv, "--runs", str(tmp_path / count), "--workers", count]) == 0
        finally:
            torch.set_num_threads(threads)
        found.append(
            [p.read_text() for p in sorted(tmp_path.glob(f"{count}/*/search/*/plan.json"))]
        )
        capsys.readouterr()
    assert len(found[0]) == 2
    assert found[0] == found[1]


# ---- what goes wrong


@dataclass(frozen=True)
class Faulty:
    """What happens, one after the other, at plans that keep all of the first group."""

    marks: str
    faults: tuple[str, ...]

    def __call__(self, kept: Kept) -> Metrics:
        before = len(list(Path(self.marks).iterdir()))
        if kept[0] == 20 and before < len(self.faults):
            (Path(self.marks) / str(before)).touch()
            if self.faults[before] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.faults[before] == "raises":
                raise ModelError(f"no such plan as {list(kept)}")
        return task().evaluator.measure(kept)


def plans(fault: Kept) -> list[Kept]:
    """The plan that meets a fault among others."""
    return [(10, 10, 10, 10), (8, 12, 10, 10), fault, (6, 12, 12, 10), (4, 12, 12, 12)]


@pytest.mark.long
def test_a_worker_that_dies_is_replaced_once_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks, journal = tmp_path / "marks", tmp_path / "journal.jsonl"
    marks.mkdir()
    faulty = replace(
        task(), evaluator=OfFunction(Faulty(str(marks), ("raises", "dies", "", "dies")))
    )
    first, second = (20, 8, 8, 8), (20, 9, 8, 8)
    with Processes(2) as workers:
        with pytest.raises(ModelError, match=r"^no such plan as \[20, 8, 8, 8\]"):
            Ledger(faulty, LIMIT, journal, workers=workers).measure(plans(first))
        # A lone plan would be measured, and die, in this process.
        asked = [*plans(first), (7, 7, 7, 7)]
        found = Ledger(faulty, LIMIT, journal, workers=workers).measure(asked)[:-1]
        assert [o.reward for o in found] == [task().outcome(kept).reward for kept in plans(first)]
        assert "a worker died while plans were measured that keep [[20, 8, 8, 8]" in caplog.text
        more = plans(second)[2:] + plans(first)
        with pytest.raises(RunError, match=r"died twice.*keep \[\[20, 9, 8, 8\].*in the journal"):
            Ledger(faulty, LIMIT, journal, workers=workers).measure([*more, (6, 6, 6, 6)])
        assert len(journal.read_text().splitlines()) >= 1 + len(plans(first))
        found = Ledger(faulty, LIMIT, journal, workers=workers).measure(more)
    assert [o.kept for o in found] == more


@pytest.mark.long
def test_an_error_is_that_of_one_process(two: Processes) -> None:
    ledger = Ledger(task(), LIMIT, workers=two)
    with pytest.raises(PlanError, match=r"the budget is 0\.600"):
        ledger.measure([(10, 10, 10, 10), (20, 20, 20, 20), (8, 12, 10, 10)])
    assert [outcome.kept for outcome in ledger.history] == [(10, 10, 10, 10)]


def test_a_task_that_cannot_be_sent_says_what_to_do() -> None:
    local = replace(task(), evaluator=OfFunction(lambda kept: task().evaluator.measure(kept)))
    with Processes(2) as workers, pytest.raises(ConfigError, match=r"cannot be sent.*factory="):
        Ledger(local, LIMIT, workers=workers).measure(plans((9, 9, 9, 9)))


@pytest.mark.long
def test_a_factory_of_another_task_is_refused() -> None:
    other = partial(toy_task, budget=0.7)
    with (
        Processes(2, factory=other) as workers,
        pytest.raises(ConfigError, match=r"makes another task: budget 0\.7 there, 0\.6 now"),
    ):
        Ledger(task(), LIMIT, workers=workers).measure(plans((9, 9, 9, 9)))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "two", True, None])
def test_a_wrong_number_of_workers_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"workers is .*; give a whole number"):
        run_search(task(), "random", 3, 0, workers=wrong)


@pytest.mark.parametrize("wrong", [(20, 8, 8, 8), np.array([20, 8, 8, 8]), [3]])
def test_one_plan_is_no_list_of_plans(wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"plans is .*give a list of plans.*measure\(\[kept\]\)"):
        Ledger(task(), LIMIT).measure(wrong)


UNGUARDED = """
import prune_env
from prune_env.search import run_search
from prune_env.testing import toy_task
run_search(toy_task(budget=0.6), "random", 8, 0, workers=2)
"""


@pytest.mark.long
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "__name__ == '__main__'" in done.stderr.splitlines()[-1]


# ---- who proposes is told


class Walk:
    """Steps from the best plan so far: an optimiser that knows nothing of ledgers."""

    def __init__(self, task: PruningTask, seed: int) -> None:
        self.task, self.generator = task, np.random.default_rng(seed)
        self.at, self.reward = np.full(task.length, 0.5), -np.inf
        self.tried = self.at[None]

    def propose(self, count: int) -> list[Kept]:
        steps = self.generator.normal(0.0, 0.1, (count, self.task.length))
        self.tried = np.clip(self.at + steps, 0.0, 1.0)
        return [self.task.decode(row.tolist()) for row in self.tried]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        for row, outcome in zip(self.tried, outcomes, strict=True):
            if outcome.reward > self.reward:
                self.at, self.reward = row, outcome.reward


class Three(Walk):
    """Has no more after three plans."""

    def propose(self, count: int) -> list[Kept]:
        return super().propose(3) if self.reward == -np.inf else []


@pytest.mark.long
@pytest.mark.parametrize("together", [1, 4])
def test_what_proposes_is_a_searcher(two: Processes, together: int) -> None:
    check_searcher(proposing(Walk, together), evaluations=13, workers=two)


def test_a_search_ends_when_nothing_more_is_proposed() -> None:
    assert len(run_search(task(), "mine", 9, 0, searcher=proposing(Three, 8)).history) == 3


def test_random_plans_do_not_depend_on_how_many_are_measured_together() -> None:
    drawn = [run_search(task(), "random", count, 0).history for count in (3, TOGETHER + 3)]
    assert drawn[1][:3] == drawn[0]
