"""Copies of a model that may be cut."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from prune_env.structure.entry import copy_of
from prune_env.structure.multihead import free_widths


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose modules take their widths from their tensors.

    Raises:
        ModelError: the model is of a kind that cannot be cut, or cannot be copied.
    """
    return free_widths(copy_of(model)).eval()


def sharing(model: nn.Module) -> nn.Module:
    """The same with the very same parameters; what a forward pass writes is its own.

    Raises:
        ModelError: see `copied`.
    """
    return free_widths(copy_of(model, model.parameters())).eval()


def in_plain_order(tensor: Tensor) -> Tensor:
    """The same values, an image or volume in the plain order of its dims in memory.

    Which ops run depends on the order (pooling of channels_last restrides); what can be pruned must
    not. An expanded tensor stays expanded, which says that it is broadcast.
    """
    image = tensor.ndim > 3 and 0 not in tensor.stride()
    return tensor.contiguous() if image else tensor


def plain(model: nn.Module) -> nn.Module:
    """`model`, its tensors put in plain order in place."""
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = in_plain_order(tensor.data)
    return model
