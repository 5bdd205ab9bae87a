"""Networks that the transformers library describes by a config, and made from it again."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from prune_env.errors import RunError

LIBRARY = "transformers"


class Described(Protocol):
    """What says which network to make."""

    @property
    def class_name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def config(self) -> dict[str, Any] | None: ...


def config_of(model: nn.Module) -> Any:
    """The config that a model of the library carries; None for any other model."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "save_pretrained") else None


def model_from_config(folder: str | Path, described: Described) -> nn.Module:
    """The dense network, with any weights, that a config describes.

    Args:
        folder: where it was found, for the error.
        described: the config, the class and the type of its numbers. Only classes of the library
            are made, and their own configs: a folder from elsewhere cannot name code to run.

    Raises:
        RunError: there is no config, the library is absent or has no such class, or it is
            too old for the config.
    """
    if described.config is None:
        raise RunError(
            f"'{folder}' has no config to make the dense network from. Give a factory: "
            "load(folder, factory)."
        )
    name = described.class_name
    try:
        library = importlib.import_module(LIBRARY)
        made = getattr(library, name)
        if not issubclass(made, library.PreTrainedModel):
            raise TypeError(f"{name} is no model")
        config = made.config_class.from_dict(described.config)
        dtype = getattr(torch, described.dtype.rpartition(".")[2])
        with torch.random.fork_rng([]), _default_dtype(dtype):
            model: nn.Module = made(config)
    except Exception as error:  # a config's numbers go into whatever the library does with them
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
