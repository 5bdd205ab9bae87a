"""The built-in task's data and network: handwritten digits, small enough to ship and to train.

The 1,797 images of 8 x 8 pixels are the test part of "Optical Recognition of Handwritten Digits"
by E. Alpaydin and C. Kaynak, UCI Machine Learning Repository 1998 (doi 10.24432/C50P49), licence
CC BY 4.0, as distributed with scikit-learn (`sklearn.datasets.load_digits`); values are counts of
0 to 16 inked pixels per cell, unchanged here. Stored in digits.npz as uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.recovery.finetune import FinetuneSettings, finetune
from prune_env.tasks.cache import Tensors, cache_folder, cached_tensors

CLASSES = 10
INK = 16.0
"""Largest pixel value."""
MEAN, STD = 0.305, 0.376
"""Of the training pixels divided by `INK`."""
SIZES = {"test": 400, "val": 300}
"""Images held out; the other 1,097 are for training."""
DENSE = FinetuneSettings(epochs=8, learning_rate=0.1, label_smoothing=0.05, warmup=0.15)
"""How the dense network is trained."""


class Samples(NamedTuple):
    """Images (N, 1, 8, 8), float32, about zero mean and unit variance; labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Splits(NamedTuple):
    """The three parts of the data; no image is in two of them."""

    train: Samples
    val: Samples
    test: Samples


def raw_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 8, 8) uint8, 0 to 16, and labels (1797,) int64, in their original order."""
    with (resources.files(__package__) / "digits.npz").open("rb") as file, np.load(file) as data:
        return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]).long()


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A shuffled order (N,) of which every prefix has each class in its due share.

    Sample k of the n in its class, classes shuffled, gets the place (k + 1/2) / n.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[place[shuffled].argsort(stable=True)]


def split_digits() -> dict[str, Tensor]:
    """Indices into `raw_digits` of each part: stratified, the same for everybody."""
    order = stratified_order(raw_digits()[1], seed=0)
    test, val = SIZES["test"], SIZES["val"]
    return {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}


def load_digits() -> Splits:
    """1,097 training, 300 validation and 400 test images."""
    images, labels = raw_digits()
    scaled = ((images.float() / INK - MEAN) / STD).unsqueeze(1)
    parts = split_digits()
    return Splits(**{name: Samples(scaled[index], labels[index]) for name, index in parts.items()})


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, projected where width or resolution changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            projection = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network of three stages for images (B, 1, 8, 8): 16, 32 and 64 channels wide.

    Both the inner channels of a block and the channels of a stage's residual stream can go.
    """

    def __init__(
        self,
        classes: int = CLASSES,
        widths: tuple[int, ...] = (16, 32, 64),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        inside = widths[0]
        for stage, width in enumerate(widths):
            layers = []
            for block in range(blocks):
                layers.append(ResidualBlock(inside, width, 2 if stage and not block else 1))
                inside = width
            self.stages.append(nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.stages(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.linear(self.pool(out).flatten(1))
        return logits


def dense_digits(
    cache: Path | None = None, before: Callable[[nn.Module], object] | None = None
) -> DigitsNet:
    """The trained dense network, in eval mode: a few seconds the first time, then from a file.

    `cache` is a folder, by default `$PRUNE_ENV_CACHE` or `~/.cache/prune_env`. A damaged file is
    replaced; a folder that cannot be written gives one warning and no cache. `before` is called
    with the untrained network if it must be trained: what it raises is known early.
    """
    net = DigitsNet()
    shapes = {name: value.shape for name, value in net.state_dict().items()}

    def fits(tensors: Tensors) -> bool:
        return {name: value.shape for name, value in tensors.items()} == shapes

    def make() -> Tensors:
        if before is not None:
            before(net.eval())
        return _train_dense(DENSE)

    file = (cache or cache_folder()) / f"digits-{_digest(shapes)}.safetensors"
    net.load_state_dict(cached_tensors(file, make, fits))
    return net.eval()


def _digest(shapes: dict[str, torch.Size]) -> str:
    """Changes with whatever the trained weights depend on."""
    recipe = (asdict(DENSE), SIZES, MEAN, STD, sorted(shapes.items()), str(DigitsNet()))
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]


def _train_dense(settings: FinetuneSettings) -> Tensors:
    splits = load_digits()
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(settings.seed)
        net = DigitsNet()
    train = DataLoader(TensorDataset(*splits.train), batch_size=64, shuffle=True, drop_last=True)
    val = DataLoader(TensorDataset(*splits.val), batch_size=300)
    return finetune(net, train, val, settings=settings).model.state_dict()
