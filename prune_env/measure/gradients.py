"""Gradients of the loss, for criteria that ask for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.measure.batches import Batch
from prune_env.structure.inputs import call_model, logits_of
from prune_env.structure.rewrite import tensors_of


def loss_gradients(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean gradient of the cross-entropy over `batches`, by state_dict key.

    The model is copied and run in eval mode; buffers and unused parameters have no entry.
    """
    dense = copy.deepcopy(model).eval()
    dense.requires_grad_(True)
    dense.zero_grad(set_to_none=True)
    for batch in batches:
        logits = logits_of(call_model(dense, batch.inputs)).flatten(0, -2)
        (F.cross_entropy(logits, batch.targets.flatten().long()) / len(batches)).backward()
    tensors = tensors_of(dense)
    return {name: t.grad for name, t in tensors.items() if t.requires_grad and t.grad is not None}
