"""The networks by name run, have their published sizes, and take weights strictly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError, ModelError, RunError
from prune_env.experiments.networks.models import MODELS, build_model, load_weights
from prune_env.experiments.networks.nets import PadShortcut
from prune_env.storage import save_tensors

# Parameters published for CIFAR-10 (ResNets: He et al. 2016, table 6, rounded there).
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "vgg16_bn": 14_724_042,
}


def example(name: str) -> Tensor:
    return torch.randn(2, 1, 8, 8) if name == "digits" else torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_one_logit_per_class(name: str) -> None:
    model = build_model(name, 7).eval()
    with torch.no_grad():
        assert model(example(name)).shape == (2, 7)


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name: str) -> None:
    assert sum(p.numel() for p in build_model(name, 10).parameters()) == PARAMETERS[name]


def test_resnet_keys_are_those_of_published_weights() -> None:
    block = r"layer[123]\.[012]\.(conv|bn)[12]\.\w+"
    for name in build_model("resnet20", 10).state_dict():
        assert re.fullmatch(rf"(conv1|bn1|linear)\.\w+|{block}", name), name


def test_the_padded_shortcut_keeps_the_middle_channels() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = PadShortcut(4, 2)(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


@pytest.mark.parametrize("name", ["resnet20", "digits"])
def test_inner_channels_can_be_cut_without_touching_forward(name: str) -> None:
    model = build_model(name, 10).eval()
    block = next(m for m in model.modules() if hasattr(m, "conv2"))
    kept = torch.tensor([0, 2, 5])
    first, second = block.conv1, block.conv2
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    first.weight = nn.Parameter(first.weight[kept])
    second.weight = nn.Parameter(second.weight[:, kept])
    block.bn1 = nn.BatchNorm2d(3).eval()
    assert model(example(name)).shape == (2, 10)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean.*resnet20"):
        build_model("resnet2", 10)
    with pytest.raises(ConfigError, match="at least 2"):
        build_model("resnet20", 1)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "parallel"])
def test_weights_come_back_from_torch_files(tmp_path: Path, wrap: str) -> None:
    source, target = build_model("digits", 10), build_model("digits", 10)
    state = source.state_dict()
    forms = {
        "bare": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
    }
    torch.save(forms[wrap], tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(state[name], value) for name, value in target.state_dict().items())


def test_weights_come_back_from_safetensors(tmp_path: Path) -> None:
    source, target = build_model("resnet20", 10), build_model("resnet20", 10)
    load_weights(target, save_tensors(tmp_path / "w.safetensors", source.state_dict()))
    for name, value in target.state_dict().items():
        assert torch.equal(source.state_dict()[name], value)


def test_weights_that_do_not_fit_are_explained_and_not_loaded(tmp_path: Path) -> None:
    model = build_model("digits", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(before)
    state["linear.weight"] = torch.zeros(4, 64)
    state["head"] = state.pop("bn.bias")
    file = save_tensors(tmp_path / "w.safetensors", state)
    with pytest.raises(ModelError) as caught:
        load_weights(model, file)
    for part in (
        "missing: bn.bias",
        "unexpected: head",
        "linear.weight (4, 64) in the file, (10, 64) in the model",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_weight_files_are_named(tmp_path: Path) -> None:
    model = build_model("digits", 10)
    with pytest.raises(ModelError, match="no weights file"):
        load_weights(model, tmp_path / "absent.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load_weights(model, tmp_path / "junk.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match="junk"):
        load_weights(model, tmp_path / "junk.safetensors")
    torch.save(model, tmp_path / "whole.pt")  # pickled code is never run
    with pytest.raises(ModelError, match="state_dict"):
        load_weights(model, tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds a list"):
        load_weights(model, tmp_path / "list.pt")
    state = {**model.state_dict(), "linear.bias": torch.full((10,), float("nan"))}
    with pytest.raises(ModelError, match=r"NaN or infinite values in linear\.bias"):
        load_weights(model, save_tensors(tmp_path / "nan.safetensors", state))
