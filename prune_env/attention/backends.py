"""Attention over kept blocks only: one signature, three ways to compute it.

All agree to rounding, and with dense attention when every block is kept. A query whose keys are all
hidden by a mask (padding) gives zeros, as `scaled_dot_product_attention` does.

Legend: B batch, H heads, G key and value heads, T tokens, D width of a head, N blocks, b tokens per
block, R = H * N rows (a query block of a head), S = G * N key blocks, W key blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prune_env.errors import ModelError, look_up

GATHER_BELOW = 0.4
"""Share of kept blocks below which gathering keys costs less than masking their scores.

Measured on one CPU thread of a busy machine, 8 heads of 64: they break even near 0.4 for 256 tokens
in blocks of 16, above 0.5 for 2,048 in blocks of 64.
"""


@dataclass(frozen=True, eq=False)
class Visible:
    """Which keys a query may read.

    Attributes:
        blocks_HNN: kept blocks, bool; longer than the sequence is fine, it is cropped. H may be 1.
        block: tokens per block.
        causal: keys after the query are hidden.
        mask: further limits (padding, a sliding window), bool, True where a key may be read; any
            shape that broadcasts to (B, H, T, T).
    """

    blocks_HNN: Tensor
    block: int
    causal: bool = False
    mask: Tensor | None = None


Backend = Callable[[Tensor, Tensor, Tensor, Visible, float | None, float], Tensor]
"""`(query_BHTD, key_BGTD, value_BGTD, visible, scale, dropout)` to the output (B, H, T, D).

`scale` multiplies the scores (None: D ** -0.5), `dropout` is the probability. Queries may be fewer
than keys (decoding with a cache): they are the last of them.

Raises ModelError, before anything is computed, as `require_blocks` and `require_keys` say.
"""


def require_blocks(length: int, covered: int, block: int, whole: bool = True) -> None:
    """Check that a sequence fits a block mask.

    Args:
        length: tokens of the sequence.
        covered: tokens that the mask covers.
        block: tokens per block.
        whole: the queries are the whole sequence, so that it must consist of whole blocks.

    Raises:
        ModelError: the sequence is longer than the mask, or not divisible by the block.
    """
    if length > covered:
        raise ModelError(
            f"the sequence has {length} tokens, the block mask covers {covered}. Shorten the "
            "sequence, or give a larger `length` to sparsify_attention."
        )
    if whole and length % block:
        raise ModelError(
            f"the sequence has {length} tokens, which blocks of {block} do not divide. Pad it to "
            f"{-(-length // block) * block} with an attention mask, or choose another block."
        )


def require_keys(blocks_HNN: Tensor) -> None:
    """Check that every query block reads some key block; give causal masks without their future.

    Raises:
        ModelError: names the first head and query block that do not.
    """
    empty_HN = ~blocks_HNN.any(dim=-1)
    if bool(empty_HN.any()):
        head, row = empty_HN.nonzero()[0].tolist()
        raise ModelError(
            f"query block {row} of head {head} has no key block to read ({int(empty_HN.sum())} "
            "such rows in the block mask). Keep the diagonal of the mask."
        )


def _blocks_for(query: Tensor, key: Tensor, visible: Visible) -> Tensor:
    """The kept blocks of this call, checked: (H, N, N), nothing above the diagonal if causal."""
    blocks_HNN, heads, length = visible.blocks_HNN, query.shape[1], key.shape[2]
    if heads % key.shape[1] or blocks_HNN.shape[0] not in (1, heads):
        raise ModelError(
            f"{heads} query heads do not go with {key.shape[1]} key heads and a block mask of "
            f"{blocks_HNN.shape[0]} heads. Sparsify the model after its heads were removed."
        )
    covered = blocks_HNN.shape[1] * visible.block
    require_blocks(length, covered, visible.block, query.shape[2] == length)
    used = -(-length // visible.block)
    blocks_HNN = blocks_HNN[:, :used, :used]
    blocks_HNN = blocks_HNN.tril() if visible.causal else blocks_HNN
    require_keys(blocks_HNN)
    return blocks_HNN.expand(heads, -1, -1)


def masked(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    visible: Visible,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Dense attention with removed blocks hidden: the reference, which saves no work."""
    blocks_HNN = _blocks_for(query_BHTD, key_BGTD, visible)
    queries, keys, block = query_BHTD.shape[2], key_BGTD.shape[2], visible.block
    tokens_HTT = blocks_HNN.repeat_interleave(block, 1).repeat_interleave(block, 2)
    allowed = tokens_HTT[None, :, keys - queries : keys, :keys]
    if visible.causal:
        place_T = torch.arange(keys, device=allowed.device)
        allowed = allowed & (place_T <= place_T[keys - queries :, None])
    if visible.mask is not None:
        allowed = allowed & visible.mask
    repeat = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD = key_BGTD.repeat_interleave(repeat, 1)
    value_BHTD = value_BGTD.repeat_interleave(repeat, 1)
    out_BHTD: Tensor = scaled_dot_product_attention(
        query_BHTD, key_BHTD, value_BHTD, attn_mask=allowed, scale=scale, dropout_p=dropout
    )
    return out_BHTD


def gather(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    visible: Visible,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Only kept key blocks are multiplied: each row's are gathered side by side.

    Rows of one width go together: nothing is padded, and a global row, which reads everything, does
    not make the others as wide. Decoding with a cache is masked instead.
    """
    if query_BHTD.shape[2] != key_BGTD.shape[2]:
        return masked(query_BHTD, key_BGTD, value_BGTD, visible, scale, dropout)
    blocks_HNN = _blocks_for(query_BHTD, key_BGTD, visible)
    split = (-1, visible.block)
    query_BRbD = query_BHTD.unflatten(2, split).flatten(1, 2)
    key_BSbD = key_BGTD.unflatten(2, split).flatten(1, 2)
    value_BSbD = value_BGTD.unflatten(2, split).flatten(1, 2)
    heads, count = blocks_HNN.shape[:2]
    repeat = heads // key_BGTD.shape[1]
    parts, places = [], []
    for rows_R, columns_RW in _rows_by_width(blocks_HNN):
        first_R = rows_R // count // repeat * count
        flat_RW = (first_R[:, None] + columns_RW).reshape(-1)
        shape = (len(rows_R), -1)
        parts.append(
            scaled_dot_product_attention(
                query_BRbD.index_select(1, rows_R),
                key_BSbD.index_select(1, flat_RW).flatten(1, 2).unflatten(1, shape),
                value_BSbD.index_select(1, flat_RW).flatten(1, 2).unflatten(1, shape),
                attn_mask=_row_mask(rows_R, columns_RW, count, visible),
                scale=scale,
                dropout_p=dropout,
            )
        )
        places.append(rows_R)
    out_BRbD = torch.cat(parts, 1).index_select(1, torch.cat(places).argsort())
    out_BHTD: Tensor = out_BRbD.unflatten(1, (heads, count)).flatten(2, 3)
    return out_BHTD


def _rows_by_width(blocks_HNN: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows that keep the same number of key blocks, with these blocks, ascending."""
    blocks_RN = blocks_HNN.flatten(0, 1)
    widths_R = blocks_RN.sum(1)
    for width in widths_R.unique().tolist():
        rows_R = (widths_R == width).nonzero().squeeze(1)
        yield rows_R, blocks_RN[rows_R].nonzero()[:, 1].reshape(-1, width)


def _row_mask(rows_R: Tensor, columns_RW: Tensor, count: int, visible: Visible) -> Tensor | None:
    """What is hidden inside gathered blocks, broadcastable to (B, R, b, W * b); None: nothing."""
    mask: Tensor | None = None
    if visible.mask is not None:
        mask = _gathered_mask(visible.mask, rows_R, columns_RW, count)
    if visible.causal:
        past = _causal_mask(rows_R, columns_RW, count, visible.block)
        mask = past if mask is None else mask & past
    return None if mask is None else mask.expand(-1, -1, visible.block, -1)


def _causal_mask(rows_R: Tensor, columns_RW: Tensor, count: int, block: int) -> Tensor:
    """Earlier blocks whole, of the diagonal one its lower triangle: (1, R|1, b, W * b)."""
    diagonal_R = columns_RW[:, -1] == rows_R % count
    if bool(diagonal_R.all()):
        diagonal_R = diagonal_R[:1]  # one mask for all rows costs no memory traffic
    ones = torch.ones(block, block, dtype=torch.bool, device=rows_R.device)
    last_Rbb = ones.tril() | ~diagonal_R[:, None, None]
    before = ones.repeat(1, columns_RW.shape[1] - 1).expand(len(last_Rbb), -1, -1)
    return torch.cat([before, last_Rbb], 2)[None]


def _gathered_mask(mask: Tensor, rows_R: Tensor, columns_RW: Tensor, count: int) -> Tensor:
    """The part of a mask (B|1, H|1, T|1, T) that rows see: (B|1, R, b|1, W * b)."""
    mask = mask[(None,) * (4 - mask.ndim)]
    split = (count, -1)
    rows = mask.unflatten(2, split) if mask.shape[2] > 1 else mask[:, :, None]
    grid = rows.unflatten(4, split).transpose(3, 4)  # (B, H, N, N, b, b)
    head_R1 = (rows_R // count)[:, None] * (mask.shape[1] > 1)
    row_R1 = (rows_R % count)[:, None] * (mask.shape[2] > 1)
    found: Tensor = grid[:, head_R1, row_R1, columns_RW]  # (B, R, W, b, b)
    return found.transpose(2, 3).flatten(3, 4)


def flex(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    visible: Visible,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`torch.nn.attention.flex_attention`, compiled, on CUDA.

    Raises:
        ModelError: the tensors are not on CUDA, or dropout is asked for, which it cannot do.
    """
    if query_BHTD.device.type != "cuda" or dropout:
        raise ModelError(
            f"flex attention runs on CUDA and without dropout; found {query_BHTD.device.type} and "
            f"dropout {dropout}. Choose the backend 'gather' or 'masked'."
        )
    return flex_with(_compiled(), query_BHTD, key_BGTD, value_BGTD, visible, scale)


def flex_with(
    attend: Callable[..., Any],
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    visible: Visible,
    scale: float | None = None,
) -> Tensor:
    """`flex` by a given flex_attention, compiled or not, on any device."""
    from torch.nn.attention.flex_attention import create_block_mask

    blocks_HNN = _blocks_for(query_BHTD, key_BGTD, visible)
    (batch, heads, queries), keys = query_BHTD.shape[:3], key_BGTD.shape[2]
    offset, block, causal, mask = keys - queries, visible.block, visible.causal, visible.mask
    shape = (batch, heads, queries, keys)
    mask_BHTT = None if mask is None else mask.expand(shape)

    def readable(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        found = blocks_HNN[h, (q + offset) // block, k // block]
        if causal:
            found = found & (k <= q + offset)
        return found if mask_BHTT is None else found & mask_BHTT[b, h, q, k]

    batches = None if mask is None else batch
    limits = create_block_mask(
        readable, batches, heads, queries, keys, device=str(query_BHTD.device)
    )
    out: Tensor = attend(
        query_BHTD,
        key_BGTD,
        value_BGTD,
        block_mask=limits,
        scale=scale,
        enable_gqa=heads != key_BGTD.shape[1],
    )
    return out


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled


def auto(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    visible: Visible,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`gather` where it saves work, else `masked`."""
    used = -(-key_BGTD.shape[2] // visible.block)
    blocks_HNN = visible.blocks_HNN[:, :used, :used]
    sparse = float(blocks_HNN.float().mean()) < GATHER_BELOW
    chosen = gather if sparse else masked
    return chosen(query_BHTD, key_BGTD, value_BGTD, visible, scale, dropout)


BACKENDS: dict[str, Backend] = {"auto": auto, "gather": gather, "masked": masked, "flex": flex}


def backend_named(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("attention backend", name, BACKENDS)
