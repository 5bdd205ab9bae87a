"""Honest accounting: what is charged, what is remembered, what a kill cannot spoil."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_env.errors import PlanError, RunError
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Hopeless, Metrics
from prune_env.search.ledger import Exhausted, Ledger
from prune_env.storage import SEAL
from prune_env.testing import check_searcher, toy_task


def search(ledger: Ledger, seed: int) -> None:
    """Plans from an arithmetic sequence, forever."""
    for number in range(10_000):
        sparsity = ((seed + 1) * (number + 1) * 0.37) % 1.0
        ledger.measure([ledger.task.decode([sparsity, 0.5, 0.2, sparsity])])


def untimed(lines: list[str]) -> list[dict[str, Any]]:
    """Rows of a journal without the times, which no two runs share."""
    timed = ("seconds", SEAL)
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines[1:]]


def counted(task: PruningTask) -> tuple[PruningTask, list[tuple[int, ...]]]:
    """The task, and the list of plans it was really asked to measure."""
    calls: list[tuple[int, ...]] = []

    @functools.wraps(task.evaluator.function)
    def evaluate(kept: tuple[int, ...]) -> Metrics:
        calls.append(kept)
        return task.evaluator.measure(kept)

    return replace(task, evaluator=OfFunction(evaluate)), calls


def test_every_question_is_charged_and_every_plan_measured_once() -> None:
    task, calls = counted(toy_task(budget=0.6))
    ledger = Ledger(task, 3)
    plan = task.decode([0.0] * 4)
    for spent in range(3):
        assert (ledger.spent, ledger.exhausted) == (spent, False)
        ledger.measure([plan])
    assert ledger.exhausted
    with pytest.raises(Exhausted):
        ledger.measure([plan])
    assert (len(calls), ledger.spent) == (1, 3)


class Raced(OfFunction):
    """Every plan has one stage."""

    @property
    def stages(self) -> tuple[int, ...]:
        return (1,)

    def measure(
        self, kept: tuple[int, ...], samples: int | None = None, hopeless: Hopeless | None = None
    ) -> Metrics:
        metrics = self.function(kept)
        return replace(metrics, share=0.25) if hopeless and hopeless(metrics) else metrics


def raced(task: PruningTask) -> PruningTask:
    """The toy task, in which a plan behind the best costs a quarter."""

    return replace(task, evaluator=Raced(task.evaluator.measure))


def test_a_plan_given_up_early_costs_its_share(tmp_path: Path) -> None:
    task = raced(toy_task(budget=0.6))
    ledger = Ledger(task, 9, tmp_path / "journal.jsonl")
    best = ledger.run(search, seed=1)
    shares = [outcome.metrics.share for outcome in ledger.history]
    assert set(shares) == {0.25, 1.0}
    assert shares[0] == best.metrics.share == 1.0
    assert ledger.charged == sum(shares) >= 9 > ledger.charged - shares[-1]
    assert (ledger.exhausted, ledger.left) == (True, 0.0)
    running, first = -1.0, dict[tuple[int, ...], Outcome]()
    for outcome in ledger.history:
        if outcome.kept not in first:
            assert (outcome.metrics.share < 1) == (outcome.reward < running)
        known = first.setdefault(outcome.kept, outcome)
        assert outcome == known, "what is known in full, or given up, stays so"
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
        ledger.measure([(20, 20, 20, 20)])
    assert ledger.spent == 0


def test_the_reserve_is_not_spent() -> None:
    ledger = Ledger(toy_task(budget=0.6), 5)
    with ledger.reserved(2):
        search(ledger, seed=1)
    assert (ledger.spent, ledger.left) == (3, 2.0)
    with pytest.raises(Exhausted):
        search(ledger, seed=2)
    assert (ledger.spent, ledger.left) == (5, 0.0)


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
    rows = [json.loads(line) for line in lines[1:]]
    assert [row["outcome"]["kept"] for row in rows] == [list(o.kept) for o in whole.history]
    rest = lines[1 + done][:torn] if done < 9 else ""
    journal.write_text("".join(lines[: 1 + done]) + rest)
    task, calls = counted(toy_task(budget=0.6))
    again = Ledger(task, 9, journal)
    again.run(search, seed=2)
    assert again.history == whole.history
    assert len(calls) == 9 - done
    assert untimed(journal.read_text().splitlines()) == untimed(lines)
    assert len(again.seconds) == 9
    assert again.seconds[:done] == whole.seconds[:done], "times of replayed ones"


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
    assert len(journal.read_text().splitlines()) - 1 == longer.spent == 6


@pytest.mark.parametrize("seed", range(4))
def test_a_search_goes_on_from_any_rows_in_any_order(tmp_path: Path, seed: int) -> None:
    """Of another search of the same task too, here one of another seed."""
    journal, shuffled = tmp_path / "journal.jsonl", random.Random(seed)
    whole = Ledger(raced(toy_task(budget=0.6)), 9, journal)
    whole.run(search, seed=2)
    head, *rows = journal.read_text().splitlines(keepends=True)
    others = Ledger(raced(toy_task(budget=0.6)), 5, tmp_path / "other.jsonl")
    others.run(search, seed=3)
    known = shuffled.sample(rows, 6)
    mixed = known + (tmp_path / "other.jsonl").read_text().splitlines(keepends=True)[1:]
    journal.write_text(head + "".join(shuffled.sample(mixed, len(mixed))))
    again = Ledger(raced(toy_task(budget=0.6)), 9, journal)
    again.run(search, seed=2)
    assert again.history == whole.history
    assert again.digest == whole.digest
    again.settle()
    assert untimed(journal.read_text().splitlines()) == untimed([head, *rows])


def test_the_journal_of_another_task_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    Ledger(toy_task(target=0.3, budget=0.6), 3, journal).run(search, seed=0)
    text = journal.read_text()
    with pytest.raises(RunError, match=r"of another task: evaluate .*0\.3.* there, .*0\.4.* now"):
        Ledger(toy_task(target=0.4, budget=0.6), 3, journal)
    with pytest.raises(RunError, match=r"of another task: budget 0\.6 there, 0\.7 now"):
        Ledger(toy_task(target=0.3, budget=0.7), 3, journal)
    assert journal.read_text() == text


def test_every_damaged_bit_of_a_journal_is_refused(tmp_path: Path) -> None:
    """But for the last line end, whose loss looks like a kill: that row is measured again."""
    journal = tmp_path / "journal.jsonl"
    Ledger(toy_task(budget=0.6), 2, journal).run(search, seed=0)
    data, draw = journal.read_bytes(), random.Random(0)
    for place in draw.sample(range(len(data) - 1), 150):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        journal.write_bytes(damaged)
        with pytest.raises(RunError, match=r"is not a search journal, or is damaged"):
            Ledger(toy_task(budget=0.6), 2, journal)


def test_a_row_of_another_journal_is_refused(tmp_path: Path) -> None:
    for number, target in enumerate((0.3, 0.4)):
        task = toy_task(target=target, budget=0.6)
        Ledger(task, 2, tmp_path / f"{number}.jsonl").run(search, seed=0)
    ours, theirs = ((tmp_path / f"{n}.jsonl").read_text().splitlines(True) for n in (0, 1))
    (tmp_path / "0.jsonl").write_text("".join([*ours, theirs[-1]]))
    with pytest.raises(RunError, match="line 4: it comes from the journal of another task"):
        Ledger(toy_task(target=0.3, budget=0.6), 2, tmp_path / "0.jsonl")


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
    ledger.measure([ledger.task.decode([next(FORGETFUL), 0.5, 0.5, 0.5])])


FORGETFUL = iter([number / 10 for number in range(10)])


def silent(ledger: Ledger, seed: int) -> None:
    return


def greedy(ledger: Ledger, seed: int) -> None:
    ledger.measure([(20,) * ledger.task.length])


@pytest.mark.parametrize(
    ("broken", "error"), [(forgetful, AssertionError), (silent, RunError), (greedy, PlanError)]
)
def test_broken_searchers_are_caught(broken: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_searcher(broken)  # type: ignore[arg-type]
