"""A pruned network as a folder: weights as safetensors, the plan and metadata as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.deploy.configs import model_from_config, save_config
from prune_env.errors import ModelError, PlanError, RunError
from prune_env.recovery.masks import KeepMasks
from prune_env.storage import load_tensors, save_tensors, write_text
from prune_env.structure.rewrite import tensors_of
from prune_env.surgery.apply import compact
from prune_env.surgery.plan import PruningPlan

WEIGHTS, PLAN, METADATA = "model.safetensors", "plan.json", "metadata.json"
MASKS = "masks.safetensors"
"""Beside them where single weights were removed."""
Factory = Callable[[], nn.Module]


def save(
    folder: str | Path,
    model: nn.Module,
    plan: PruningPlan,
    metadata: Mapping[str, Any] | None = None,
    masks: KeepMasks | None = None,
) -> Path:
    """Write a pruned network to `folder`.

    Each file is written atomically, the metadata last: a folder without it is incomplete. Tied
    tensors are written once. A network that carries a config of the transformers library has it
    saved beside, so that `load` needs no factory.

    Args:
        folder: made if missing.
        model: the small network that `compact` returned, fine-tuned or not.
        plan: the plan it was made with.
        metadata: anything JSON-able worth keeping (accuracy, data, commands).
        masks: which weights stay when the network is tuned on; None: those that the plan leaves
            and that are not zero.

    Raises:
        RunError: the folder cannot be written.
        PlanError: the plan makes another network.
    """
    folder = Path(folder)
    if masks is None:
        masks = KeepMasks.of_plan(plan, model) & KeepMasks.of_network(model)
    content = {
        "format": 1,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)),
        "masks": masks.digest,
        "torch": torch.__version__,
        "metadata": dict(metadata or {}),
    }
    described = json.dumps(content, indent=1)
    for old in (METADATA, MASKS):
        with contextlib.suppress(OSError):  # what cannot be removed cannot be written: said below
            (folder / old).unlink()
    save_tensors(folder / WEIGHTS, distinct(model))
    if masks.keep:
        save_tensors(folder / MASKS, masks.packed())
    save_config(model, folder)
    plan.save(folder / PLAN)
    write_text(folder / METADATA, described)
    return folder


def load(folder: str | Path, factory: Factory | None = None) -> nn.Module:
    """Rebuild the pruned network from its folder.

    Args:
        folder: what `save` wrote.
        factory: makes the *dense* network (any weights); it is cut to the plan's shape. None:
            made from the config that `save` left beside the weights of a transformers model.

    Returns:
        The small network in eval mode, on the CPU.

    Raises:
        RunError: the folder is missing or incomplete, or has no config and no factory was given.
        PlanError: the factory makes another network than the plan was made for.
        ModelError: the stored weights do not fit the cut network.
    """
    folder = Path(folder)
    missing = [name for name in (WEIGHTS, PLAN, METADATA) if not (folder / name).is_file()]
    if missing:
        raise RunError(f"'{folder}' is not a complete pruned model: {', '.join(missing)} missing.")
    plan = PruningPlan.load(folder / PLAN)
    dense = factory() if factory else model_from_config(folder, described(folder))
    try:
        small = compact(dense, plan)
    except PlanError as error:
        raise PlanError(
            f"the factory does not make the dense network of '{folder}': {error}"
        ) from error
    load_weights_into(small, folder)
    masks = load_masks(folder)
    masks.apply_to(small)
    for name in masks.emptied:  # nothing is left there to train
        small.get_parameter(name).requires_grad_(False)
    return small.eval()


def load_masks(folder: str | Path) -> KeepMasks:
    """Which weights stay when the network in `folder` is tuned on.

    Raises:
        RunError: the masks are missing, or are not those that were saved.
    """
    path = Path(folder) / MASKS
    masks = KeepMasks.of_packed(load_tensors(path)) if path.exists() else KeepMasks({})
    if masks.digest != described(Path(folder)).get("masks"):
        raise RunError(f"'{path}' does not hold the keep masks of this model. Save it again.")
    return masks


def described(folder: Path) -> dict[str, Any]:
    """The metadata of a folder.

    Raises:
        RunError: they are damaged.
    """
    try:
        content: dict[str, Any] = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read '{folder / METADATA}': {error}. Save it again.") from error
    return content


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model`, tied ones under their first name only."""
    tensors = tensors_of(model)
    return {name: tensors[name] for name, first in _first_names(tensors).items() if name == first}


def load_weights_into(model: nn.Module, folder: str | Path) -> None:
    """Put the weights that `save` wrote into a network of the same shapes.

    Raises:
        RunError: there are none.
        ModelError: they do not fit.
    """
    stored = load_tensors(Path(folder) / WEIGHTS)
    tied = {n: first for n, first in _first_names(tensors_of(model)).items() if n != first}
    stored |= {name: stored[first] for name, first in tied.items() if first in stored}
    try:
        model.load_state_dict(stored)
    except RuntimeError as error:
        raise ModelError(f"the weights in '{folder}' do not fit: {error}") from error


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name, the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the stored weights."""
    return (Path(folder) / WEIGHTS).stat().st_size
