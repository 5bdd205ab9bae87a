"""What the benches work on: their dense network and their images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.run import RunConfig, digest_of
from prune_env.experiments.report.publishing import note


@dataclass(frozen=True)
class Dense:
    """What decides the dense network that a bench trains; every bench config has these fields."""

    model: str
    data: str
    seed: int
    dense_epochs: int
    dense_samples: int
    dense_learning_rate: float


def dense_weights(config: Any) -> Path:
    """The file with the dense weights: the one given, or one trained under `config.runs`.

    A training that was killed goes on after its last epoch.
    """
    if config.weights:
        return Path(config.weights)
    dense = Dense(**{entry.name: getattr(config, entry.name) for entry in fields(Dense)})
    folder: Path = config.runs / f"bench-dense-{dense.model}-{digest_of(dense)}"
    weights = folder / "model.safetensors"
    if not weights.exists():
        _train(dense, folder / "checkpoint.pt", weights)
    return weights


def _train(dense: Dense, checkpoint: Path, weights: Path) -> None:
    import torch

    from prune_env import FinetuneSettings, finetune
    from prune_env.experiments.data.splits import load_splits, loader, shuffled
    from prune_env.experiments.networks.models import build_model
    from prune_env.storage import save_tensors

    splits = load_splits(dense.data, seed=dense.seed)
    images = shuffled(splits.train, dense.seed, slice(dense.dense_samples or None))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(dense.seed)
        model = build_model(dense.model, len(splits.classes))
    settings = FinetuneSettings(
        epochs=dense.dense_epochs,
        learning_rate=dense.dense_learning_rate,
        label_smoothing=0.05,
        seed=dense.seed,
    )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    tuned = finetune(
        model,
        training(splits, images),
        loader(splits.val, batch_size=250, mean=splits.mean, std=splits.std),
        settings=settings,
        checkpoint=checkpoint,
        on_epoch=lambda record: note(f"dense epoch {record.epoch}: {record.val_figure:.2%}"),
    )
    save_tensors(weights, tuned.model.state_dict())


def training(splits: Any, images: Any) -> Any:
    """A loader for training on a part of the images, augmented as in a run."""
    from prune_env.experiments.data.splits import augmentation, loader

    return loader(
        images,
        batch_size=128,
        mean=splits.mean,
        std=splits.std,
        augment=augmentation(images),
        shuffle=True,
    )


def run_config(config: Any, weights: Path) -> RunConfig:
    """The run that a bench works on: the fields both have in common."""
    names = {entry.name for entry in fields(RunConfig)}
    common = {name: value for name, value in asdict(config).items() if name in names}
    return RunConfig(**{**common, "weights": str(weights)})


def val_batches(project: Any, samples: int) -> list[Any]:
    """The first `samples` val images (0: all) in the batches that evaluate fastest."""
    from prune_env.quality.batches import channels_last, take_batches
    from prune_env.quality.inference import fitting_batch

    batches = take_batches(project.val, samples or None)
    inputs: Any = batches[0].inputs
    size = fitting_batch(project.dense, inputs[:2])
    return [channels_last(batch) for batch in take_batches(batches, None, size)]
