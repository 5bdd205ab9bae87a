"""Dense networks that are trained here once and kept: in the cache folder, by what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from experiments.progress import progress
from prune_env import finetune
from prune_env.recovery.finetune import EpochRecord, FinetuneSettings
from prune_env.structure.rewrite import tensors_of
from prune_env.tasks.cache import Tensors, cache_folder, cached_tensors


def trained(
    name: str,
    factory: Callable[[], nn.Module],
    loaders: tuple[Iterable[Any], Iterable[Any]],
    settings: FinetuneSettings,
    data: Mapping[str, Tensor],
) -> nn.Module:
    """The network that `factory` makes, trained on the first loader, its best epoch on the second.

    Trained at the first call and read from a file afterwards; a training that was killed goes on
    from its last epoch.

    Args:
        name: of the file.
        factory: makes the network, drawing its weights from torch's generator.
        loaders: train and val.
        settings: of the training; their seed also draws the first weights.
        data: the tensors behind the loaders; other data make another file.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(settings.seed)
        net = factory()
    shapes = {key: tuple(value.shape) for key, value in tensors_of(net).items()}
    stem = f"{name}-{_digest(net, settings, data)}"
    checkpoint = cache_folder() / f"{stem}.checkpoint.pt"

    def make() -> Tensors:
        with progress(f"train {name}", settings.epochs, "epochs") as bar:

            def tell(record: EpochRecord) -> None:
                if record.epoch:
                    bar.step(f"val loss {record.val_loss:.4f}, accuracy {record.val_accuracy:.2%}")

            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            result = finetune(
                net, *loaders, settings=settings, checkpoint=checkpoint, on_epoch=tell
            )
        return {key: value.detach() for key, value in tensors_of(result.model).items()}

    def fits(tensors: Tensors) -> bool:
        return {key: tuple(value.shape) for key, value in tensors.items()} == shapes

    net.load_state_dict(cached_tensors(cache_folder() / f"{stem}.safetensors", make, fits))
    checkpoint.unlink(missing_ok=True)
    return net.eval()


def _digest(net: nn.Module, settings: FinetuneSettings, data: Mapping[str, Tensor]) -> str:
    """Changes with whatever the trained weights depend on."""
    total = hashlib.sha256(repr((asdict(settings), str(net))).encode())
    for values in (tensors_of(net), data):
        for key, value in sorted(values.items()):
            total.update(f"{key}{tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:12]
