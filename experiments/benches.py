"""What the benches share: their dense network, their images, and how figures are published."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from experiments.config import RunConfig, digest_of


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

    from experiments.data import load_splits, loader
    from experiments.models import build_model
    from prune_env import FinetuneSettings, finetune
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
        on_epoch=lambda record: note(f"dense epoch {record.epoch}: {record.val_accuracy:.2%}"),
    )
    save_tensors(weights, tuned.model.state_dict())


def training(splits: Any, images: Any) -> Any:
    """A loader for training on a part of the images, augmented as in a run."""
    from experiments.data import CropFlip, loader

    augment = CropFlip(4) if images.images.shape[-1] >= 24 else None
    return loader(
        images,
        batch_size=128,
        mean=splits.mean,
        std=splits.std,
        augment=augment,
        shuffle=True,
    )


def shuffled(images: Any, seed: int, part: slice) -> Any:
    """A part of an `ImageSet` in a random order that only the seed decides."""
    import torch

    from experiments.data import ImageSet

    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
    return ImageSet(images.images[order[part]], images.labels[order[part]])


def run_config(config: Any, weights: Path) -> RunConfig:
    """The run that a bench works on: the fields both have in common."""
    names = {entry.name for entry in fields(RunConfig)}
    common = {name: value for name, value in asdict(config).items() if name in names}
    return RunConfig(**{**common, "weights": str(weights)})


def val_batches(project: Any, samples: int) -> list[Any]:
    """The first `samples` val images (0: all) in the batches that evaluate fastest."""
    from prune_env.measure.batches import channels_last, take_batches
    from prune_env.measure.inference import fitting_batch

    batches = take_batches(project.val, samples or None)
    inputs: Any = batches[0].inputs
    size = fitting_batch(project.dense, inputs[:2])
    return [channels_last(batch) for batch in take_batches(batches, None, size)]


def settings_of(config: Any) -> dict[str, Any]:
    """The settings, as JSON holds them."""
    import torch

    settings: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return {**settings, "threads": torch.get_num_threads(), "torch": torch.__version__}


def command_of(script: str, argv: Sequence[str]) -> str:
    """What was typed, to be typed again."""
    return shlex.join(["python", "-m", f"experiments.{script}", *argv])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def publish(out: str, command: str, text: str, figures: Mapping[str, Any]) -> None:
    """Print the page and, last, the JSON line; with `out`, write both to `out`.md and .json."""
    from prune_env.storage import write_text

    line = json.dumps(_finite({"command": command, **figures}), allow_nan=False)
    if out:
        write_text(f"{out}.md", f"{text}\nMade by\n\n    {command}\n")
        write_text(f"{out}.json", line + "\n")
    print(text)
    print(line)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: an undefined figure is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(line: str) -> None:
    """Progress, where it does not disturb the figures."""
    print(line, file=sys.stderr, flush=True)
