"""Plans that are to be tuned: measured after the first steps of a tuning, charged for them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_env import FinetuneSettings, PruningTask, compress, finetune
from prune_env.errors import ConfigError, RunError
from prune_env.mdp.candidates import CandidateEvaluator
from prune_env.recovery.short import PASSES
from prune_env.recovery.training import Tuning
from prune_env.search import Ledger, Processes, run_search
from prune_env.search.screening import FINALISTS, LOOKS
from prune_env.search.searchers import JOURNAL, searcher_named
from prune_env.structure.entry import copy_of
from prune_env.testing import toy_inputs, toy_model

SIZES: dict[str, Any] = {
    "calibration_samples": 24, "reward_samples": 40, "repair_samples": 8, "batch_size": 8,
    "budget": 0.6, "precision": "float32", "tuned_steps": 6,
}  # fmt: skip
TUNING = Tuning(FinetuneSettings(learning_rate=0.05, distill_weight=0.8))


def batches(count: int = 40) -> list[tuple[Any, Tensor]]:
    return [(toy_inputs("residual", seed, 8), torch.arange(8) % 5) for seed in range(count)]


def task_of(count: int = 40, **options: Any) -> PruningTask:
    chosen = {**SIZES, "goal": "tuned", **options}
    return PruningTask.from_model(toy_model("residual"), batches(count), **chosen)


@pytest.fixture(scope="module")
def task() -> PruningTask:
    return task_of().tuned_by(TUNING)


def evaluator_of(task: PruningTask) -> CandidateEvaluator:
    assert isinstance(task.evaluator, CandidateEvaluator)
    return task.evaluator


def plans(task: PruningTask, count: int) -> list[tuple[int, ...]]:
    asked = np.random.default_rng(0).random((count, task.length))
    return list(dict.fromkeys(task.decode(row.tolist()) for row in asked))


def trainable(network: nn.Module, like: nn.Module) -> nn.Module:
    ours = copy_of(network)
    for name, parameter in like.named_parameters():
        ours.get_parameter(name).requires_grad_(parameter.requires_grad)
    return ours


def test_what_pays_is_an_epoch_of_finetune_on_the_same_batches(task: PruningTask) -> None:
    """`finetune` is the reference: to the bit, with the dense network as its teacher."""
    evaluator, dense = evaluator_of(task), toy_model("residual")
    short = evaluator.short
    assert short is not None
    assert len(short.batches) == 6
    data = [(batch.inputs, batch.targets) for batch in short.batches]
    once = dataclasses.replace(TUNING.settings, epochs=1)
    for kept in plans(task, 3):
        candidate = copy_of(evaluator.candidate(kept))
        reference = finetune(
            trainable(candidate, dense), data, data, settings=once, teacher=dense,
            objective=task.objective,
        ).last  # fmt: skip
        found = task.as_measured(candidate)
        assert all(torch.equal(found.state_dict()[name], reference[name]) for name in reference)
        assert evaluator.quality(found) == task.outcome(kept).metrics
        assert not found.training


def test_no_sample_that_pays_is_tuned_on_and_the_dense_network_stays(task: PruningTask) -> None:
    evaluator = evaluator_of(task)
    assert evaluator.short is not None
    groups = (evaluator.calibration, evaluator.quality.batches, evaluator.short.batches)
    seen = torch.cat([batch.inputs for group in groups for batch in group])  # type: ignore[misc]
    assert len(seen) == 24 + 40 + 6 * 8
    assert len(seen.flatten(1).unique(dim=0)) == len(seen)
    before = {k: v.clone() for k, v in evaluator.model.state_dict().items()}
    task.outcome(plans(task, 1)[0])
    after = evaluator.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_is_charged_and_what_is_measured_as_it_is_costs_less(task: PruningTask) -> None:
    plain, kept = task_of(goal="as_is"), plans(task, 1)[0]
    assert evaluator_of(task).passes == 40 + 8 + PASSES * 6 * 8, "8 for the repair"
    assert evaluator_of(plain).passes == 40 + 8
    assert evaluator_of(task_of(repair="least_squares")).passes == 40 + PASSES * 6 * 8
    assert task.tunes
    assert not plain.tunes
    assert not PruningTask.tuned_by(plain, TUNING).tunes
    measured, as_it_is = task.outcome(kept), plain.outcome(kept)
    assert measured.metrics.share == 1
    assert measured.eligible
    assert measured.metrics.divergence != as_it_is.metrics.divergence
    for looked in (task.probe(kept), task.glimpse(kept, 1.0)):
        assert looked.metrics.divergence == as_it_is.metrics.divergence
        assert looked.metrics.share == 48 / evaluator_of(task).passes
        assert not looked.eligible
    assert task.glimpse(kept, 0.2).metrics.share == 16 / evaluator_of(task).passes
    ledger = Ledger(task, 10)
    ledger.measure([kept])
    (probed,) = ledger.probe([kept])
    assert probed.metrics == task.probe(kept).metrics, "another measurement of the same plan"
    assert ledger.charged == 1 + 48 / evaluator_of(task).passes
    assert ledger.best == measured


def test_the_goal_is_in_the_fingerprint_and_the_default_is_not(tmp_path: Path) -> None:
    plain, tuned = task_of(goal="as_is"), task_of()
    assert "tuning" not in plain.fingerprint
    run_search(tuned, "random", 2, 0, tmp_path)
    with pytest.raises(RunError, match="tuning"):
        run_search(plain, "random", 2, 0, tmp_path)
    with pytest.raises(RunError, match="tuning"):
        run_search(tuned.tuned_by(TUNING), "random", 2, 0, tmp_path)


@pytest.mark.long
def test_a_search_resumes_and_shares_workers_as_ever(task: PruningTask, tmp_path: Path) -> None:
    """All that a searcher may ask for: looks, full measurements and, of another one, probes."""
    with Processes(2) as two:
        for name in ("surrogate", "sensitivity_measured"):
            one = run_search(task, name, 6, 0, tmp_path / name)
            journal = tmp_path / name / JOURNAL
            head, *rows = journal.read_text().splitlines(keepends=True)
            journal.write_text("".join([head, *rows[1::2]]))
            assert run_search(task, name, 6, 0, tmp_path / name).history == one.history
            assert run_search(task, name, 6, 0, workers=two).history == one.history


def test_single_weights_that_went_stay_zero(task: PruningTask) -> None:
    weights = task_of(units="unstructured").tuned_by(TUNING)
    kept = weights.reference
    candidate = copy_of(evaluator_of(weights).candidate(kept))
    zeros = {n: p == 0 for n, p in candidate.named_parameters() if p.ndim > 1 and (p == 0).any()}
    assert zeros
    tuned = weights.as_measured(candidate)
    for name, gone in zeros.items():
        now = tuned.get_parameter(name)
        assert bool((now[gone] == 0).all())
        assert not torch.equal(now, candidate.get_parameter(name))


def test_too_few_batches_are_said_and_calibration_samples_are_met_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        short = evaluator_of(task_of(9)).short
    assert short is not None
    assert "4 batches are left to tune on" in caplog.text
    assert "1.5 times" in caplog.text
    assert len(short.batches) == 4
    paid = evaluator_of(task_of(9)).quality.batches
    rows = [torch.cat([batch.inputs for batch in part]) for part in (short.batches, paid)]  # type: ignore[misc]
    assert not (rows[0][:, None] == rows[1]).flatten(2).all(-1).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"goal": "finetuned"}, "goal is 'finetuned'"),
        ({"tuned_steps": 0}, "tuned_steps"),
        ({"stages": (8, 16)}, "Leave stages out"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(wrong: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PruningTask.from_model(toy_model("residual"), [], **{**SIZES, "goal": "tuned", **wrong})


def test_without_teacher_or_loss_there_is_nothing_to_descend() -> None:
    own = task_of(objective=lambda network: 1.0)
    with pytest.raises(ConfigError, match="loss"):
        own.outcome(own.reference)

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets)

    told = own.tuned_by(Tuning(loss=cross_entropy))
    assert told.outcome(told.reference).metrics.figure == 1.0
    assert told.glimpse(told.reference, 0.5).metrics.share == 0.5


@pytest.mark.long
def test_compress_measures_by_the_tuning_that_follows() -> None:
    made: list[nn.Module] = []

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made.append(model)
        return torch.optim.Adam(model.parameters(), 1e-3)

    train, val = batches(30), batches(34)[30:]
    result = compress(
        toy_model("residual"), train, val, searcher="uniform", evaluations=1, epochs=1,
        optimizer=optimizer, goal="tuned", progress=False, **SIZES,
    )  # fmt: skip
    assert len(made) == 1 + 1 + 1, "to be paid, to be measured on val as it was paid, to be kept"
    row = result.results["rows"][-1]
    assert row["kl_held_out"] > 0


def test_looks_come_before_what_is_tuned_and_the_uniform_plan_is_tuned_too(
    task: PruningTask,
) -> None:
    ledger = Ledger(task, 10)
    ledger.run(searcher_named("surrogate"), 0)
    kinds = [outcome.metrics.share == 1 for outcome in ledger.history]
    first = kinds.index(True)
    assert all(kinds[first:])
    assert 0 < first <= LOOKS + 4
    assert sum(kinds) > FINALISTS - 2
    assert task.reference in [outcome.kept for outcome in ledger.history[first:]]
    assert ledger.best == max(ledger.history[first:], key=lambda outcome: outcome.rank)
