"""Networks by name, and weights from files into them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError, ModelError
from prune_env.experiments.networks.nets import VGG16, CifarMobileNetV2, CifarResNet, CifarVGG
from prune_env.storage import load_foreign
from prune_env.tasks.digits import DigitsNet

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "digits": DigitsNet,
    "resnet20": partial(CifarResNet, 3),
    "resnet32": partial(CifarResNet, 5),
    "resnet56": partial(CifarResNet, 9),
    "vgg16_bn": partial(CifarVGG, VGG16),
    "mobilenetv2": CifarMobileNetV2,
}
"""Name -> a factory that takes the number of classes. Add a model here."""


def build_model(name: str, classes: int) -> nn.Module:
    """The network `name` with fresh weights drawn from torch's generator.

    Raises:
        ConfigError: no such name (says the nearest), or `classes` below 2.
    """
    factory = model_named(name)
    if classes < 2:
        raise ConfigError(f"model '{name}' was asked for {classes} classes; it needs at least 2.")
    return factory(classes)


def model_named(name: str) -> Callable[[int], nn.Module]:
    """The factory called `name`.

    Raises:
        ConfigError: there is none; says the nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"unknown model '{name}'.{hint} Known: {', '.join(MODELS)}.")
    return MODELS[name]


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a whole state dict into `model` and return it.

    Reads safetensors and files of `torch.save` (never unpickling code); a state dict under the
    key "state_dict" or "model" and the "module." of DataParallel are understood.

    Raises:
        ModelError: the file cannot be read, its keys or shapes do not fit (says which), or it
            holds NaN or infinite values.
        RunError: a .safetensors file is missing or damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"no weights file '{path}'. Give a .safetensors or a torch.save file.")
    state = _read(path)
    _check_fits(model, state, path)
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise ModelError(f"'{path}' holds NaN or infinite values in {_some(broken)}.")
    model.load_state_dict(state)
    return model


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _plain(load_foreign(path), path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through whatever damaged bytes run into
        raise ModelError(
            f"'{path}' cannot be read as weights: not a plain torch.save of tensors. Save "
            "model.state_dict(), not the model, or write safetensors."
        ) from error
    return _plain(content, path)


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    """Name -> tensor, out of whatever wrapping a checkpoint put around it."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"'{path}' holds a {type(content).__name__}, not a state dict.")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"'{path}' holds values that are not tensors: {_some(others)}.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _check_fits(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    reshaped = [
        f"{name} {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": reshaped,
    }
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        raise ModelError(
            f"'{path}' does not fit {type(model).__name__}; {'; '.join(found)}. "
            "Is it the same network with the same number of classes?"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
