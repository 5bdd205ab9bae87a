"""Padding is no data: what is measured is the same with any amount of it, on either side.

Legend: B samples, T positions, H width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_outputs import SIZES, causal, close, rows, seeded
from torch import Tensor, nn
from toys import figures

from prune_env import PruningTask, find_groups
from prune_env.calibration.gradients import loss_gradients
from prune_env.calibration.routing import measure_routing
from prune_env.calibration.statistics import calibrate
from prune_env.quality.batches import Batch
from prune_env.quality.evaluators import Evaluator
from prune_env.quality.padding import data_positions, data_rows
from prune_env.quality.shift import one_ahead
from prune_env.recovery.epoch import evaluate
from prune_env.repair.repairs import reestimate_batchnorm
from prune_env.structure.groups import PrunableGroup

transformers = pytest.importorskip("transformers")


class Tagger(nn.Module):
    """A label for every token: a convolution over time, norms, and rows laid flat on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(64, 12)
        self.mix, self.norm = nn.Conv1d(12, 12, 1), nn.BatchNorm1d(12)
        self.wide, self.flat, self.head = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x_BTH = self.tokens(input_ids)
        x_BTH = self.norm(self.mix(x_BTH.mT)).relu().mT
        rows_NH = self.flat(self.wide(x_BTH.flatten(0, 1))).relu()
        logits: Tensor = self.head(rows_NH).reshape(*input_ids.shape, -1)
        return logits


def tagger() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().eval()


def reader() -> nn.Module:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_labels": 5, "num_hidden_layers": 1}
    model: nn.Module = transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


CAUSAL = ("llama", "mixtral")
LEFT = (*CAUSAL, "tagger")
"""Networks whose positions are relative, so that padding may stand before the data."""
ALL = (*LEFT, "reader")


@cache
def network(name: str) -> tuple[nn.Module, tuple[PrunableGroup, ...]]:
    made = {"tagger": tagger, "reader": reader}.get(name, lambda: causal(name, num_hidden_layers=1))
    model = made()
    groups = find_groups(model, {"input_ids": rows()[0]})
    return model, tuple(group for group in groups if not group.frozen)


def targets_of(name: str, ids: Tensor) -> Tensor:
    kinds = {"tagger": ids % 5, "reader": ids[:, 0] % 5}
    return kinds.get(name, one_ahead(ids))


def batches(name: str, left: int = 0, right: int = 0, fill: int = 0) -> list[Batch]:
    """The same sentences with so many padded positions before and behind."""
    found = []
    for ids in rows():
        targets = targets_of(name, ids)
        if targets.ndim == 2:
            targets = F.pad(targets, (left, right), value=-100)
        inputs = {
            "input_ids": F.pad(ids, (left, right), value=fill),
            "attention_mask": F.pad(torch.ones_like(ids), (left, right)),
        }
        found.append(Batch(inputs, targets))
    return found


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Up to rounding, beside the largest of all: some gradients are 0 but for that."""
    assert set(ours) == set(theirs)
    scale = max(float(tensor.abs().max()) for tensor in theirs.values())
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=4)
@given(left=st.integers(0, 9), right=st.integers(0, 9), fill=st.integers(0, 63))
def test_padding_changes_nothing(name: str, left: int, right: int, fill: int) -> None:
    """Moments, gradients, metrics and what fine-tuning selects by."""
    model, groups = network(name)
    left = left if name in LEFT else 0
    plain, padded = batches(name), batches(name, left, right, fill)
    moments = [calibrate(model, data, groups, positions=None).moments for data in (padded, plain)]
    for part in ("covariance_DD", "mean_D"):
        same(*({key: getattr(one, part) for key, one in found.items()} for found in moments))
    assert all(moments[0][key].count == moments[1][key].count for key in moments[1])
    same(*(loss_gradients(model, data) for data in (padded, plain)))
    ours, theirs = (Evaluator.of(model, data)(_nudged(model)) for data in (padded, plain))
    assert close(ours, theirs)
    ours, theirs = (evaluate(model, data) for data in (padded, plain))  # type: ignore[assignment]
    assert figures(ours) == pytest.approx(figures(theirs), rel=1e-4, nan_ok=True)


@cache
def _nudged(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    return other


@given(left=st.integers(0, 9), right=st.integers(0, 9))
@settings(max_examples=4)
def test_padding_is_sent_to_no_expert(left: int, right: int) -> None:
    model, _ = network("mixtral")
    experts = {"model.layers.0.mlp.experts": 4}
    ours, theirs = (
        measure_routing(model, data, experts)
        for data in (batches("mixtral", left, right), batches("mixtral"))
    )
    for path, routing in theirs.items():
        assert ours[path].tokens == routing.tokens
        assert torch.equal(ours[path].chosen_U, routing.chosen_U)
        torch.testing.assert_close(ours[path].weighted_U, routing.weighted_U)


@given(left=st.integers(0, 9), right=st.integers(0, 9), fill=st.integers(0, 63))
@settings(max_examples=4)
def test_norms_are_measured_again_on_data_only(left: int, right: int, fill: int) -> None:
    states = []
    for data in (batches("tagger", left, right, fill), batches("tagger")):
        model = tagger()
        reestimate_batchnorm(model, data)
        states.append({k: v for k, v in model.state_dict().items() if "running" in k})
        assert "forward" not in vars(model.norm)
    same(*states)


@pytest.mark.parametrize("name", ["llama", "tagger"])
def test_a_task_is_the_same_with_padding(name: str) -> None:
    """Scores, the dense network's figures and those of a plan."""
    model, groups = network(name)
    options: dict[str, Any] = {
        "budget": 0.9, "criterion": "wanda", "calibration_samples": 4, "reward_samples": 8,
        "groups": groups,
    }  # fmt: skip
    ours, theirs = (
        PruningTask.from_model(model, data, **options)
        for data in (batches(name, 0, 7), batches(name))
    )
    same(ours.scores, theirs.scores)
    assert close(ours.evaluator.dense, theirs.evaluator.dense)  # type: ignore[attr-defined]
    kept = tuple(group.levels[-2] for group in theirs.groups)
    assert close(ours.evaluator.measure(kept), theirs.evaluator.measure(kept), 1e-3)


@pytest.mark.parametrize("name", CAUSAL)
def test_without_a_mask_the_targets_say_what_is_data(name: str) -> None:
    """Behind the data of a causal model, which does not look there."""
    model, groups = network(name)
    plain = [Batch({"input_ids": ids}, one_ahead(ids)) for ids in rows()]
    padded = [
        Batch({"input_ids": F.pad(ids, (0, 6))}, F.pad(one_ahead(ids), (0, 6), value=-100))
        for ids in rows()
    ]
    same(
        *(
            {key: one.second_DD for key, one in calibrate(model, data, groups).moments.items()}
            for data in (padded, plain)
        )
    )


def test_labels_of_masked_positions_do_not_count() -> None:
    """As of a tokenizer that fills labels with the id of padding."""
    ids = rows()[0]
    padded, mask = (F.pad(tensor, (2, 3)) for tensor in (ids, torch.ones_like(ids)))
    inputs = {"input_ids": padded, "attention_mask": mask}
    batch = Batch(inputs, padded)
    assert int((batch.targets != -100).sum()) == ids.numel()
    model = causal("llama")
    item = {**inputs, "labels": padded}
    alone = evaluate(model, [{"input_ids": ids, "labels": ids}])
    found = figures(evaluate(model, [item]))
    assert found == pytest.approx(figures(alone), rel=1e-4, nan_ok=True)


def test_padding_may_hold_anything() -> None:
    """Attention over nothing gives NaN in some models; nobody reads it."""

    class Careless(Tagger):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            x_BTH = self.tokens(input_ids)
            assert attention_mask is not None
            x_BTH = x_BTH / attention_mask[..., None]
            return self.head(self.wide(x_BTH).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Careless().eval()
    data = [(batch.inputs, batch.targets) for batch in batches("tagger", 0, 3)]
    task = PruningTask.from_model(model, data, calibration_samples=4, reward_samples=8)
    assert all(bool(scores.isfinite().all()) for scores in task.scores.values())


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((3, 4, 7), 9), ((4, 3, 7), 9), ((12, 7), 9), ((3, 4, 2, 7), 18),
        ((3, 7), None), ((6, 7), None), ((5, 4, 7), None),
    ],
)  # fmt: skip
def test_rows_are_told_by_shape(shape: tuple[int, ...], found: int | None) -> None:
    mask = torch.ones(3, 4)
    mask[0, 1:] = 0
    positions = data_positions({"attention_mask": mask}, torch.zeros(3))
    picked = data_rows(positions, shape)
    assert (None if picked is None else int(picked.sum())) == found
    if picked is not None:
        assert len(picked) == torch.Size(shape[:-1]).numel()


def test_sequences_of_two_lengths_have_masks_of_their_own() -> None:
    inputs = {
        "input_ids": torch.ones(2, 5), "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2]),
        "decoder_input_ids": torch.ones(2, 4),
    }  # fmt: skip
    targets = torch.tensor([[1, 2, 3, -100], [1, 2, 3, 4]])
    assert [tuple(mask.shape) for mask in Batch(inputs, targets).positions] == [(2, 5), (2, 4)]
    whole = {"input_ids": torch.ones(2, 4), "attention_mask": torch.ones(2, 4)}
    assert Batch(whole, targets).positions == ()
    generator = seeded(0)
    assert Batch(torch.randn(2, 3, generator=generator), torch.tensor([0, -100])).positions == ()
