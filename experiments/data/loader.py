"""Batches of normalised images, shuffled and augmented as a whole batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from prune_env.errors import DataError
from prune_env.experiments.data.images import ImageSet

Augmentation = Callable[[Tensor, Generator | None], Tensor]
"""(images (B, C, H, W) uint8, generator) -> images of the same shape and type."""


@dataclass(frozen=True)
class CropFlip:
    """A random crop after zero padding and, half the time, a mirror image; each image its own.

    The augmentation of He et al. 2016, section 4.2, for CIFAR.
    """

    padding: int = 4

    def __call__(self, images: Tensor, generator: Generator | None) -> Tensor:
        count, _, height, width = images.shape
        padded = F.pad(images, (self.padding,) * 4)
        corner = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator)
        rows = corner[0] + torch.arange(height)
        columns = corner[1] + torch.arange(width)
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        sample = torch.arange(count)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Half:
    """An augmentation of every second image; the others stay as they are."""

    augment: Augmentation

    def __call__(self, images: Tensor, generator: Generator | None) -> Tensor:
        mixed = images.clone()
        mixed[1::2] = self.augment(images[1::2], generator)
        return mixed


@dataclass(frozen=True, eq=False)
class ImageBatches:
    """Yields `(images, labels)`, float32 (B, C, H, W) and int64 (B,), anew on every pass.

    Without a seed it draws from torch's global generator, so that whoever seeds that around an
    epoch (as `finetune` does) decides the order; with one, every pass is the same.
    """

    data: ImageSet
    batch_size: int
    scale: Tensor
    shift: Tensor
    augment: Augmentation | None = None
    shuffle: bool = False
    seed: int | None = None

    def __len__(self) -> int:
        return -(-len(self.data.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = None if self.seed is None else Generator().manual_seed(self.seed)
        count = len(self.data.labels)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for index in order.split(self.batch_size):
            images = self.data.images[index]
            if self.augment is not None:
                images = self.augment(images, generator)
            yield images.float().mul_(self.scale).add_(self.shift), self.data.labels[index]


def loader(
    image_set: ImageSet,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augmentation | None = None,
    shuffle: bool = False,
    seed: int | None = None,
) -> ImageBatches:
    """Batches of `(pixel / 255 - mean) / std`, mean and std per channel.

    Raises:
        DataError: no images, a batch size below 1, or mean and std for other channels.
    """
    channels = image_set.images.shape[1]
    if not len(mean) == len(std) == channels:
        raise DataError(
            f"images have {channels} channels, but {len(mean)} means and {len(std)} deviations "
            "were given."
        )
    if not len(image_set.labels) or batch_size < 1:
        raise DataError(
            f"{len(image_set.labels)} images in batches of {batch_size}: both must be at least 1."
        )
    deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
    scale = 1 / (255 * deviation)
    shift = -torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation
    return ImageBatches(image_set, batch_size, scale, shift, augment, shuffle, seed)
