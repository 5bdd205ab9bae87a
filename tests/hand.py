"""Groups made by hand whose units are not channels: heads, fused heads, gated neurons."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Toy

from prune_env.structure.groups import Axis, PrunableGroup, Span

HEADS, D, WIDTH, NEURONS = 4, 3, 10, 14


class Attention(nn.Module):
    """Separate q, k, v."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * D) for _ in range(3))
        self.o = nn.Linear(HEADS * D, WIDTH)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)

    def forward(self, x: Tensor) -> Tensor:
        split = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.project(x))
        mixed = F.scaled_dot_product_attention(*split)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


class FusedAttention(Attention):
    """q, k and v in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * D)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).chunk(3, -1)


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, NEURONS), nn.Linear(WIDTH, NEURONS)
        self.down = nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def _heads(tensor: str, starts: tuple[int, ...], size: int) -> list[Axis]:
    """Rows of a projection and its bias, one axis per start."""
    spans = [(Span(start, D),) for start in starts]
    rows = [Axis(f"{tensor}.weight", (0,), span, (size,), "out") for span in spans]
    return rows + [Axis(f"{tensor}.bias", (0,), span, (size,), "shift") for span in spans]


def _read_by_o() -> list[Axis]:
    return [
        Axis("o.weight", (1,), (Span(0, D),), (HEADS * D,), "in"),
        Axis("heads", (0,), (Span(0, 1),), (HEADS,), "count"),
    ]


def _attention() -> tuple[nn.Module, PrunableGroup]:
    axes = [axis for name in "qkv" for axis in _heads(name, (0,), HEADS * D)] + _read_by_o()
    return Attention(), PrunableGroup("heads", (HEADS,), tuple(axes))


def _fused() -> tuple[nn.Module, PrunableGroup]:
    starts = (0, HEADS * D, 2 * HEADS * D)
    axes = _heads("qkv", starts, 3 * HEADS * D) + _read_by_o()
    return FusedAttention(), PrunableGroup("heads", (HEADS,), tuple(axes))


def _gated() -> tuple[nn.Module, PrunableGroup]:
    one, size = (Span(0, 1),), (NEURONS,)
    axes = [Axis(f"{name}.weight", (0,), one, size, "out") for name in ("gate", "up")]
    axes += [Axis(f"{name}.bias", (0,), one, size, "shift") for name in ("gate", "up")]
    axes += [Axis("down.weight", (1,), one, size, "in")]
    return GatedMLP(), PrunableGroup("neurons", (NEURONS,), tuple(axes))


HAND: dict[str, Callable[[], tuple[nn.Module, PrunableGroup]]] = {
    "attention": _attention,
    "fused_attention": _fused,
    "gated_mlp": _gated,
}


def by_hand(name: str) -> Toy:
    """The network called `name` in float64, tokens (B, T, WIDTH), and its one group."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, group = HAND[name]()
        inputs = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    return Toy(model.double().eval(), inputs, (group,))
