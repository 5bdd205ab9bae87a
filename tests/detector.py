"""A detector as torchvision's are: losses in train mode, a list of detections in eval mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Boxes = list[dict[str, Tensor]]


class Detector(nn.Module):
    """Says where the brightest spot of an image is, if it is bright enough."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.score, self.place = nn.Linear(16, 1), nn.Linear(16 * 64, 2)

    def forward(self, images: Tensor, targets: Boxes | None = None) -> Any:
        seen = self.body(images)
        score_B = self.score(seen.mean((2, 3))).squeeze(1)
        place_B2 = self.place(seen.flatten(1))
        if self.training:
            assert targets is not None
            there = torch.stack([torch.tensor(float(len(t["boxes"]) > 0)) for t in targets])
            where = torch.stack(
                [t["boxes"].sum(0) if len(t["boxes"]) else torch.zeros(2) for t in targets]
            )
            return {
                "score": nn.functional.binary_cross_entropy_with_logits(score_B, there),
                "place": ((place_B2 - where).square().sum(1) * there).mean(),
            }
        return [
            {"boxes": p[None][s[None] > 0], "scores": s[None][s[None] > 0].sigmoid()}
            for p, s in zip(place_B2, score_B, strict=True)
        ]


def _loader() -> list[tuple[Tensor, Boxes]]:
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(8, 1, 8, 8, generator=generator) / 4
        boxes = []
        for number in range(8):
            spot = torch.randint(0, 8, (2,), generator=generator)
            if number % 4:
                images[number, 0, spot[0], spot[1]] = 2.0
            boxes.append({"boxes": spot[None].float() / 8 if number % 4 else torch.zeros(0, 2)})
        found.append((images, boxes))
    return found


loader = _loader()


def mean_average_precision(model: nn.Module, batches: Iterable[tuple[Tensor, Boxes]]) -> float:
    """The share of images whose spot is found within a quarter, or rightly not found."""
    hits = []
    for images, targets in batches:
        for said, true in zip(model(images), targets, strict=True):
            both = len(said["boxes"]) and len(true["boxes"])
            near = both and float((said["boxes"] - true["boxes"]).abs().max()) < 0.25
            hits.append(bool(near) if both else len(said["boxes"]) == len(true["boxes"]))
    return sum(hits) / len(hits)
