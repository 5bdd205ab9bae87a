"""Accuracy, loss and KL against a computation in float64 without PyTorch's loss functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_env.errors import DataError, ModelError
from prune_env.quality.batches import Batch
from prune_env.quality.evaluators import Evaluator, Metrics
from prune_env.testing import toy_inputs, toy_model


class Given(nn.Module):
    """Whatever comes in, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@given(seed=st.integers(0, 9999), tokens=st.booleans(), classes=st.integers(2, 6))
def test_metrics_are_what_their_definitions_say(seed: int, tokens: bool, classes: int) -> None:
    rng = np.random.default_rng(seed)
    batches, right, loss, kl = [], [], [], []
    for size in (3, 1, 5):
        shape = (size, 7) if tokens else (size,)
        logits = rng.normal(size=(*shape, classes)) * 3
        targets = rng.integers(0, classes, shape)
        targets.flat[-1] = -100 if tokens else targets.flat[-1]
        batches.append(Batch(torch.tensor(logits), torch.tensor(targets)))
        log_p, log_q = log_softmax(logits), log_softmax(logits * -0.5)
        for place in np.argwhere(targets >= 0):
            p, q, y = log_p[tuple(place)], log_q[tuple(place)], targets[tuple(place)]
            right.append(int(q.argmax()) == y)
            loss.append(-q[y])
            kl.append(float((np.exp(p) * (p - q)).sum()))
    metrics = Evaluator.of(Given(), batches)(Given(-0.5))
    assert metrics.samples == len(loss)
    assert metrics.figure == pytest.approx(np.mean(right))
    assert metrics.loss == pytest.approx(np.mean(loss), rel=1e-5)
    assert metrics.divergence == pytest.approx(np.mean(kl), rel=1e-4, abs=1e-6)
    assert metrics.share == 1
    for error, rows in (("figure", right), ("loss", loss), ("divergence", kl)):
        expected = np.std(rows, ddof=1) / math.sqrt(len(rows))
        assert vars(metrics)[f"{error}_error"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(stages=st.lists(st.integers(1, 14), max_size=4), after=st.integers(1, 14))
def test_a_hopeless_network_is_given_up_at_a_stage(stages: list[int], after: int) -> None:
    """What was measured until then is what the first samples alone measure."""
    whole = [Batch(torch.randn(3, 4, generator=seeded(k)), torch.arange(3)) for k in range(4)]
    asked: list[int] = []

    def hopeless(metrics: Metrics) -> bool:
        asked.append(metrics.samples)
        return metrics.samples >= after

    evaluator = Evaluator.of(Given(), whole, stages=sorted(stages))
    found = evaluator(Given(-0.5), hopeless)
    checks = sorted({math.ceil(stage / 3) * 3 for stage in stages} - {12, 15})
    ends = [seen for seen in checks if seen >= after]
    assert asked == [seen for seen in checks if seen <= (ends or [12])[0]]
    seen = ends[0] if ends else 12
    first = Evaluator.of(Given(), whole[: seen // 3])(Given(-0.5))
    assert found == replace(first, share=seen / 12)
    assert evaluator(Given(-0.5)).samples == 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_at_best_is_better_by_standard_errors_but_never_impossible() -> None:
    metrics = Metrics(0.9, 1.0, 0.5, 10, 1.0, 0.04, 0.2, 0.1)
    better = metrics.at_best(2)
    assert (better.figure, better.loss, better.divergence) == pytest.approx((0.98, 0.6, 0.3))
    best = metrics.at_best(99)
    assert (best.figure, best.loss, best.divergence) == (1.0, 0.0, 0.0)


def batch(classes: int = 3) -> Batch:
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    return Batch(logits, torch.tensor([0, 1, 2, 0]))


def test_the_dense_network_is_at_distance_zero_from_itself() -> None:
    metrics = Evaluator.of(Given(), [batch()])(Given())
    assert metrics.divergence == 0.0
    assert metrics == Evaluator.of(Given(), [batch()])(Given())


def test_evaluation_changes_nothing_not_even_modes() -> None:
    model = toy_model("residual").train()
    model.get_submodule("stem").eval()
    modes = [module.training for module in model.modules()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = [Batch(toy_inputs("residual"), torch.tensor([0, 4]))]
    evaluator = Evaluator.of(model, data)
    evaluator(model)
    with pytest.raises(RuntimeError, match="boom"):
        evaluator(nn.Sequential(model, Failing()))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("boom")


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int64])
def test_any_whole_number_type_may_hold_targets(kind: torch.dtype) -> None:
    metrics = Evaluator.of(Given(), [Batch(batch().inputs, batch().targets.to(kind))])(Given())
    assert metrics == Evaluator.of(Given(), [batch()])(Given())


def test_outputs_may_be_wrapped() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    assert Evaluator.of(Named(), [batch()])(Named()).divergence == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_an_error(value: float) -> None:
    evaluator = Evaluator.of(Given(), [batch()])
    with pytest.raises(
        ModelError, match="the network gives NaN or infinite outputs on the evaluation"
    ):
        evaluator(Given(value))
    with pytest.raises(ModelError, match="dense network gives NaN or infinite outputs on batch 0"):
        Evaluator.of(Given(value), [batch()])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "run from 0 to 3, but the model has 3 classes"),
        (torch.tensor([0, 1, 2, -1]), "run from -1 to 2"),
        (torch.eye(3)[[0, 1, 2, 0]], r"exactly one 1 .*argmax\(-1\)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "float32; class indices are whole numbers"),
        (torch.full((4,), -100), "nothing to evaluate"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Evaluator.of(Given(), [Batch(batch().inputs, targets)])


def test_no_batches_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to evaluate on"):
        Evaluator.of(Given(), [])
    wrong = [Batch(torch.randn(2, 5, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(
        ModelError, match=r"Residual cannot run a batch of shape \(2, 5, 8, 8\) \(batch 0\)"
    ):
        Evaluator.of(toy_model("residual"), wrong)


def test_outputs_without_logits_are_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": x}

    with pytest.raises(
        ModelError, match=r"dict of scores \(4, 3\) without logits.*output='scores'"
    ):
        Evaluator.of(Odd(), [batch()])
