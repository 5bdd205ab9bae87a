"""Convolutional networks on CIFAR-10 by name, ready for `--task`.

ResNet-20 comes trained; ResNet-56 and MobileNetV2 are trained here at their first use, some twenty
minutes on one core, on a part of the images: far from published accuracy, but trained alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from prune_env import PruningTask
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.splits import (
    CropFlip,
    ImageSplits,
    augmentation,
    load_splits,
    loader,
    shuffled,
    task_samples,
)
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.models import build_model, load_weights
from prune_env.pipeline.project import Project
from prune_env.recovery.finetune import FinetuneSettings


@dataclass(frozen=True)
class Training:
    """How a network is trained here.

    Attributes:
        samples: training images, drawn by the settings' seed.
        settings: of the training.
    """

    samples: int
    settings: FinetuneSettings


RECIPES = {
    "resnet56": Training(15_000, FinetuneSettings(
        epochs=14, learning_rate=0.1, label_smoothing=0.05)),
    "mobilenetv2": Training(12_000, FinetuneSettings(
        epochs=9, learning_rate=0.05, label_smoothing=0.05)),
}  # fmt: skip
"""Model -> its training."""
VAL = 1_000
"""Val images that choose the epoch of a dense training."""


def resnet20_cifar10(**options: Any) -> Project:
    """The trained ResNet-20 of the shared models.

    Raises:
        DataError: the images or the weights are in none of the known places.
    """
    weights = locate("resnet20_cifar10_jpeg", "models") / "model.safetensors"
    splits = load_splits(locate("cifar10_jpeg"), seed=0)
    factory = partial(build_model, "resnet20", len(splits.classes))
    return image_project("resnet20_cifar10", load_weights(factory(), weights).eval(), splits,
                         factory, **options)  # fmt: skip


def resnet56_cifar10(**options: Any) -> Project:
    """A ResNet-56, trained here on 15,000 images.

    Raises:
        DataError: cifar10_jpeg is in none of the known places.
    """
    return _trained_here("resnet56", options)


def mobilenetv2_cifar10(**options: Any) -> Project:
    """A MobileNetV2, trained here on 12,000 images.

    Raises:
        DataError: cifar10_jpeg is in none of the known places.
    """
    return _trained_here("mobilenetv2", options)


def _trained_here(model: str, options: Any) -> Project:
    splits, name = load_splits(locate("cifar10_jpeg"), seed=0), f"{model}_cifar10"
    factory, training = partial(build_model, model, len(splits.classes)), RECIPES[model]
    seed = training.settings.seed
    images = shuffled(splits.train, seed, slice(training.samples))
    batches = partial(loader, mean=splits.mean, std=splits.std)
    train = batches(images, batch_size=128, augment=CropFlip(4), shuffle=True)
    val = batches(shuffled(splits.val, seed, slice(VAL)), batch_size=250)
    dense = trained(name, factory, (train, val), training.settings, without_samples(options))
    return image_project(name, dense, splits, factory, **options)


def without_samples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `TaskOptions`."""
    return {name: value for name, value in options.items() if name != "samples"}


def image_project(
    name: str, dense: nn.Module, splits: ImageSplits, factory: Any, **options: Any
) -> Project:
    """The project of pruning a classifier of images.

    Args:
        name: for titles.
        dense: the trained network.
        splits: its data.
        factory: makes the network with any weights.
        options: of `TaskOptions`; `seed` also draws the task's samples, `samples` says what they
            are (see `task_samples`), `recipe` is the project's.
    """
    recipe, kind = options.pop("recipe", {}), options.pop("samples", "half")
    augment = augmentation(splits.train)
    batches = partial(loader, mean=splits.mean, std=splits.std)
    samples = task_samples(splits, options.get("seed", 0), kind)
    return Project(
        name=name,
        dense=dense,
        task=PruningTask.from_model(dense, samples, name=name, **options),
        train=batches(splits.train, batch_size=128, augment=augment, shuffle=True),
        val=batches(splits.val, batch_size=250),
        test=batches(splits.test, batch_size=250),
        factory=factory,
        recipe=recipe,
    )
