"""Big Bird attention inside models of the transformers library.

No model code is copied: the library looks its attention function up by name, and ours reads the
kept blocks from a buffer of the calling module.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.attention.backends import Visible, backend_named
from prune_env.attention.checks import BUFFER, require_length
from prune_env.attention.layout import BlockLayout, layout_of
from prune_env.errors import ConfigError, ModelError
from prune_env.structure.copies import copied
from prune_env.structure.skip import is_cache

NAME = "prune_env_blocks"
"""What the attention function is called in the registry of transformers."""
LARGEST = 2**26
"""Elements of a block mask beyond which a shorter `length` is asked for (64 MiB a layer)."""


def sparsify_attention(
    model: nn.Module, *, backend: str = "auto", length: int | None = None, **fields: Any
) -> Any:
    """A copy of a transformers model whose self-attention reads kept blocks only.

    Every attention module gets a boolean buffer `block_mask` (heads, N, N), part of its state_dict;
    a shorter sequence uses its top left corner. Padding masks and sliding windows stay in force.
    To load saved weights, sparsify a fresh model in the same way and load them into it. A prompt
    decoded with a cache must consist of whole blocks, the tokens after it need not.

    Args:
        model: of transformers 5, with an attention that is chosen through its registry.
        backend: 'auto', 'gather', 'masked' or 'flex' (see backends.py).
        length: tokens that the mask covers; None: the positions of the model's config.
        **fields: of `BlockLayout` or of DeepSpeed (see `layout_of`). Layer l draws its random
            blocks with seed + l; `random` of N or more keeps everything, in the order of removal.

    Raises:
        ConfigError: a field is unknown, out of range, or contradicts the model's causality, or no
            length is known.
        ModelError: the model has no attention of this kind, or attends to a second sequence.
    """
    backend_named(backend)
    layout = layout_of(**fields)
    sparse: Any = copy.deepcopy(model)
    modules = dict(_attention_modules(sparse))
    if not modules:
        raise ModelError(
            f"{type(model).__name__} has no attention module that goes through the attention "
            "registry of transformers 5. Use a model of that library that supports "
            "attn_implementation='sdpa'."
        )
    for number, (name, module) in enumerate(modules.items()):
        causal = bool(getattr(module, "is_causal", False) and _may_be_causal(module.config))
        if "attention" in fields or "causal" in fields:
            _require_causality(name, layout.causal, causal)
        own = replace(layout, seed=layout.seed + number, causal=causal)
        _equip(name, module, own, _length_of(module, length), backend)
    _register()
    sparse.set_attn_implementation(NAME)
    if _check_call not in sparse._forward_pre_hooks.values():
        sparse.register_forward_pre_hook(_check_call, with_kwargs=True)
    return sparse


def _attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules whose own forward looks an attention function up in the registry."""
    config = getattr(model, "config", None)
    for option in ("is_encoder_decoder", "add_cross_attention"):
        if getattr(config, option, False):
            raise ModelError(
                f"{type(model).__name__} attends to a second sequence ({option} of its config). "
                "Block attention serves encoders and decoders alone."
            )
    for name, module in model.named_modules():
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
            yield name, module


def _may_be_causal(config: Any) -> bool:
    """False for a decoder that its config turns into an encoder (embedding models)."""
    return getattr(config, "is_causal", None) is not False


def _require_causality(name: str, asked: bool, found: bool) -> None:
    if asked != found:
        words = {True: "causal (unidirectional)", False: "bidirectional"}
        raise ConfigError(
            f"the layout is {words[asked]}, but '{name}' is {words[found]}. Leave 'attention' out: "
            "it follows from the model."
        )


def _length_of(module: Any, length: int | None) -> int:
    positions: int | None = getattr(module.config, "max_position_embeddings", None)
    chosen = positions if length is None else length
    if chosen is None:
        raise ConfigError(
            f"the config of {type(module).__name__} gives no number of positions. Give `length`, "
            "the number of tokens."
        )
    if length is not None and positions is not None and length > positions:
        raise ConfigError(
            f"length is {length}, but the model has {positions} positions. Give at most that."
        )
    return chosen


def _equip(name: str, module: Any, layout: BlockLayout, length: int, backend: str) -> None:
    heads, blocks = int(module.config.num_attention_heads), length // layout.block
    if not 0 < heads * blocks**2 <= LARGEST:
        raise ConfigError(
            f"'{name}' would have a block mask of {heads} heads and {blocks} blocks squared "
            f"({length} tokens in blocks of {layout.block}). Give another `length` or `block`."
        )
    mask_HNN = layout.mask(heads, blocks)
    device = next((parameter.device for parameter in module.parameters()), None)
    module.register_buffer(BUFFER, mask_HNN.to(device, copy=True))
    module.block_layout, module.block_backend = layout, backend
    width = getattr(module.config, "head_dim", None)
    width = width or module.config.hidden_size // heads
    module.mask_macs = {BUFFER: BlockMacs(layout.block, int(width), blocks)}


@dataclass(frozen=True)
class BlockMacs:
    """What one kept block costs in a call: see `prune_env.costs.model.MASK_MACS`.

    Attributes:
        block: tokens per block.
        width: of a head.
        blocks: along the sequence that the mask covers.
    """

    block: int
    width: int
    blocks: int

    @property
    def per_block(self) -> int:
        """Two products of b x b scores with D wide heads (Zaheer et al. 2020, appendix D)."""
        return 2 * self.block**2 * self.width

    def __call__(self, hidden_BTC: Tensor) -> float:
        """MACs of an element for this input.

        Exact where the mask covers just this input. A shorter one reads the top left corner: which
        elements are in it depends on the level, so each counts as the corner's share of the whole.
        """
        batch, length = hidden_BTC.shape[:2]
        corner = (length / (self.block * self.blocks)) ** 2
        return batch * self.per_block * corner


def with_full_attention(model: nn.Module) -> Any:
    """A copy of what `sparsify_attention` made that reads every block; its masks are idle."""
    whole: Any = copied(model)
    whole.set_attn_implementation("sdpa")
    return whole


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, block_attention)
    AttentionMaskInterface.register(NAME, _position_mask)


def block_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers: (B, H, T, D) queries to (B, T, H, D).

    Raises:
        ModelError: the module has no block mask, the sequence does not fit it, or the scores need
            more than a boolean mask.
    """
    blocks_HNN, layout = getattr(module, BUFFER, None), getattr(module, "block_layout", None)
    if blocks_HNN is None or layout is None:
        raise ModelError(
            f"{type(module).__name__} has no block mask. Make the model with sparsify_attention."
        )
    found = [name for name in ("position_bias", "softcap") if kwargs.get(name) is not None]
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        found.append(f"a mask of {attention_mask.dtype}")
    if found:
        raise ModelError(
            f"block attention of {type(module).__name__} takes a boolean mask and no bias; found "
            f"{', '.join(found)}. Give a 2-D attention mask of ones and zeros."
        )
    causal = layout.causal if is_causal is None else is_causal
    blocks_HNN = blocks_HNN.tril() if layout.causal else blocks_HNN
    visible = Visible(blocks_HNN, layout.block, causal and attention_mask is None, attention_mask)
    backend = backend_named(module.block_backend)
    out_BHTD = backend(query, key, value, visible, scaling, dropout)
    return out_BHTD.transpose(1, 2).contiguous(), None


def _position_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    **kwargs: Any,
) -> Tensor | None:
    """The boolean mask of transformers; blocks are counted from the first key, so none may lack."""
    from transformers.masking_utils import sdpa_mask

    if int(kv_offset) or int(q_offset) + q_length != kv_length:
        raise ModelError(
            f"the cache holds keys {int(kv_offset)} to {int(kv_offset) + kv_length} while the last "
            f"query is at {int(q_offset) + q_length - 1}: block attention needs a cache of every "
            "key so far and no more. Give the model a DynamicCache()."
        )
    found: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        **kwargs,
    )
    return found


def _check_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse sequences that do not fit before the embeddings are looked up."""
    first = args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if first is None else first
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 + tokens.is_floating_point():
        return
    past = next(filter(is_cache, kwargs.values()), None)
    seen = 0 if past is None else int(past.get_seq_length())
    require_length(model, seen + tokens.shape[1], whole=not seen)
