"""Targets that are the very tokens the network reads, as causal models of Hugging Face take them.

Such a model compares the prediction at position t with the label at t + 1 by itself. Whoever reads
its logits has to do the same.

Legend: B samples, T positions, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_env.errors import DataError
from prune_env.quality.batches import Batch
from prune_env.quality.padding import IGNORED
from prune_env.structure.inputs import call_model

ALIKE = 0.5
"""Share of the labels that are the token read from which on they are taken to be meant so."""


def token_ids(inputs: Any) -> Tensor | None:
    """The token ids (B, T) that a network reads, if it reads any."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    elif isinstance(inputs, tuple | list) and inputs:
        inputs = inputs[0]
    whole = isinstance(inputs, Tensor) and inputs.ndim == 2
    return inputs if whole and not inputs.is_floating_point() else None


def one_ahead(targets_BT: Tensor) -> Tensor:
    """Targets moved so that each position has the next one's; the last has none."""
    moved_BT = torch.full_like(targets_BT, IGNORED)
    moved_BT[:, :-1] = targets_BT[:, 1:]
    return moved_BT


def labels_of_inputs(model: nn.Module, batch: Batch, logits_BTK: Tensor) -> bool:
    """Whether targets are the token ids themselves and the model's own loss moves them ahead.

    Raises:
        DataError: they are, and the model has no loss of its own to compare with.
    """
    ids, targets = token_ids(batch.inputs), batch.targets
    if ids is None or ids.shape != targets.shape or targets.is_floating_point():
        return False
    if logits_BTK.shape[:-1] != targets.shape or int(targets.max()) >= logits_BTK.shape[-1]:
        return False  # they do not fit, which is said where they are compared
    here, ahead = _share(targets, ids), _share(targets[:, :-1], ids[:, 1:])
    if here < ALIKE or here <= ahead:
        return False
    own = _own_loss(model, batch)
    if own is None:
        raise DataError(
            f"{here:.0%} of the targets are the token that {type(model).__name__} reads at the "
            "same position. Give the token that follows (targets[:, :-1] = ids[:, 1:], and -100 at "
            "the end); if the model is meant to repeat what it reads, say output=Output() (from "
            "prune_env.quality.outputs)."
        )
    return abs(own - _loss(logits_BTK, one_ahead(targets))) < abs(own - _loss(logits_BTK, targets))


def _share(targets: Tensor, ids: Tensor) -> float:
    labelled = targets != IGNORED
    return float((targets == ids)[labelled].float().mean()) if bool(labelled.any()) else 0.0


def _loss(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten()))


def _own_loss(model: nn.Module, batch: Batch) -> float | None:
    """What the model itself says its loss is, if it says anything."""
    takes = inspect.signature(model.forward).parameters
    open_ = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
    if not isinstance(batch.inputs, Mapping) or not ("labels" in takes or open_):
        return None
    try:
        with torch.no_grad():
            loss = call_model(model, {**batch.inputs, "labels": batch.targets}).loss
        return float(loss)
    except Exception:  # it takes no labels after all
        return None
