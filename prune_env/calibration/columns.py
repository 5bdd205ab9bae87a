"""What the rows of a convolution or linear layer are multiplied with.

Legend: B batch, P output positions, C input channels, K places of a kernel, D = C x K columns of a
flattened weight, N = B x P vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.quality.padding import Positions, data_rows
from prune_env.structure.weights import multiplies_transposed

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARDS = {(kind.forward, kind._conv_forward) for kind in _CONVS} | {(nn.Linear.forward, None)}


def has_columns(module: nn.Module) -> bool:
    """Whether a layer multiplies its weight with its input and does nothing else.

    A subclass with a forward of its own (weight standardisation) does not, nor does a grouped
    convolution, whose columns mean other channels in every group: both are cut without repair.
    """
    if multiplies_transposed(module):
        return True
    kind: Any = type(module)
    plain = (kind.forward, getattr(kind, "_conv_forward", None)) in _FORWARDS
    return plain and getattr(module, "groups", 1) == 1


def columns_of(
    module: nn.Module,
    x: Tensor,
    positions: int | None,
    generator: torch.Generator,
    data: Positions = (),
) -> Tensor:
    """Columns at output positions drawn once for the whole batch, (N, D), kernel before channel.

    Only what the drawn positions see is copied. `flattened` gives the order of the weight. A linear
    layer gives all it reads: tokens differ, neighbouring pixels hardly do.

    Args:
        module: a layer that `has_columns`.
        x: its input.
        positions: how many places of a convolution to draw without replacement; None takes all.
        generator: of the draw.
        data: see `data_positions`; rows of other positions are left out. A convolution that has as
            many outputs as there are positions is taken to have one for each.
    """
    if not isinstance(module, _CONVS):
        rows_N = data_rows(data, x.shape)
        flat_ND = x.reshape(-1, x.shape[-1])
        return flat_ND if rows_N is None else flat_ND[rows_N.to(x.device)]
    padded, starts_P, taps_K = _conv_places(module, x)
    rows_BPC = padded.flatten(2).transpose(1, 2)
    rows_N = data_rows(data, (len(x), len(starts_P), 1))
    if positions is not None and len(starts_P) > positions:
        drawn_P = torch.randperm(len(starts_P), generator=generator)[:positions]
        rows_N = None if rows_N is None else rows_N.reshape(len(x), -1)[:, drawn_P].reshape(-1)
        starts_P = starts_P[drawn_P]
    places = (starts_P[:, None] + taps_K).reshape(-1).to(x.device)
    # Channels lie together, so every place is one run of memory.
    taken = rows_BPC.contiguous().index_select(1, places)
    columns_ND = taken.reshape(-1, len(taps_K) * rows_BPC.shape[2])
    return columns_ND if rows_N is None else columns_ND[rows_N.to(x.device)]


def flattened(module: nn.Module) -> Tensor:
    """For every column of the flattened weight, its place in what `columns_of` gives, (D,)."""
    weight = module.get_parameter("weight")
    if multiplies_transposed(module):
        return torch.arange(len(weight))
    channels, *kernel = weight.shape[1:]
    taps = torch.Size(kernel).numel()
    return torch.arange(taps * channels).reshape(taps, channels).T.reshape(-1)


def _conv_places(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The padded input and, in its flat space, where positions start and kernels reach."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    sizes, kernel = padded.shape[2:], module.kernel_size
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, kernel, strict=True)]
    outs = [(n - s) // step + 1 for n, s, step in zip(sizes, spans, module.stride, strict=True)]
    return padded, _grid(outs, module.stride, sizes), _grid(kernel, module.dilation, sizes)


def _grid(counts: Sequence[int], steps: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Flat indices, in a space of `sizes`, of a grid of points `steps` apart."""
    flat = torch.zeros(1, dtype=torch.int64)
    for count, step, size in zip(counts, steps, sizes, strict=True):
        flat = (flat[:, None] * size + torch.arange(count) * step).reshape(-1)
    return flat
