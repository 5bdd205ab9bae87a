"""What a config of a run stands for: the project, the searches, the tuning; see pipeline/."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prune_env import PruningTask
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.data.splits import augmentation, load_splits, loader
from prune_env.experiments.networks.cifar import image_project
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.models import build_model, load_weights
from prune_env.experiments.networks.presets import open_named
from prune_env.experiments.networks.pretrained import is_pretrained, pretrained_project
from prune_env.experiments.stages.policies import continuing
from prune_env.pipeline.project import Project
from prune_env.pipeline.stages import Hunt
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.recovery.training import Tuning

DENSE = "dense"
"""Folder among the runs, of dense networks that were trained for them."""


def open_project(config: RunConfig) -> Project | PruningTask:
    """The network, data and task that the config names; trains the dense network if need be."""
    opened: Project | PruningTask
    if config.task:
        opened = open_named(config.task, **config.task_options)
    elif is_pretrained(config.model):
        opened = pretrained_project(config.model, config.data, **config.task_options)
    else:
        opened = _image_project(config)
    if isinstance(opened, PruningTask):
        return opened
    return opened.tuned_by(Tuning(tuning_settings(config, opened)))


def _image_project(config: RunConfig) -> Project:
    splits = load_splits(config.data, seed=config.seed)
    factory = partial(build_model, config.model, len(splits.classes))
    batches = partial(loader, mean=splits.mean, std=splits.std)
    augment = augmentation(splits.train)
    train = batches(splits.train, batch_size=config.batch_size, augment=augment, shuffle=True)
    dense = _dense(config, factory, (train, batches(splits.val, batch_size=250)))
    name = f"{config.model} on {Path(config.data).name}"
    return image_project(
        name, dense, splits, factory, batch_size=config.batch_size, **config.task_options
    )


def _dense(config: RunConfig, factory: partial[nn.Module], loaders: tuple[Any, Any]) -> nn.Module:
    """From a file, or trained: once for all runs that ask for the same training."""
    if config.weights:
        return load_weights(factory(), config.weights).eval()
    settings = FinetuneSettings(
        epochs=config.dense_epochs,
        learning_rate=config.dense_learning_rate,
        weight_decay=config.weight_decay,
        label_smoothing=0.05,
        seed=config.seed,
    )
    return trained(
        config.model, factory, loaders, settings, config.task_options, config.runs / DENSE
    )


def tuning_settings(config: RunConfig, project: Project) -> FinetuneSettings:
    """The config's settings; what it leaves at the default is the project's to say."""
    chosen = {
        "epochs": config.finetune_epochs,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "distill_weight": config.distill_weight,
        "seed": config.seed,
    }
    suited = {k: v for k, v in project.recipe.items() if k not in config.differences}
    return FinetuneSettings(**{**chosen, **suited})


def hunts_of(config: RunConfig) -> list[Hunt]:
    """The searches of a run, baselines first."""
    names = [*dict.fromkeys(n for n in config.baselines if n != config.searcher), config.searcher]
    goes_on = {config.searcher: config.init_policy}
    return [
        Hunt(name, config.evaluations, config.seed, continuing(name, goes_on.get(name, "")))
        for name in names
    ]
