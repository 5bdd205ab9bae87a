"""A pruned network as a folder: weights as safetensors, the plan and metadata as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_env.errors import ModelError, PlanError, RunError
from prune_env.storage import load_tensors, save_tensors, write_text
from prune_env.structure.rewrite import tensors_of
from prune_env.surgery.apply import compact
from prune_env.surgery.plan import PruningPlan

WEIGHTS, PLAN, METADATA = "model.safetensors", "plan.json", "metadata.json"


def save(
    folder: str | Path,
    model: nn.Module,
    plan: PruningPlan,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pruned network to `folder`.

    Each file is written atomically, the metadata last: a folder without it is incomplete.

    Args:
        folder: made if missing.
        model: the small network that `compact` returned, fine-tuned or not.
        plan: the plan it was made with.
        metadata: anything JSON-able worth keeping (accuracy, data, commands).

    Raises:
        RunError: the folder cannot be written.
    """
    folder = Path(folder)
    content = {
        "format": 1,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "metadata": dict(metadata or {}),
    }
    described = json.dumps(content, indent=1)
    with contextlib.suppress(OSError):  # what cannot be removed cannot be written: said below
        (folder / METADATA).unlink()
    save_tensors(folder / WEIGHTS, tensors_of(model))
    plan.save(folder / PLAN)
    write_text(folder / METADATA, described)
    return folder


def load(folder: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild the pruned network from its folder.

    Args:
        folder: what `save` wrote.
        factory: makes the *dense* network (any weights); it is cut to the plan's shape.

    Returns:
        The small network in eval mode, on the CPU.

    Raises:
        RunError: the folder is missing or incomplete.
        PlanError: the factory makes another network than the plan was made for.
        ModelError: the stored weights do not fit the cut network.
    """
    folder = Path(folder)
    missing = [name for name in (WEIGHTS, PLAN, METADATA) if not (folder / name).is_file()]
    if missing:
        raise RunError(f"'{folder}' is not a complete pruned model: {', '.join(missing)} missing.")
    plan = PruningPlan.load(folder / PLAN)
    try:
        small = compact(factory(), plan)
    except PlanError as error:
        raise PlanError(
            f"the factory does not make the dense network of '{folder}': {error}"
        ) from error
    try:
        small.load_state_dict(load_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise ModelError(f"the weights in '{folder}' do not fit: {error}") from error
    return small.eval()


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the stored weights."""
    return (Path(folder) / WEIGHTS).stat().st_size
