"""Two towers that put images and texts into one space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TwoTowers(nn.Module):
    """Unit vectors (B, 8) of both, and the scale of their products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
        self.text = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ours, theirs = F.normalize(self.image(image)), F.normalize(self.text(text))
        return ours, theirs, self.scale


loader = [((x, x[:, :6] + 0.1), torch.arange(8)) for x in torch.randn(6, 8, 12)]
