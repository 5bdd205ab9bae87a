"""What tells one set of tensors from another: a digest of names, kinds and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prune_env.structure.rewrite import tensors_of


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Twenty hex digits that change when a name, shape, kind or bit of a value does."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:20]


def fingerprint(model: nn.Module) -> str:
    """Digest of a network's weights and statistics; integers are left out, as they may count."""
    return digest({name: t for name, t in tensors_of(model).items() if t.is_floating_point()})
