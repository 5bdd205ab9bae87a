"""Networks that the transformers library describes by a config: kept beside, and made from it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_env.errors import RunError

CONFIG = "config.json"
LIBRARY = "transformers"


def config_of(model: nn.Module) -> Any:
    """The config that a model of the library carries; None for any other model."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "save_pretrained") else None


def save_config(model: nn.Module, folder: Path) -> None:
    """Leave the model's config in `folder`; without one, none stays there from an older model."""
    config = config_of(model)
    if config is None:
        (folder / CONFIG).unlink(missing_ok=True)
    else:
        config.save_pretrained(folder)


def model_from_config(folder: Path, described: Mapping[str, Any]) -> nn.Module:
    """The dense network, with any weights, that the config in `folder` describes.

    Args:
        folder: holds the config.
        described: names the "class" and the "dtype". Only classes of the library are made: a
            folder from elsewhere cannot name code to run.

    Raises:
        RunError: there is no config, the library is absent or has no such class, or it is
            too old for the config.
    """
    if not (folder / CONFIG).is_file():
        raise RunError(
            f"'{folder}' has no {CONFIG} to make the dense network from. Give a factory: "
            "load(folder, factory)."
        )
    name, dtype = str(described.get("class")), str(described.get("dtype", "torch.float32"))
    try:
        library = importlib.import_module(LIBRARY)
        made = getattr(library, name)
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
        if not issubclass(made, library.PreTrainedModel):
            raise TypeError(f"{name} is no model")
        with torch.random.fork_rng([]), _default_dtype(getattr(torch, dtype.rpartition(".")[2])):
            model: nn.Module = made(config)
    except (ImportError, AttributeError, OSError, TypeError, ValueError) as error:
        raise RunError(
            f"{LIBRARY} cannot make the {name} of '{folder}': {error}. Install the version it was "
            "saved with, or give a factory."
        ) from error
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
