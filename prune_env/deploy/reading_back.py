"""Writing a folder of the transformers library: read back, run, and only then put in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ModelError, PlanError, RunError
from prune_env.quality.outputs import LOGITS
from prune_env.structure.inputs import Inputs, call_model, eval_mode

CONFIG = "config.json"
"""Moved into place last: a folder without it is no model to the library."""
AGREEMENT = 1e-3
"""Of the largest output, what two networks may differ by and pass for the same."""


def require_free(folder: str | Path) -> None:
    """Check that no model is in `folder`, which writing file by file could leave half replaced.

    Raises:
        RunError: there is one.
    """
    if (Path(folder) / CONFIG).exists():
        raise RunError(f"'{folder}' holds a model already. Choose another folder, or delete it.")


def agree(small: nn.Module, model: nn.Module, inputs: Inputs) -> bool:
    """Whether two networks compute the same on `inputs`.

    Raises:
        ModelError: one of them does not run.
    """
    try:
        with eval_mode(small), eval_mode(model), torch.no_grad():
            ours, theirs = (LOGITS.logits(call_model(net, inputs)) for net in (small, model))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{type(small).__name__} does not run on the inputs to compare on: {error}. Give "
            "example_inputs."
        ) from error
    tolerance = AGREEMENT * float(ours.abs().max())
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= tolerance


def write_checked(
    small: nn.Module, config: Any, values: Mapping[str, Tensor], folder: str | Path, inputs: Inputs
) -> Path:
    """Write the config's model with these values, once it is read back and does what `small` does.

    Raises:
        RunError: the folder cannot be written.
        PlanError: what was read back computes something else.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write(small, config, values, beside)
        place = next(small.parameters())
        again = (
            type(small)
            .from_pretrained(  # type: ignore[attr-defined]
                beside, dtype=place.dtype, local_files_only=True, use_safetensors=True
            )
            .to(place.device)
        )
        if not agree(small, again, inputs):
            raise PlanError(
                f"{type(small).__name__} read back from its folder computes something else than "
                "the pruned network. Use prune_env.save."
            )
        _move(beside, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _write(small: nn.Module, config: Any, values: Mapping[str, Tensor], folder: Path) -> None:
    with torch.device("meta"):
        model: Any = type(small)(config)
    model.load_state_dict(dict(values), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)


def _move(beside: Path, folder: Path) -> None:
    """Files of one folder into the other, what makes it a model last."""
    folder.mkdir(exist_ok=True)
    for path in sorted(beside.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, folder / path.name)


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write '{folder}': {error.strerror or error}. Choose a folder you may write to."
    )
