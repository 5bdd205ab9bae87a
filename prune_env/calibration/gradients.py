"""Gradients of the loss, for criteria that ask for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from prune_env.errors import ConfigError
from prune_env.quality.batches import Batch
from prune_env.quality.objectives import CLASSIFICATION, Objective
from prune_env.structure.inputs import call_model
from prune_env.structure.rewrite import tensors_of


def loss_gradients(
    model: nn.Module, batches: Sequence[Batch], objective: Objective = CLASSIFICATION
) -> dict[str, Tensor]:
    """Gradient of the mean loss of all predictions in `batches`, by state_dict key.

    The model is copied and run in eval mode; buffers and unused parameters have no entry.

    Args:
        objective: whose loss it is.

    Raises:
        ConfigError: it has none.
    """
    if objective.loss is None:
        raise ConfigError(
            f"the criterion asks for gradients of a loss, and the objective '{objective.name}' has "
            "none. Give an Objective with a loss, or criterion='obs' or 'magnitude'."
        )
    dense = copy.deepcopy(model).eval()
    dense.requires_grad_(True)
    dense.zero_grad(set_to_none=True)
    total = 0
    for batch in batches:
        ours, wanted = objective.read(call_model(dense, batch.inputs), batch)
        loss = objective.loss(ours, wanted)
        total += loss.numel()
        loss.sum().backward()  # type: ignore[no-untyped-call]
    tensors = {n: t for n, t in tensors_of(dense).items() if t.requires_grad and t.grad is not None}
    return {name: t.grad / max(1, total) for name, t in tensors.items() if t.grad is not None}
