"""Convolutional networks on CIFAR-10 by name, ready for `--task`.

ResNet-20 comes trained; ResNet-56 and MobileNetV2 are trained here at their first use, an hour on
one core, on a part of the images: far from published accuracy, but trained alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from prune_env import PruningTask
from prune_env.errors import look_up
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.splits import (
    AUTO,
    SAMPLES,
    CropFlip,
    ImageSplits,
    augmentation,
    load_splits,
    loader,
    shuffled,
    task_samples,
)
from prune_env.experiments.networks.chosen import preferred, without_samples
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.models import build_model, load_weights
from prune_env.mdp.candidates import TaskOptions, outline
from prune_env.pipeline.project import Project
from prune_env.quality.batches import take_batches
from prune_env.recovery.epoch import evaluate
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
"""Val images that choose the epoch of a dense training, and tell whether it fitted its images."""
PLENTY = {"calibration_samples": 2_000, "repair_samples": 256}
"""Where images are plenty: four times and twice as many as a task asks for otherwise. A candidate
that is repaired on 128 images is 14 % further from the dense network than the one delivered
(ResNet-20, half the MACs; on 256 it is 2 % nearer)."""


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


def image_project(
    name: str,
    dense: nn.Module,
    splits: ImageSplits,
    factory: Any,
    *,
    recipe: Mapping[str, Any] | None = None,
    sample_kind: str = AUTO,
    batch_size: int = 128,
    **options: Any,
) -> Project:
    """The project of pruning a classifier of images.

    Args:
        name: for titles.
        dense: the trained network.
        splits: its data.
        factory: makes the network with any weights.
        recipe: of its tuning.
        sample_kind: what calibrates and pays, see `task_samples`; "auto": `suited`.
        batch_size: of its tuning.
        options: of `TaskOptions`; `seed` also draws the task's samples.
    """
    augment = augmentation(splits.train)
    batches = partial(loader, mean=splits.mean, std=splits.std)
    seed, note = options.get("seed", 0), ""
    look_up("kind of samples", sample_kind, {**SAMPLES, AUTO: None})
    if sample_kind == AUTO:
        outline(dense, [take_batches(batches(splits.val, batch_size=2), 2)[0].inputs],
                TaskOptions.of(options))  # fmt: skip
        sample_kind, note = suited(dense, splits, seed)
    plenty = len(splits.train.labels) >= 2 * PLENTY["calibration_samples"]
    chosen = preferred(options, **PLENTY) if plenty else options
    taken = task_samples(splits, seed, sample_kind)
    return Project(
        name=name,
        dense=dense,
        task=PruningTask.from_model(dense, taken, name=name, **chosen),
        train=batches(splits.train, batch_size=batch_size, augment=augment, shuffle=True),
        val=batches(splits.val, batch_size=250),
        test=batches(splits.test, batch_size=250),
        factory=factory,
        recipe=recipe or {},
        note=note,
    )


def suited(dense: nn.Module, splits: ImageSplits, seed: int) -> tuple[str, str]:
    """What should calibrate and pay, and why: half augmented where training images are fitted.

    A network that has fitted its training images passes them on differently from new ones, so that
    statistics and rewards of them carry over less well; augmented ones mend some of that
    (`experiments/results/calibration_resnet20.md`). One that has not is calibrated best on what it
    will see (`calibration_vit_cifar10.md`). It has if its loss on `VAL` val images is above that on
    as many training images by more than two standard errors.
    """
    batches = partial(loader, mean=splits.mean, std=splits.std, batch_size=250)
    seen, new = (
        evaluate(dense, batches(shuffled(part, seed, slice(VAL))))
        for part in (splits.train, splits.val)
    )
    fitted = new.loss - seen.loss > 2 * math.hypot(seen.loss_error, new.loss_error)
    kind = "half" if fitted and augmentation(splits.train) else "plain"
    said = {"half": "half plain, half augmented", "plain": "plain"}[kind]
    return kind, (
        f"Calibrated and paid on {said} training images: the dense network's loss is "
        f"{seen.loss:.3f} on {seen.samples:,} of them and {new.loss:.3f} on val."
    )
