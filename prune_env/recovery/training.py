"""Moving the weights: one pass over training data, and all that it goes by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prune_env.errors import ModelError
from prune_env.quality.objectives import Objective
from prune_env.quality.outputs import TAKES, run
from prune_env.recovery.epoch import Loss, Opinion, OwnLoss, Place, batches, build_loss
from prune_env.recovery.schedule import FinetuneSettings, build_optimizer, learning_rate_at
from prune_env.structure.blame import CURE
from prune_env.structure.inputs import device_of


@dataclass(frozen=True, eq=False)
class Tuning:
    """How a pruned network gets back what it lost; see `finetune` for the last three."""

    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    loss: OwnLoss | None = None
    optimizer: Callable[[nn.Module], Optimizer] | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """What `on_step` is told after every step.

    Attributes:
        model: the network that is tuned, after the step; what is removed is zero.
        epoch, step: counted from 1 and, within the epoch, from 0.
        loss: that was descended.
        learning_rate: of the first parameter group.
    """

    model: nn.Module
    epoch: int
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Training:
    """A network on its way.

    Attributes:
        model: whose weights move, in place.
        optimizer, scheduler: what moves them; without a scheduler the settings' schedule does.
        peaks: learning rates at the top of the schedule, by parameter group.
        loss: that is descended.
        settings: everything else.
        steps: of one epoch.
        on_step: hears of every step.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    peaks: list[float]
    loss: Loss
    settings: FinetuneSettings
    steps: int
    on_step: Callable[[Step], None] | None = None

    @staticmethod
    def of(
        model: nn.Module,
        tuning: Tuning,
        opinion: Opinion | None,
        objective: Objective,
        steps: int,
        on_step: Callable[[Step], None] | None = None,
    ) -> Training:
        """The start of it.

        Raises:
            ConfigError: there is nothing to descend; see `build_loss`.
            ModelError: no parameter requires a gradient.
        """
        settings = tuning.settings
        loss = build_loss(settings, opinion, objective, tuning.loss)
        moves = tuning.optimizer(model) if tuning.optimizer else build_optimizer(model, settings)
        scheduler = tuning.scheduler(moves, steps * settings.epochs) if tuning.scheduler else None
        peaks = [group["lr"] for group in moves.param_groups]
        return Training(model, moves, scheduler, peaks, loss, settings, steps, on_step)


def train_pass(tuning: Training, train: Iterable[Any], epoch: int) -> tuple[float, float]:
    """One pass over `train`; mean loss over its samples and the last learning rate."""
    tuning.model.train()
    device, halved = device_of(tuning.model), tuning.settings.precision == "bfloat16"
    total, count, rate = 0.0, 0, 0.0
    for step, batch in enumerate(batches(train, device, Place("train", epoch))):
        here = Place("train", epoch, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=halved):
            raw = run(tuning.model, batch, here, f"{TAKES} {CURE}.")
        loss, size = tuning.loss(raw, batch, here)
        value = float(loss.detach())
        rate = _set_rates(tuning, (epoch - 1) * tuning.steps + min(step, tuning.steps - 1))
        if not math.isfinite(value):
            raise ModelError(
                f"the training loss is {value} at epoch {epoch}, step {step} (learning rate "
                f"{rate:.3g}). Lower the learning rate or set clip_norm, and look for NaN in "
                "the inputs."
            )
        _step(tuning, loss)
        if tuning.on_step is not None:
            tuning.on_step(Step(tuning.model, epoch, step, value, rate))
        total, count = total + value * size, count + size
    return total / count, rate


def _set_rates(tuning: Training, done: int) -> float:
    """Learning rates of the step after `done` ones; returns the first."""
    if tuning.scheduler is None:
        settings = tuning.settings
        rate = learning_rate_at(done, settings.epochs * tuning.steps, settings)
        for group, peak in zip(tuning.optimizer.param_groups, tuning.peaks, strict=True):
            group["lr"] = (
                rate if peak == settings.learning_rate else (peak * rate / settings.learning_rate)
            )
    return float(tuning.optimizer.param_groups[0]["lr"])


def _step(tuning: Training, loss: torch.Tensor) -> None:
    tuning.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if tuning.settings.clip_norm < math.inf:
        nn.utils.clip_grad_norm_(tuning.model.parameters(), tuning.settings.clip_norm)
    tuning.optimizer.step()
    if tuning.scheduler is not None:
        tuning.scheduler.step()


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[None]:
    """Torch's generators seeded from (seed, epoch) inside, as they were afterwards."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    number = int.from_bytes(digest[:7], "big")
    # torch.manual_seed would leave a seed behind for a CUDA that nobody has started yet.
    started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(list(range(torch.cuda.device_count())) if started else []):
        torch.default_generator.manual_seed(number)
        if started:
            torch.cuda.manual_seed_all(number)
        yield
