"""Normalisation over a batch that sees data only, whatever padding lies between.

Legend: C channels, M rows (samples x positions), N rows that are data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.quality.padding import Positions, data_rows


@contextmanager
def over_data(norms: Sequence[nn.Module], positions: Positions) -> Iterator[None]:
    """Inside the `with` block `norms` take the rows that are data; the others become 0."""
    held = [norm.__dict__.get("forward") for norm in norms if positions]
    for norm in norms if positions else ():
        norm.__dict__["forward"] = _on_data(norm.forward, positions)
    try:
        yield
    finally:
        for norm, forward in zip(norms, held, strict=False):
            del norm.__dict__["forward"]
            norm.__dict__ |= {} if forward is None else {"forward": forward}


def _on_data(forward: Any, positions: Positions) -> Any:
    def on_data(x: Tensor) -> Tensor:
        last = x.movedim(1, -1)  # channels
        flat_MC, data_M = last.flatten(0, -2), data_rows(positions, last.shape)
        if data_M is None:
            return forward(x)  # type: ignore[no-any-return]
        placed_MC = torch.zeros_like(flat_MC)
        placed_MC[data_M] = forward(flat_MC[data_M])
        return placed_MC.reshape(last.shape).movedim(-1, 1)

    return on_data
