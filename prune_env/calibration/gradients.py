"""Gradients of the loss, for criteria that ask for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.quality.batches import Batch
from prune_env.quality.outputs import LOGITS, Output
from prune_env.quality.padding import IGNORED
from prune_env.structure.inputs import call_model
from prune_env.structure.rewrite import tensors_of


def loss_gradients(
    model: nn.Module, batches: Sequence[Batch], output: Output = LOGITS
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of all predictions in `batches`, by state_dict key.

    The model is copied and run in eval mode; buffers and unused parameters have no entry.

    Args:
        output: where predictions and their targets are.
    """
    dense = copy.deepcopy(model).eval()
    dense.requires_grad_(True)
    dense.zero_grad(set_to_none=True)
    targets = [output.read(batch).targets for batch in batches]
    count = max(1, sum(int((each != IGNORED).sum()) for each in targets))
    for batch, wanted in zip(batches, targets, strict=True):
        logits = output.logits(call_model(dense, batch.inputs)).flatten(0, -2)
        loss = F.cross_entropy(logits, wanted.flatten(), reduction="sum")
        (loss / count).backward()
    tensors = tensors_of(dense)
    return {name: t.grad for name, t in tensors.items() if t.requires_grad and t.grad is not None}
