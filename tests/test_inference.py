"""Networks run faster, with the outputs they had."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError
from prune_env.quality import inference
from prune_env.quality.batches import Batch
from prune_env.quality.inference import PLAIN, Inference, fitting_batch
from prune_env.quality.outputs import LOGITS
from prune_env.structure.inputs import call_model
from prune_env.testing import TOYS, toy_inputs, toy_model

FOLDED = sorted(set(TOYS) - {"last_channels"})


def outputs(way: Inference, model: nn.Module, inputs: Any) -> Tensor:
    with way.ready(model) as fast:
        return LOGITS.logits(call_model(fast, inputs)).float().clone()


@pytest.mark.parametrize("name", sorted(TOYS))
def test_float32_gives_the_plain_outputs(name: str) -> None:
    model, inputs = toy_model(name), toy_inputs(name)
    way = Inference.of(model, Batch(inputs), "float32")
    assert not way.bfloat16
    torch.testing.assert_close(
        outputs(way, model, inputs), outputs(PLAIN, model, inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", FOLDED)
def test_batchnorms_are_gone_and_the_model_is_as_before(name: str) -> None:
    model, inputs = toy_model(name), toy_inputs(name)
    state = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    way = Inference.of(model, Batch(inputs), "float32")
    with way.ready(model) as fast:
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
        call_model(fast, inputs)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_what_is_found_on_one_width_folds_another() -> None:
    wide = toy_model("residual")
    way = Inference.of(wide, Batch(toy_inputs("residual")), "float32")
    narrow = copy.deepcopy(wide)
    with torch.no_grad():
        for vector in narrow.a1[1].parameters():  # type: ignore[index, union-attr]
            vector.mul_(0.3)
    inputs = toy_inputs("residual", seed=5)
    torch.testing.assert_close(
        outputs(way, narrow, inputs), outputs(PLAIN, narrow, inputs), rtol=1e-4, atol=1e-5
    )


class Between(nn.Module):
    """One convolution read by a BatchNorm and by something else: it may not absorb the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y) + y).mean((2, 3)))  # type: ignore[no-any-return]


class Renormed(nn.BatchNorm2d):
    """A BatchNorm that does more than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Own(nn.Module):
    """A convolution and a BatchNorm of a kind of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), Renormed(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """Holds its BatchNorm where nobody who copies modules looks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        nn.init.constant_(self.norm.weight, 3.0)
        self.steps = [self.conv, self.norm]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Between, Own, Hidden])
def test_what_cannot_be_folded_is_left(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = kind().eval(), torch.randn(4, 3, 5, 5)
    way = Inference.of(model, Batch(inputs), "float32")
    torch.testing.assert_close(outputs(way, model, inputs), outputs(PLAIN, model, inputs))


def test_bfloat16_is_taken_where_it_is_native_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = toy_model("residual"), toy_inputs("residual")
    monkeypatch.setattr(inference, "native_bfloat16", lambda device: False)
    assert not Inference.of(model, Batch(inputs)).bfloat16
    monkeypatch.setattr(inference, "native_bfloat16", lambda device: True)
    assert Inference.of(model, Batch(inputs)).bfloat16
    monkeypatch.setattr(inference, "AGREEMENT", 0.0)
    assert not Inference.of(model, Batch(inputs)).bfloat16
    assert Inference.of(model, Batch(inputs), "bfloat16").bfloat16


class Arrays(nn.Sequential):
    """Leaves PyTorch on the way, as code of users does; numpy knows no bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x).numpy())


def test_a_network_that_does_not_run_in_bfloat16_runs_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "native_bfloat16", lambda device: True)
    model = Arrays(nn.Linear(3, 4)).eval()
    assert not Inference.of(model, Batch(torch.randn(2, 3))).bfloat16
    with pytest.raises(ConfigError, match=r"Arrays does not run in it: .*precision='float32'"):
        Inference.of(model, Batch(torch.randn(2, 3)), "bfloat16")


def test_bfloat16_is_close_to_float32() -> None:
    model, inputs = toy_model("residual"), toy_inputs("residual")
    way = Inference.of(model, Batch(inputs), "bfloat16")
    plain, rounded = outputs(PLAIN, model, inputs), outputs(way, model, inputs)
    assert not torch.equal(plain, rounded)
    assert float((plain - rounded).abs().max() / plain.abs().max()) < 0.03


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'half'; choose of auto, float32, bfloat16"):
        Inference.of(toy_model("chain"), Batch(toy_inputs("chain")), "half")


def test_the_fitting_batch_falls_with_the_size_of_activations() -> None:
    model = toy_model("chain")
    small = fitting_batch(model, toy_inputs("chain"))
    wide = nn.Sequential(nn.Conv2d(3, 512, 1), nn.Flatten())
    assert small == 250
    assert 8 <= fitting_batch(wide, torch.zeros(2, 3, 64, 64)) < small
