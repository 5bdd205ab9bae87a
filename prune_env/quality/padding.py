"""Which positions of a batch are data: filled-up ones are left out of everything that is measured.

Legend: B samples, T positions of a sample, N rows of what a layer reads, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

IGNORED = -100
"""The target of a position without a label, as in PyTorch."""

Positions = tuple[Tensor, ...]
"""Masks (B, T), True where there is data; several where several sequences are read."""

_MASKS = ("attention_mask", "decoder_attention_mask")


def data_positions(inputs: Any, targets: Any) -> Positions:
    """The positions that are data, where some are not; nothing where all are.

    `attention_mask` says so where the model is given one. Of a sequence without a mask of its
    own the targets say it: a position of -100 is none.
    """
    named = inputs if isinstance(inputs, Mapping) else {}
    masks = [named[name] != 0 for name in _MASKS if _is_mask(named.get(name))]
    classes = isinstance(targets, Tensor) and not targets.is_floating_point()
    if classes and targets.ndim == 2 and all(mask.shape != targets.shape for mask in masks):
        masks.append(targets != IGNORED)
    return tuple(mask for mask in masks if not bool(mask.all()))


def without_padding(inputs: Any, targets: Tensor) -> Tensor:
    """Targets with -100 wherever the mask of their sequence says that nothing is there."""
    named = inputs if isinstance(inputs, Mapping) else {}
    mask: Any = named.get(_MASKS["decoder_input_ids" in named])
    if not _is_mask(mask) or mask.shape != targets.shape or targets.is_floating_point():
        return targets
    return targets.masked_fill(mask.logical_not(), IGNORED)


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def data_rows(positions: Positions, shape: tuple[int, ...]) -> Tensor | None:
    """Which rows of a tensor (..., D) are data, (N,), by its shape; None for all of them.

    Rows lie as positions do: (B, T, ..., D), (T, B, ..., D) or flat, (B x T, D). What has another
    shape, such as one vector per sample, holds no padding.
    """
    leading = tuple(shape[:-1])
    for mask_BT in positions:
        for mask in (mask_BT, mask_BT.T):
            if leading[:2] == tuple(mask.shape):
                wide = mask.reshape(*mask.shape, *[1] * (len(leading) - 2))
                return wide.expand(leading).reshape(-1)
        if leading == (mask_BT.numel(),):
            return mask_BT.reshape(-1)
    return None
