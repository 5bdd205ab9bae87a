"""Fine-tuning: get back on training data what removing units cost, keep the best epoch on val."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prune_env.errors import DataError, ModelError
from prune_env.quality.batches import loader_of
from prune_env.quality.choosing import Wish
from prune_env.quality.objectives import Objective
from prune_env.quality.outputs import AUTO, TAKES, Said, run
from prune_env.recovery.checkpoint import (
    EpochRecord,
    Progress,
    fingerprint,
    load_progress,
    save_progress,
    snapshot,
)
from prune_env.recovery.epoch import (
    Loss,
    OwnLoss,
    Place,
    batches,
    build_loss,
    evaluate,
    objective_of,
)
from prune_env.recovery.masks import KeepMasks, require_masks
from prune_env.recovery.schedule import FinetuneSettings, build_optimizer, learning_rate_at
from prune_env.structure.blame import CURE
from prune_env.structure.entry import copy_of, require_loaded
from prune_env.structure.inputs import device_of

__all__ = ["EpochRecord", "FinetuneResult", "FinetuneSettings", "Step", "finetune"]


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """The tuned model in eval mode with its best epoch's weights, and how it came about.

    Attributes:
        model: as it was at its best epoch on val.
        history: what was measured after every epoch, epoch 0 first.
        best_epoch: the one that val chose.
        last: state_dict after the last epoch, on the CPU, for those who want no choice.
        masks: what stayed zero.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best_epoch: int
    last: Mapping[str, Any]
    masks: KeepMasks


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


def finetune(
    model: nn.Module,
    train: Any,
    val: Any,
    *,
    settings: FinetuneSettings = FinetuneSettings(),  # noqa: B008 (frozen)
    teacher: nn.Module | None = None,
    masks: KeepMasks | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    objective: Wish = AUTO,
    output: Said = AUTO,
    loss: OwnLoss | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    on_step: Callable[[Step], None] | None = None,
    batch: Callable[[Any], Any] | None = None,
) -> FinetuneResult:
    """Tune a copy of `model` on `train` and return it as it was at its best epoch on `val`.

    Epoch 0, before any step, is a candidate too, so the result is never worse on val than what
    came in. `model` and `teacher` stay as they are. Every epoch draws from torch's generator
    seeded by `(settings.seed, epoch)` and put back afterwards, so a shuffling DataLoader gives
    the same batches in every run; a loader with a generator of its own must see to that itself.

    What was removed stays removed: after every step the zeros of the matrices and kernels that came
    in are zero again. They are read from the weights, not from a plan or a mark on the module,
    because weights survive whatever a network goes through on its way here (copies, `state_dict`,
    files, other tools, earlier rounds), so that nobody can forget to say it. A matrix that is zero
    all over is left free, being the beginning of something (LoRA, a new table); networks that
    `env.network()` and `load` give have theirs frozen if a plan emptied it. A lone zero of a dense
    network costs one weight. Zeros that *should* grow are the rare case (an identity as the first
    value, rows of zeros for new classes) and are to be said: `masks=KeepMasks({})`.

    Args:
        train, val: loaders that start again every epoch and yield `(inputs, targets)` or a dict
            with "labels"; a `Dataset` or a tuple of arrays (train is shuffled) does as well.
        teacher: usually the dense network; its softened outputs enter the loss.
        masks: which weights stay, instead of those that are not zero (see above).
        checkpoint: a file replaced after every epoch. If it is there, the run goes on from it
            and ends with the weights, to the bit, of a run that was never stopped.
        on_epoch: called after every epoch made by this call, epoch 0 included, once it is saved.
        objective: what quality means: `task.objective`, so that what was measured is what is tuned.
            Its loss is descended, its figure on val chooses the epoch. Found on `val` if not said.
        output: which part of the outputs is the logits, by name or index, where `objective` does
            not say it.
        loss: of what the network returns in train mode and the targets, instead of the objective's;
            a scalar, or a value per sample.
        optimizer: of the copy that is tuned, instead of the one in `settings`, such as
            `lambda model: torch.optim.Adam(model.parameters(), 1e-3)`. Its learning rates are the
            peaks of the schedule.
        scheduler: of the optimizer and the number of steps in all, instead of warm-up and cosine;
            stepped after every step, so it must count steps, not epochs.
        on_step: called after every step.
        batch: from what the loaders give to (inputs, targets); see `TaskOptions`.

    Raises:
        ConfigError: `masks` is something else; the objective has no loss and none is given.
        DataError: an empty loader, a malformed batch, targets out of range.
        ModelError: the model cannot run a batch, its loss becomes NaN or infinite, or the masks are
            those of another network.
        RunError: the checkpoint belongs to another run, or cannot be read or written.
    """
    require_loaded(model)
    if teacher is not None:
        require_loaded(teacher)
    data = (loader_of(train, batch, shuffle=True), loader_of(val, batch))
    steps = _count_batches(data[0], settings)
    masks = KeepMasks.of_network(model) if masks is None else require_masks(masks)
    with _seeded(settings.seed, 0):
        read = objective_of(model, data[1], Place("val", 0), objective, output)
    decided = {"objective": read, "loss": loss, "optimizer": optimizer, "scheduler": scheduler}
    print_ = (
        fingerprint(settings, model, teacher, steps, masks, data, decided) if checkpoint else {}
    )
    student, follows = copy_of(model), _frozen_copy(teacher)
    descends = build_loss(settings, follows, read, loss)
    moves = optimizer(student) if optimizer else build_optimizer(student, settings)
    tuning = _Run(
        student, follows, moves, [group["lr"] for group in moves.param_groups],
        scheduler(moves, steps * settings.epochs) if scheduler else None,
        descends, settings, steps, read, on_step,
    )  # fmt: skip
    progress = load_progress(checkpoint, print_) if checkpoint else None
    if progress is not None:
        student.load_state_dict(progress.model)
        moves.load_state_dict(progress.optimizer)
        if tuning.scheduler is not None and progress.scheduler is not None:
            tuning.scheduler.load_state_dict(progress.scheduler)
    with masks.kept(student):
        for epoch in range(len(progress.history) if progress else 0, settings.epochs + 1):
            progress = _extend(progress, tuning, _one_epoch(tuning, *data, epoch))
            if checkpoint:
                save_progress(checkpoint, progress, print_)
            if on_epoch:
                on_epoch(progress.history[-1])
    assert progress is not None  # epoch 0 is always made
    student.load_state_dict(progress.best)
    student.zero_grad(set_to_none=True)
    best = progress.best_record.epoch
    return FinetuneResult(student.eval(), progress.history, best, progress.model, masks)


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    teacher: nn.Module | None
    optimizer: Optimizer
    peaks: list[float]  # learning rates at the top of the schedule, by parameter group
    scheduler: LRScheduler | None
    loss: Loss
    settings: FinetuneSettings
    steps: int  # per epoch
    objective: Objective
    on_step: Callable[[Step], None] | None


def _frozen_copy(teacher: nn.Module | None) -> nn.Module | None:
    return None if teacher is None else copy_of(teacher).eval().requires_grad_(False)


def _one_epoch(tuning: _Run, train: Iterable[Any], val: Iterable[Any], epoch: int) -> EpochRecord:
    """Train for one epoch (none for epoch 0), then measure on val, all under the epoch's seed."""
    loss, rate = None, 0.0
    with _seeded(tuning.settings.seed, epoch):
        if epoch:
            loss, rate = _train(tuning, train, epoch)
        found = evaluate(
            tuning.model, val, objective=tuning.objective, place=Place("val", epoch),
            reference=tuning.teacher if tuning.objective.needs_dense else None,
        )  # fmt: skip
    higher = tuning.objective.figure.higher
    return EpochRecord(epoch, loss, found.loss, found.figure, rate, higher)


def _train(tuning: _Run, train: Iterable[Any], epoch: int) -> tuple[float, float]:
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


def _set_rates(tuning: _Run, done: int) -> float:
    """Learning rates of the step after `done` ones; returns the first."""
    if tuning.scheduler is None:
        settings = tuning.settings
        rate = learning_rate_at(done, settings.epochs * tuning.steps, settings)
        for group, peak in zip(tuning.optimizer.param_groups, tuning.peaks, strict=True):
            group["lr"] = (
                rate if peak == settings.learning_rate else (peak * rate / settings.learning_rate)
            )
    return float(tuning.optimizer.param_groups[0]["lr"])


def _step(tuning: _Run, loss: torch.Tensor) -> None:
    tuning.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if tuning.settings.clip_norm < math.inf:
        nn.utils.clip_grad_norm_(tuning.model.parameters(), tuning.settings.clip_norm)
    tuning.optimizer.step()
    if tuning.scheduler is not None:
        tuning.scheduler.step()


def _extend(progress: Progress | None, tuning: _Run, record: EpochRecord) -> Progress:
    state = snapshot(tuning.model.state_dict())
    improved = progress is None or record.rank > progress.best_record.rank
    return Progress(
        (*(progress.history if progress else ()), record),
        state,
        snapshot(tuning.optimizer.state_dict()),
        state if improved or progress is None else progress.best,
        None if tuning.scheduler is None else snapshot(tuning.scheduler.state_dict()),
    )


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
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


def _count_batches(loader: Iterable[Any], settings: FinetuneSettings) -> int:
    """Batches in one pass: `len`, or a pass of counting for a loader that has none."""
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise DataError(f"train is a {type(loader).__name__}. Give a DataLoader or a list.")
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        with _seeded(settings.seed, 0):
            cpu = torch.device("cpu")
            count = sum(1 for _ in batches(loader, cpu, Place("train", 0)))
    if count < 1:
        raise DataError("train is empty: its loader has no batch. Is drop_last set on few samples?")
    return count
