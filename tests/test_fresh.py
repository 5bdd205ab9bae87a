"""Fresh samples: every plan its own, beside a reference plan, charged, the same for any worker."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_env import Ledger, PruningTask
from prune_env.mdp.candidates import CandidateEvaluator
from prune_env.quality.fresh import Fresh, beside
from prune_env.search import run_search
from prune_env.search.questions import SHARE
from prune_env.search.searchers import searcher_named
from prune_env.testing import check_searcher, toy_inputs, toy_model

SIZES: dict[str, Any] = {
    "calibration_samples": 24, "reward_samples": 40, "repair_samples": 8, "batch_size": 8,
    "budget": 0.6, "precision": "float32",
}  # fmt: skip


def batches(count: int = 40) -> list[tuple[Any, Tensor]]:
    return [(toy_inputs("residual", seed, 8), torch.arange(8) % 5) for seed in range(count)]


def task_of(fresh: int = 160, count: int = 40, **options: Any) -> PruningTask:
    return PruningTask.from_model(
        toy_model("residual"), batches(count), fresh_samples=fresh, **SIZES, **options
    )


@pytest.fixture(scope="module")
def task() -> PruningTask:
    return task_of()


def plans(task: PruningTask, count: int) -> list[tuple[int, ...]]:
    asked = np.random.default_rng(0).random((count, task.length))
    return list(dict.fromkeys(task.decode(row.tolist()) for row in asked))


def parts(task: PruningTask) -> tuple[CandidateEvaluator, Fresh]:
    evaluator = task.evaluator
    assert isinstance(evaluator, CandidateEvaluator)
    assert evaluator.fresh is not None
    return evaluator, evaluator.fresh


def test_they_are_other_samples_than_those_that_repair_and_pay(task: PruningTask) -> None:
    evaluator, fresh = parts(task)
    groups = (evaluator.calibration, evaluator.quality.batches, fresh.evaluator.batches)
    seen = [torch.cat([batch.inputs for batch in group]) for group in groups]  # type: ignore[misc]
    assert [len(part) for part in seen] == [24, 40, 160]
    every = torch.cat(seen).flatten(1)
    assert len(every.unique(dim=0)) == len(every)
    plain = task_of(fresh=0)
    assert plain.dense == task.dense
    kept = plans(task, 1)[0]
    assert plain.outcome(kept) == task.outcome(kept)
    assert plain.fingerprint == {k: v for k, v in task.fingerprint.items() if k != "fresh samples"}


def test_a_part_that_is_all_says_what_all_say(task: PruningTask) -> None:
    evaluator, fresh = parts(task)
    for kept in plans(task, 3):
        every = fresh.evaluator(evaluator.candidate(kept))
        found = evaluator.look(kept, fresh.samples, task.reference)
        assert found.divergence == pytest.approx(every.divergence, rel=1e-6)
        assert found.loss == pytest.approx(every.loss, rel=1e-6)
        assert found.figure == pytest.approx(every.figure, abs=1e-6)
        assert found.share == (fresh.samples + 8) / (40 + 8), "the repair's samples are charged too"
    assert task.glimpse(task.reference, 0.2).metrics.divergence_error == pytest.approx(0, abs=1e-9)


def test_the_ratio_to_the_reference_is_nearer_to_the_truth_than_the_part(task: PruningTask) -> None:
    """On average over plans beside it, each on eight samples of its own."""
    evaluator, fresh = parts(task)
    misses = []
    offset_NG = np.random.default_rng(0).uniform(-0.1, 0.1, (40, task.length))
    near = dict.fromkeys(task.beside(row.tolist()) for row in offset_NG)
    for kept in near:
        rows = evaluator._rows(kept, range(20))
        every = float(torch.cat([row["divergence"] for row in rows]).mean())
        part = fresh.part(kept, 8)
        alone = float(torch.cat([rows[n]["divergence"] for n in part]).mean())
        estimate = task.glimpse(kept, 0.2).metrics
        misses.append((abs(math.log(alone / every)), abs(math.log(estimate.divergence / every))))
    raw, paired = np.mean(misses, 0)
    assert paired < 0.8 * raw


def test_the_error_is_that_of_the_residuals() -> None:
    rows, reference = ([{"divergence": torch.rand(8, generator=torch.Generator().manual_seed(s))}]
                       for s in (0, 1))  # fmt: skip
    task = task_of(fresh=16)
    _, fresh = parts(task)
    rows = [{**row, "loss": row["divergence"], "accuracy": row["divergence"]} for row in rows]
    both = [{**row, "loss": row["divergence"], "accuracy": row["divergence"]} for row in reference]
    other = [{name: value.flip(0) * 3 for name, value in both[0].items()}]
    found = beside(fresh, (0,), rows, both + other)
    ours, theirs = rows[0]["divergence"].double(), both[0]["divergence"].double()
    whole = (theirs.sum() + 3 * theirs.sum()) / 16
    ratio = ours.mean() / theirs.mean()
    assert found.divergence == pytest.approx(float(ratio * whole), rel=1e-6)
    left = (ours - ratio * theirs).std() / math.sqrt(8)
    assert found.divergence_error == pytest.approx(float(left * whole / theirs.mean()), rel=1e-6)
    nothing = [{name: torch.zeros(8) for name in both[0]}] * 2
    assert beside(fresh, (0,), rows, nothing).divergence == pytest.approx(float(ours.mean()))


def test_the_plan_decides_what_it_is_measured_on(task: PruningTask) -> None:
    _, fresh = parts(task)
    some = plans(task, 30)
    starts = {fresh.part(kept, 8)[0] for kept in some}
    assert len(starts) > 8
    assert all(len(fresh.part(kept, 20)) == 3 for kept in some)
    assert [task.glimpse(kept, 0.2) for kept in some[:5]] == [
        task_of().glimpse(kept, 0.2) for kept in reversed(some[:5])
    ][::-1]


def test_the_reference_is_charged_once_and_nothing_that_is_glimpsed_at_wins(
    task: PruningTask, tmp_path: Path
) -> None:
    ledger = Ledger(task, 30, tmp_path / "journal.jsonl")
    some = plans(task, 6)
    ledger.glimpse(some[:4], 0.2)
    ledger.glimpse(some[4:], 0.2)
    assert ledger.charged == pytest.approx((160 + 8 + (8 + 8) * len(some)) / (40 + 8))
    assert [o.kept for o in ledger.looks] == [task.reference, *some]
    assert not any(outcome.eligible for outcome in ledger.history)
    ledger.measure(some[:1])
    assert ledger.best.kept == some[0]
    assert ledger.seen == [ledger.best]
    again = Ledger(task, 30, tmp_path / "journal.jsonl")
    again.glimpse(some[:2], 0.2)
    assert again.history == ledger.history[:3]


@pytest.mark.long
def test_a_surrogate_search_starts_from_what_groups_lose_alone(task: PruningTask) -> None:
    """On a part of the samples, for half of the evaluations at most; all else is in full."""
    found = run_search(task, "surrogate", 24, 0)
    probes = [outcome for outcome in found.history if outcome.metrics.share < 1]
    whole, full = tuple(group.units for group in task.groups), found.history[len(probes) :]
    cut = [[n for n in range(4) if o.kept[n] != whole[n]] for o in probes]
    assert cut[0] == []
    assert all(cut[1:].count([n]) >= 2 for n in range(4))
    assert sum(outcome.metrics.share for outcome in probes) <= 0.6 * 24
    assert all(outcome.eligible for outcome in full)
    assert len({outcome.kept for outcome in full}) == len(full) >= 9
    few = run_search(task, "surrogate", 3, 0)
    assert all(outcome.eligible for outcome in few.history), "nothing for two levels of each group"


def test_probes_of_a_share_all_see_the_same_first_samples(task: PruningTask) -> None:
    """Levels beyond the budget too; none of them wins, whatever it is paid."""
    whole, ledger = [group.units for group in task.groups], Ledger(task, 30)
    some = [whole, *plans(task, 2)]
    outcomes = ledger.probe(some, 0.2)
    assert [o.metrics for o in outcomes] == [task.evaluator.measure(o.kept, 8) for o in outcomes]
    assert ledger.charged == pytest.approx(3 * (8 + 8) / (40 + 8))
    assert not any(outcome.eligible for outcome in outcomes)
    assert ledger.seen == ledger.looks == []
    assert task.probe(some[1]).metrics == task.outcome(some[1]).metrics


def test_a_surrogate_search_keeps_the_contract() -> None:
    check_searcher(searcher_named("surrogate"), evaluations=24)


def test_a_loader_that_is_too_short_says_how_many_are_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    short = task_of(fresh=160, count=12)
    assert "32 of the 160 fresh_samples asked for are left" in caplog.text
    assert short.evaluator.fresh_samples == 32
    none = task_of(fresh=160, count=8)
    assert "0 of the 160 fresh_samples" in caplog.text
    assert none.widest == 0.0
    assert none.glimpse(none.reference, 0.5).metrics.samples == 24


def test_a_function_of_ones_own_has_no_fresh_samples() -> None:
    task = task_of(objective=lambda model: 0.5)
    assert task.evaluator.fresh_samples == 0
    ledger = Ledger(task, 5)
    ledger.glimpse([task.reference], 0.5)
    assert ledger.charged == 1
    assert SHARE in replace(ledger._rows[0]).asked
