"""Dense networks that are trained here once and kept: in the cache folder, by what made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_env import finetune
from prune_env.fingerprint import NUMERICS, identity_of, joined_identity
from prune_env.locks import locked
from prune_env.mdp.candidates import TaskOptions, outline
from prune_env.progress import progress
from prune_env.quality.batches import take_batches
from prune_env.recovery.finetune import EpochRecord, FinetuneSettings
from prune_env.structure.rewrite import tensors_of
from prune_env.tasks.cache import Tensors, cache_folder, cached_tensors

WEIGHTS = "model.safetensors"
_DRY: ContextVar[bool] = ContextVar("dry", default=False)


@contextmanager
def nothing_trained() -> Iterator[None]:
    """Inside, a network that is not trained yet stays as it was made: for a look at its shapes."""
    token = _DRY.set(True)
    try:
        yield
    finally:
        _DRY.reset(token)


def trained(
    name: str,
    factory: Callable[[], nn.Module],
    loaders: tuple[Iterable[Any], Iterable[Any]],
    settings: FinetuneSettings,
    options: Mapping[str, Any],
    folder: Path | None = None,
) -> nn.Module:
    """The network that `factory` makes, trained on the first loader, its best epoch on the second.

    Trained at the first call and read from a file afterwards; a training that was killed goes on
    from its last epoch. The file is known by all that makes the network: its first weights, both
    loaders with their data, the settings.

    Args:
        name: of the file.
        factory: makes the network, drawing its weights from torch's generator.
        loaders: train and val.
        settings: of the training; their seed also draws the first weights.
        options: of the task that it is for, checked before it is trained.
        folder: that the file is kept in; None: the cache folder.

    Raises:
        PruneEnvError: an option is wrong or does not fit the network, see `outline`.
    """
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(settings.seed)
        net = factory()
    shapes = {key: tuple(value.shape) for key, value in tensors_of(net).items()}
    made_of = identity_of(numerics=NUMERICS, network=net, loaders=loaders, settings=settings)
    folder = (folder or cache_folder()) / f"{name}-{joined_identity(made_of)}"
    checkpoint = folder / "checkpoint.pt"

    def make() -> Tensors:
        with progress(f"train {name}", settings.epochs, "epochs") as bar:

            def tell(record: EpochRecord) -> None:
                if record.epoch:
                    bar.step(f"val loss {record.val_loss:.4f}, accuracy {record.val_figure:.2%}")

            result = finetune(
                net, *loaders, settings=settings, checkpoint=checkpoint, on_epoch=tell
            )
        return {key: value.detach() for key, value in tensors_of(result.model).items()}

    def fits(tensors: Tensors) -> bool:
        return {key: tuple(value.shape) for key, value in tensors.items()} == shapes

    if not (folder / WEIGHTS).exists():
        outline(net.eval(), [take_batches(loaders[1], 2)[0].inputs], TaskOptions.of(options))
    if _DRY.get() and not (folder / WEIGHTS).exists():
        return net.eval()
    with locked(folder):  # who wants the same network meanwhile waits for it
        net.load_state_dict(cached_tensors(folder / WEIGHTS, make, fits))
        checkpoint.unlink(missing_ok=True)
    return net.eval()
