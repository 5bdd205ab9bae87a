"""`nn.MultiheadAttention` whose widths come from its tensors.

PyTorch's own forward insists on `embed_dim` rows, and its fused inference path on the number of
heads, so a network with fewer heads could not run. Tensors and state_dict keys stay the same.

Legend: B batch, T target tokens, S source tokens, H heads, D dims of a head, E = H * D.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)


def free_widths(model: Module) -> Module:
    """`model`, its `nn.MultiheadAttention` modules freed in place from their first widths.

    They compute the same as before. Fused inference paths, which would run past them, are off; so a
    `nn.TransformerEncoder` returns values, not zeros, at padded positions.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and _plain(module):
            module.__class__ = FreeMultiheadAttention
            module._qkv_same_embed_dim = False  # the fused path of nn.TransformerEncoderLayer asks
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _plain(module: nn.MultiheadAttention) -> bool:
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


class FreeMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention with as many heads as its projection has rows for; D never changes.

    Made by `free_widths`. Masks, layouts and results are those of `nn.MultiheadAttention`
    ("Attention is all you need", section 3.2.2).
    """

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint only: the mask that must come with it is used
    ) -> tuple[Tensor, Tensor | None]:
        single = query.ndim == 2
        q_BHTD, k_BHSD, v_BHSD = (
            self._heads(x, single) for x in self._projected(query, key, value)
        )
        mask = _merged(attn_mask, key_padding_mask, q_BHTD)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q_BHTD @ k_BHSD.transpose(2, 3) / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, drop)
            mixed_BHTD = weights @ v_BHSD
        else:
            mixed_BHTD = functional.scaled_dot_product_attention(
                q_BHTD, k_BHSD, v_BHSD, mask, dropout_p=drop
            )
        result = self.out_proj(mixed_BHTD.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        packed, bias = self.in_proj_weight, self.in_proj_bias
        if packed is not None and query is key is value:
            return functional.linear(query, packed, bias).chunk(3, -1)
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if packed is None else packed.chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        operands = zip((query, key, value), weights, biases, strict=True)
        return tuple(functional.linear(x, weight, b) for x, weight, b in operands)

    def _heads(self, projected: Tensor, single: bool) -> Tensor:
        """(B, T, E), (T, B, E) or (T, E) as (B, H, T, D)."""
        if single:
            projected = projected.unsqueeze(0)
        elif not self.batch_first:
            projected = projected.transpose(0, 1)
        batch, tokens, _ = projected.shape
        return projected.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)


def _merged(attention: Tensor | None, padding: Tensor | None, like_BHTD: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcastable to (B, H, T, S)."""
    masks = []
    if attention is not None:
        attention = _additive(attention, like_BHTD)
        if attention.ndim == 3:  # (B * H, T, S)
            attention = attention.unflatten(0, (like_BHTD.shape[0], -1))
        masks.append(attention)
    if padding is not None:
        padding = padding if padding.ndim == 2 else padding.unsqueeze(0)
        masks.append(_additive(padding, like_BHTD)[:, None, None, :])
    if len(masks) == 2:
        return masks[0] + masks[1]
    return masks[0] if masks else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is True where nobody may look, as 0 and -inf; others as they are."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
