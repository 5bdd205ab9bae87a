"""The tasks that come with the package."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.mdp.task import PruningTask
from prune_env.tasks.digits import dense_digits, load_digits


def digits(**options: Any) -> PruningTask:
    """Prune the residual digits network; needs nothing beside the package.

    The dense network is trained at the first call (a few seconds) and cached, see
    `prune_env.tasks.digits.dense_digits`. `options` are those of `TaskOptions`.
    """
    return digits_task(dense_digits(), **options)


def digits_task(dense: nn.Module, **options: Any) -> PruningTask:
    """The task of pruning a network that was trained on the digits."""
    train = DataLoader(TensorDataset(*load_digits().train), batch_size=125)
    return PruningTask.from_model(dense, train, name="digits", **options)
