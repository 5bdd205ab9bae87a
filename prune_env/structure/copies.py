"""Copies of a model that may be cut."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from prune_env.errors import ModelError
from prune_env.structure.multihead import free_widths


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose modules take their widths from their tensors.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return free_widths(copy.deepcopy(model)).eval()
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}). Old-style weight_norm is "
            "the usual cause: remove it, or use torch.nn.utils.parametrizations."
        ) from error


def contiguous(model: nn.Module) -> nn.Module:
    """`model`, its tensors moved in place to the plain order in memory.

    Which ops run depends on the order (pooling of channels_last restrides); what can be pruned must
    not.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.contiguous()
    return model
