"""Refusing, before anything is computed, sequences that block-sparse attention cannot serve."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prune_env.attention.backends import require_blocks, require_keys
from prune_env.errors import ModelError

BUFFER = "block_mask"
"""Where a module keeps its blocks, (heads, N, N), bool."""


def sparse_modules(model: nn.Module) -> dict[str, Any]:
    """The modules of `model` that hold a block mask, by name."""
    return {
        name: module for name, module in model.named_modules() if hasattr(module, "block_layout")
    }


def require_length(model: nn.Module, length: int, *, whole: bool = True) -> None:
    """Check that a sequence of `length` tokens fits every block mask of `model`.

    Args:
        model: made by `sparsify_attention`.
        length: tokens, those in a cache included.
        whole: they are read at once, so that they must fill whole blocks.

    Raises:
        ModelError: too long, not divisible by the block, or a query would have no key.
    """
    for module in sparse_modules(model).values():
        blocks_HNN: Tensor = module.get_buffer(BUFFER)
        block = module.block_layout.block
        require_blocks(length, blocks_HNN.shape[1] * block, block, whole)
        used = -(-length // block)
        blocks_HNN = blocks_HNN[:, :used, :used]
        require_keys(blocks_HNN.tril() if module.block_layout.causal else blocks_HNN)


def require_sparse(model: nn.Module, length: int) -> None:
    """Check that attention over `length` tokens is block sparse, and not full without a word.

    Big Bird of transformers turns to full attention, for good, at the first sequence that is not
    longer than (5 + 2 * num_random_blocks) * block_size tokens.

    Raises:
        ModelError: the model would use full attention, or the sequence does not fit its blocks.
    """
    if sparse_modules(model):
        require_length(model, length)
        return
    config: Any = getattr(model, "config", None)
    kinds = {
        module.attention_type for module in model.modules() if hasattr(module, "attention_type")
    }
    if kinds != {"block_sparse"}:
        raise ModelError(
            f"{type(model).__name__} has full attention (attention types found: "
            f"{', '.join(sorted(map(str, kinds))) or 'none'}). Use sparsify_attention, or "
            "attention_type='block_sparse' with Big Bird."
        )
    needed = (5 + 2 * config.num_random_blocks) * config.block_size
    if length <= needed:
        raise ModelError(
            f"{type(model).__name__} falls back to full attention for {length} tokens: with blocks "
            f"of {config.block_size} and {config.num_random_blocks} random ones "
            f"it needs more than {needed}. Give longer sequences, a smaller block_size or fewer "
            "num_random_blocks."
        )
