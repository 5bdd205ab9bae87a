"""Which blocks of keys a block of queries reads: Big Bird as one nested order of blocks.

Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences, section 2 and appendix D: attention
over blocks of `b` tokens, each query block reading a window around itself, a few global blocks and
some random ones. Here every block of the (N, N) grid has a place in one order (diagonal, window by
distance, global, random), and a layout, like any level of a ladder, is a beginning of it.

Legend: H heads, N blocks along the sequence, M = N * N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune_env.errors import ConfigError
from prune_env.structure.patterns import PATTERNS, Pattern


@dataclass(frozen=True)
class BlockLayout(Pattern):
    """A Big Bird layout, and as a pattern the order in which its blocks are given up.

    Counts mean what they mean in DeepSpeed's `BigBirdSparsityConfig`; random blocks are drawn from
    those that window and global attention leave over, so that counts nest: a layout with larger
    `window`, `global_blocks` or `random` contains the smaller one.

    Attributes:
        block: tokens per block.
        window: width in blocks of the band around the diagonal, `window // 2` to either side.
        global_blocks: blocks that every query reads and, if `horizontal`, that read every key.
        random: blocks drawn per query block; N or more keep everything.
        seed: of the draw.
        causal: no block above the diagonal (DeepSpeed: unidirectional).
        horizontal: global blocks also read everything.
        per_head: every head draws its own random blocks.
    """

    block: int = 16
    window: int = 3
    global_blocks: tuple[int, ...] = (0,)
    random: int = 0
    seed: int = 0
    causal: bool = False
    horizontal: bool = True
    per_head: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))  # JSON gives a list
        for name, low in (("block", 1), ("window", 1), ("random", 0)):
            found = getattr(self, name)
            if not isinstance(found, int) or found < low:
                raise ConfigError(f"{name} of the block layout is {found!r}. Give {low} or more.")
        if any(index < 0 for index in self.global_blocks):
            raise ConfigError(
                f"global blocks {self.global_blocks} hold a negative index. Count from the first."
            )

    def keys(self, heads: int, blocks: int) -> Tensor:
        """The tier of every block, ascending in the order of importance; (H, N, N), int64.

        0 is the diagonal, N + d the window at distance d, 2N + g the g-th global block, 3N + r the
        r-th random block of its row, 4N what causality forbids.

        Raises:
            ConfigError: a global block lies outside the grid.
        """
        if any(index >= blocks for index in self.global_blocks):
            raise ConfigError(
                f"global blocks {self.global_blocks} do not fit {blocks} blocks of {self.block} "
                f"tokens. Give indices below {blocks}, or smaller blocks."
            )
        row_N1, column_N = torch.arange(blocks)[:, None], torch.arange(blocks)
        distance_NN = (row_N1 - column_N).abs()
        place_N = torch.full((blocks,), blocks)
        place_N[list(self.global_blocks)] = torch.arange(len(self.global_blocks))
        place_NN = place_N.expand(blocks, blocks)
        if self.horizontal:
            place_NN = place_NN.minimum(place_N[:, None])
        keys_NN = torch.where(place_NN < blocks, 2 * blocks + place_NN, 3 * blocks)
        near_NN = distance_NN <= self.window // 2
        keys_NN = torch.where(near_NN, blocks + distance_NN, keys_NN).fill_diagonal_(0)
        if self.causal:
            keys_NN = torch.where(column_N > row_N1, 4 * blocks, keys_NN)
        ranks_HNN = self._ranks(heads, keys_NN == 3 * blocks)
        return torch.where(keys_NN == 3 * blocks, 3 * blocks + ranks_HNN, keys_NN)

    def _ranks(self, heads: int, free_NN: Tensor) -> Tensor:
        """Place of each free block in the draw of its row, (H, N, N); others come behind."""
        draws = heads if self.per_head else 1
        generator = torch.Generator().manual_seed(self.seed)
        # Drawn for every block, whatever is free: with a wider window the others keep their order.
        noise_HNN = torch.rand((draws, *free_NN.shape), generator=generator)
        order_HNN = noise_HNN.masked_fill(~free_NN, 2.0).argsort(dim=-1, stable=True)
        return order_HNN.argsort(dim=-1).expand(heads, -1, -1)

    def mask(self, heads: int, blocks: int) -> Tensor:
        """The blocks that are kept, (H, N, N), bool; the diagonal always is.

        Raises:
            ConfigError: a global block lies outside the grid.
        """
        return self.keys(heads, blocks) < 3 * blocks + min(self.random, blocks)

    def order(self, scores: Tensor) -> Tensor:
        """Flat indices of a grid (N, N) or (H, N, N) of blocks, the last to be removed first.

        The order is of position alone, scores do not matter: diagonal, window by distance, global,
        random, forbidden. Heads take turns, so H * k units are the first k blocks of every head.
        """
        heads, blocks = scores.shape[0] if scores.ndim == 3 else 1, scores.shape[-1]
        keys_HM = self.keys(heads, blocks).reshape(heads, -1)
        order_HM = keys_HM.argsort(dim=1, stable=True)
        starts_H1 = torch.arange(heads)[:, None] * keys_HM.shape[1]
        return (starts_H1 + order_HM).T.reshape(-1)

    def step(self, grid: Sequence[int]) -> int:
        """Heads with a draw of their own keep the same number of blocks."""
        return grid[0] if len(grid) == 3 else 1

    @property
    def shrinks(self) -> bool:
        return False


PATTERNS[BlockLayout.__name__] = BlockLayout


def layout_of(**fields: Any) -> BlockLayout:
    """A layout from its own field names, from DeepSpeed's, or from both.

    Args:
        **fields: those of `BlockLayout`; `global_` (the first so many blocks); and of DeepSpeed's
            sparse attention section `block`, `num_sliding_window_blocks`, `num_global_blocks`,
            `num_random_blocks`, `attention` ('bidirectional' or 'unidirectional'),
            `different_layout_per_head`, `horizontal_global_attention`, `global_block_indices`,
            `global_block_end_indices`, `mode` (must be 'bigbird') and `num_heads` (not needed).

    Raises:
        ConfigError: a name is unknown, one value is given twice, or a value is out of range.
    """
    mode = fields.pop("mode", "bigbird")
    if mode != "bigbird":
        raise ConfigError(f"sparse attention mode {mode!r} is not supported. Give 'bigbird'.")
    fields.pop("num_heads", None)
    ends = fields.pop("global_block_end_indices", None)
    if ends is not None:
        fields["global_block_indices"] = _ranges(fields.get("global_block_indices", ()), ends)
    own: dict[str, Any] = {}
    for name, value in fields.items():
        target = NAMES.get(name, name)
        if target not in FIELDS:
            raise ConfigError(
                f"block attention has no option '{name}'. Choose among {', '.join(FIELDS)}, "
                f"or {', '.join(NAMES)}."
            )
        if target in own:
            raise ConfigError(f"'{name}' gives '{target}' a second time. Give it once.")
        own[target] = READ[name](value) if name in READ else value
    return BlockLayout(**own)


def _ranges(starts: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    if len(starts) != len(ends) or any(s >= e for s, e in zip(starts, ends, strict=True)):
        raise ConfigError(
            f"global_block_indices {list(starts)} and global_block_end_indices {list(ends)} are "
            "not pairs of a start and a larger end. Give one end for every start."
        )
    return tuple(index for s, e in zip(starts, ends, strict=True) for index in range(s, e))


def _causal(attention: str) -> bool:
    if attention not in ("bidirectional", "unidirectional"):
        raise ConfigError(
            f"attention is {attention!r}. Give 'bidirectional' or, for causal, 'unidirectional'."
        )
    return attention == "unidirectional"


def _leading(count: int) -> tuple[int, ...]:
    return tuple(range(count))


FIELDS = tuple(BlockLayout.__dataclass_fields__)
NAMES: Mapping[str, str] = {
    "global_": "global_blocks",
    "num_sliding_window_blocks": "window",
    "num_global_blocks": "global_blocks",
    "num_random_blocks": "random",
    "attention": "causal",
    "different_layout_per_head": "per_head",
    "horizontal_global_attention": "horizontal",
    "global_block_indices": "global_blocks",
}
"""Other names of the fields."""
READ: Mapping[str, Callable[[Any], Any]] = {
    "global_": _leading, "num_global_blocks": _leading, "attention": _causal,
}  # fmt: skip
"""How a value under another name becomes the field's."""
