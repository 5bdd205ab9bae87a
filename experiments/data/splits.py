"""Labelled images by path or name, in three parts that never mix: train, val, test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from prune_env.errors import DataError, look_up
from prune_env.experiments.data.images import ImageSet
from prune_env.experiments.data.loader import Augmentation, CropFlip, Half, ImageBatches, loader
from prune_env.experiments.data.parts import RawSplits
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.readers import READERS
from prune_env.tasks import digits
from prune_env.tasks.digits import stratified_order

__all__ = [
    "Augmentation",
    "CropFlip",
    "ImageBatches",
    "ImageSet",
    "ImageSplits",
    "load_splits",
    "loader",
]

SHARES = {"test": 0.2, "val": 0.1}
"""Fraction of the training images cut off for a part that the data does not bring."""
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet; what published networks, and ours for CIFAR-10, were trained with."""


AUTO = "auto"
SAMPLES: dict[str, Callable[[Augmentation], Augmentation | None]] = {
    "plain": lambda augment: None,
    "half": Half,
    "augmented": lambda augment: augment,
}
"""What a task's samples are, made of a network's training images and their augmentation."""


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """The parts, the names of the classes, and the channel statistics to normalise with."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def augmentation(images: ImageSet) -> Augmentation | None:
    """What training does to images: crops and mirror images, if they are large enough."""
    return CropFlip(4) if images.images.shape[-1] >= 24 else None


def task_samples(splits: ImageSplits, seed: int, samples: str) -> ImageBatches:
    """What a task calibrates on and is paid by: training images in an order that `seed` draws.

    Args:
        splits: the data.
        seed: of the order and of the augmentation.
        samples: "plain", "augmented", or "half" of each, in turns.

    Raises:
        ConfigError: there are no such samples.
    """
    augment = augmentation(splits.train)
    chosen = look_up("kind of samples", samples, SAMPLES)
    return loader(
        splits.train, batch_size=125, mean=splits.mean, std=splits.std, shuffle=True, seed=seed,
        augment=chosen(augment) if augment else None,
    )  # fmt: skip


def load_splits(path: str | Path, *, seed: int) -> ImageSplits:
    """The data at `path`, or the built-in "digits".

    A path is an npz file, a folder of parquet files or one such file, or a folder of images; a
    relative one is looked up in the places of `locate`. A missing val (a tenth) or
    test part (a fifth) is cut from train, each class in its share, by `seed`; the digits have
    one fixed split. Decoded images are cached.

    Raises:
        DataError: nothing there, nothing readable, damaged or mixed content; says where.
    """
    if str(path) == "digits":
        return _digits()
    found = locate(path)
    for reader in READERS.values():
        if reader.knows(found):
            return _splits(reader.read(found), found, seed)
    raise DataError(f"'{found}' is none of the kinds of data known: {', '.join(READERS)}.")


def _digits() -> ImageSplits:
    """The built-in digits; normalised they equal `prune_env.tasks.digits.load_digits`."""
    images, labels = digits.raw_digits()
    parts = {
        name: ImageSet(images[index].unsqueeze(1), labels[index])
        for name, index in digits.split_digits().items()
    }
    scale = digits.INK / 255  # the loader divides by 255, the task by its largest value
    return ImageSplits(
        parts["train"],
        parts["val"],
        parts["test"],
        tuple(str(number) for number in range(digits.CLASSES)),
        (digits.MEAN * scale,),
        (digits.STD * scale,),
    )


def _splits(raw: RawSplits, path: Path, seed: int) -> ImageSplits:
    parts = _cut_missing(raw.parts, seed)
    shape = parts["train"].images.shape[1:]
    for name, part in parts.items():
        if not len(part.labels):
            raise DataError(f"'{path}' has no image for {name}; more images are needed.")
        if part.images.shape[1:] != shape:
            raise DataError(
                f"{name} images in '{path}' are {tuple(part.images.shape[1:])} (channels, "
                f"height, width), train images {tuple(shape)}. Bring them to one size and "
                "colour mode."
            )
        if int(part.labels.max()) >= len(raw.classes):
            raise DataError(
                f"'{path}' names {len(raw.classes)} classes, but {name} holds the label "
                f"{int(part.labels.max())}."
            )
    mean, std = (RGB_MEAN, RGB_STD) if shape[0] == 3 else _statistics(parts["train"])
    return ImageSplits(parts["train"], parts["val"], parts["test"], raw.classes, mean, std)


def _cut_missing(parts: dict[str, ImageSet], seed: int) -> dict[str, ImageSet]:
    """All three parts; absent ones are cut from the training images."""
    pool = parts["all"] if "all" in parts else parts["train"]
    order = stratified_order(pool.labels, seed)
    result = {name: part for name, part in parts.items() if name in SHARES}
    start = 0
    for name, share in SHARES.items():
        if name not in result:
            stop = start + round(share * len(order))
            index = order[start:stop].sort().values
            result[name] = ImageSet(pool.images[index], pool.labels[index])
            start = stop
    kept = order[start:].sort().values
    untouched = start == 0
    result["train"] = pool if untouched else ImageSet(pool.images[kept], pool.labels[kept])
    return result


def _statistics(part: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = part.images.float() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())


def shuffled(images: ImageSet, seed: int, part: slice) -> ImageSet:
    """A part of an `ImageSet` in a random order that only the seed decides."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
    return ImageSet(images.images[order[part]], images.labels[order[part]])
