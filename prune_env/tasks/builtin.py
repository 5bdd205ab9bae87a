"""The tasks that come with the package."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.mdp.candidates import TaskOptions, outline
from prune_env.mdp.task import PruningTask
from prune_env.tasks.digits import dense_digits, load_digits


def digits(**options: Any) -> PruningTask:
    """Prune the residual digits network; needs nothing beside the package.

    The dense network is trained at the first call (a few seconds) and cached, see
    `prune_env.tasks.digits.dense_digits`. `options` are those of `TaskOptions`.
    """
    return digits_task(digits_net(**options), **options)


def digits_net(**options: Any) -> nn.Module:
    """The trained network, for a task with these options; if it must be trained, checks them first.

    Raises:
        PruneEnvError: see `PruningTask.from_model`.
    """
    chosen, example = TaskOptions.of(options), load_digits().train.images[:2]
    return dense_digits(before=lambda net: outline(net, [example], chosen))


def digits_task(dense: nn.Module, **options: Any) -> PruningTask:
    """The task of pruning a network that was trained on the digits."""
    train = DataLoader(TensorDataset(*load_digits().train), batch_size=125)
    return PruningTask.from_model(dense, train, name="digits", **options)
