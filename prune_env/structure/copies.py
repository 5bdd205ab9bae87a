"""Copies of a model that may be cut."""

from __future__ import annotations

import copy

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
