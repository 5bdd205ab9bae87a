"""Honest accounting: what is charged, what is remembered, what a kill cannot spoil."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_env.errors import PlanError, RunError
from prune_env.mdp.ledger import Exhausted, Ledger
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.measure.evaluators import Hopeless, Metrics
from prune_env.testing import check_searcher, toy_task


def search(ledger: Ledger, seed: int) -> None:
    """Plans from an arithmetic sequence, forever."""
    for number in range(10_000):
        sparsity = ((seed + 1) * (number + 1) * 0.37) % 1.0
        ledger.measure(ledger.task.decode([sparsity, 0.5, 0.2, sparsity]))


def untimed(lines: list[str]) -> list[dict[str, Any]]:
    """Rows of a journal without the times, which no two runs share."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def counted(task: PruningTask) -> tuple[PruningTask, list[tuple[int, ...]]]:
    """The task, and the list of plans it was really asked to measure."""
    calls: list[tuple[int, ...]] = []

    def evaluate(kept: tuple[int, ...]) -> Metrics:
        calls.append(kept)
        return task.evaluate(kept)

    return replace(task, evaluate=evaluate), calls


def test_every_measurement_is_charged_repeated_ones_too() -> None:
    task, calls = counted(toy_task(budget=0.6))
    ledger = Ledger(task, 3)
    plan = task.decode([0.0] * 4)
    for spent in range(3):
        assert (ledger.spent, ledger.exhausted) == (spent, False)
        ledger.measure(plan)
    assert ledger.exhausted
    with pytest.raises(Exhausted):
        ledger.measure(plan)
    assert len(calls) == ledger.spent == 3


def raced(task: PruningTask) -> PruningTask:
    """The toy task, in which a plan behind the best costs a quarter."""

    def race(kept: tuple[int, ...], hopeless: Hopeless) -> Metrics:
        metrics = task.evaluate(kept)
        return replace(metrics, share=0.25) if hopeless(metrics) else metrics

    return replace(task, race=race)


def test_a_plan_given_up_early_costs_its_share(tmp_path: Path) -> None:
    task = raced(toy_task(budget=0.6))
    ledger = Ledger(task, 9, tmp_path / "journal.jsonl")
    best = ledger.run(search, seed=1)
    shares = [outcome.metrics.share for outcome in ledger.history]
    assert set(shares) == {0.25, 1.0}
    assert shares[0] == best.metrics.share == 1.0
    assert ledger.charged == sum(shares) >= 9 > ledger.charged - shares[-1]
    assert (ledger.exhausted, ledger.left) == (True, 0.0)
    running = -1.0
    for outcome in ledger.history:
        assert (outcome.metrics.share < 1) == (outcome.reward < running)
        running = max(running, outcome.reward)
    again = Ledger(task, 9, tmp_path / "journal.jsonl")
    again.run(search, seed=1)
    assert again.history == ledger.history


def test_a_search_ends_at_the_limit_with_the_earliest_best() -> None:
    task = toy_task(budget=0.6)
    heard: list[tuple[int, float]] = []
    ledger = Ledger(task, 9, on_outcome=lambda led, out: heard.append((led.spent, out.reward)))
    best = ledger.run(search, seed=1)
    rewards = [outcome.reward for outcome in ledger.history]
    assert ledger.spent == 9
    assert heard == list(enumerate(rewards, start=1))
    assert best is ledger.history[rewards.index(max(rewards))]


def test_a_plan_over_budget_is_refused_and_not_charged() -> None:
    ledger = Ledger(toy_task(budget=0.6), 5)
    with pytest.raises(PlanError, match=r"the budget is 0\.600"):
        ledger.measure((20, 20, 20, 20))
    assert ledger.spent == 0


def test_a_search_without_a_plan_is_an_error() -> None:
    with pytest.raises(RunError, match=r"measured no plan\. It must call ledger\.measure"):
        Ledger(toy_task(budget=0.6), 5).run(lambda ledger, seed: None, seed=0)


@pytest.mark.parametrize("torn", [0, 1, 40])
@pytest.mark.parametrize("done", [0, 1, 5, 9])
def test_a_killed_search_resumes_to_the_same_end(tmp_path: Path, done: int, torn: int) -> None:
    journal = tmp_path / "runs" / "journal.jsonl"
    whole = Ledger(toy_task(budget=0.6), 9, journal)
    whole.run(search, seed=2)
    lines = journal.read_text().splitlines(keepends=True)
    assert [json.loads(line)["kept"] for line in lines] == [list(o.kept) for o in whole.history]
    rest = lines[done][:torn] if done < 9 else ""
    journal.write_text("".join(lines[:done]) + rest)
    task, calls = counted(toy_task(budget=0.6))
    again = Ledger(task, 9, journal)
    known = again.journalled
    again.run(search, seed=2)
    assert again.history == whole.history
    assert len(calls) == 9 - done
    assert untimed(journal.read_text().splitlines()) == untimed(lines)
    assert len(again.seconds) == 9
    assert again.seconds[: len(known)] == whole.seconds[: len(known)], "times of replayed ones"


def test_a_torn_line_is_dropped_from_the_file_at_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    Ledger(toy_task(budget=0.6), 2, journal).run(search, seed=0)
    text = journal.read_text()
    journal.write_text(text + '{"kept": [1')
    Ledger(toy_task(budget=0.6), 2, journal)
    assert journal.read_text() == text


def test_a_longer_search_goes_on_where_the_journal_ends(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    Ledger(toy_task(budget=0.6), 3, journal).run(search, seed=0)
    longer = Ledger(toy_task(budget=0.6), 6, journal)
    longer.run(search, seed=0)
    assert len(journal.read_text().splitlines()) == longer.spent == 6


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    Ledger(toy_task(budget=0.6), 3, journal).run(search, seed=0)
    text = journal.read_text()
    with pytest.raises(RunError, match=r"is of another search: its plan 0 .*Delete the file"):
        Ledger(toy_task(budget=0.6), 3, journal).run(search, seed=1)
    assert journal.read_text() == text


@pytest.mark.parametrize(
    "content", [b"nonsense\n", b"[]\n", b'{"kept": [1]}\n', b"\xff\xfe\x81\n", b"{}\n{}\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(content)
    with pytest.raises(RunError, match=r"is not a search journal.*Delete it"):
        Ledger(toy_task(budget=0.6), 3, journal)
    assert journal.read_bytes() == content


def test_a_journal_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write '.*Choose a folder you may write to"):
        Ledger(toy_task(budget=0.6), 3, tmp_path / "file" / "journal.jsonl").run(search, seed=0)


def test_outcomes_come_back_from_the_journal_to_the_bit(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    first: Outcome = Ledger(toy_task(budget=0.6), 1, journal).run(search, seed=0)
    second: Outcome = Ledger(toy_task(budget=0.6), 1, journal).run(search, seed=0)
    assert first == second
    assert first.reward == second.reward


# ---- the contract of searchers catches each broken clause


def test_a_good_searcher_passes() -> None:
    check_searcher(search)


def forgetful(ledger: Ledger, seed: int) -> None:
    ledger.measure(ledger.task.decode([next(FORGETFUL), 0.5, 0.5, 0.5]))


FORGETFUL = iter([number / 10 for number in range(10)])


def silent(ledger: Ledger, seed: int) -> None:
    return


def greedy(ledger: Ledger, seed: int) -> None:
    ledger.measure((20,) * ledger.task.length)


@pytest.mark.parametrize(
    ("broken", "error"), [(forgetful, AssertionError), (silent, RunError), (greedy, PlanError)]
)
def test_broken_searchers_are_caught(broken: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_searcher(broken)  # type: ignore[arg-type]
