"""Fine-tuning: get back on training data what removing units cost, keep the best epoch on val."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prune_env.errors import DataError
from prune_env.quality.batches import loader_of
from prune_env.quality.choosing import Wish
from prune_env.quality.outputs import AUTO, Said
from prune_env.recovery.checkpoint import (
    EpochRecord,
    Progress,
    fingerprint,
    load_progress,
    save_progress,
    snapshot,
)
from prune_env.recovery.epoch import OwnLoss, Place, batches, evaluate, objective_of, opinion_of
from prune_env.recovery.masks import KeepMasks, require_masks
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.recovery.training import Step, Training, Tuning, seeded, train_pass
from prune_env.structure.entry import copy_of, require_loaded

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
    with seeded(settings.seed, 0):
        read = objective_of(model, data[1], Place("val", 0), objective, output)
    decided = {"objective": read, "loss": loss, "optimizer": optimizer, "scheduler": scheduler}
    print_ = (
        fingerprint(settings, model, teacher, steps, masks, data, decided) if checkpoint else {}
    )
    student, follows = copy_of(model), _frozen_copy(teacher)
    training = Training.of(
        student, Tuning(settings, loss, optimizer, scheduler),
        None if follows is None else opinion_of(follows, read), read, steps, on_step,
    )  # fmt: skip
    reference = follows if read.needs_dense else None
    progress = load_progress(checkpoint, print_) if checkpoint else None
    if progress is not None:
        student.load_state_dict(progress.model)
        training.optimizer.load_state_dict(progress.optimizer)
        if training.scheduler is not None and progress.scheduler is not None:
            training.scheduler.load_state_dict(progress.scheduler)
    with masks.kept(student):
        for epoch in range(len(progress.history) if progress else 0, settings.epochs + 1):
            with seeded(settings.seed, epoch):
                went = train_pass(training, data[0], epoch) if epoch else (None, 0.0)
                found = evaluate(
                    student, data[1], objective=read, place=Place("val", epoch), reference=reference
                )
            record = EpochRecord(
                epoch, went[0], found.loss, found.figure, went[1], read.figure.higher
            )
            progress = _extend(progress, training, record)
            if checkpoint:
                save_progress(checkpoint, progress, print_)
            if on_epoch:
                on_epoch(progress.history[-1])
    assert progress is not None  # epoch 0 is always made
    student.load_state_dict(progress.best)
    student.zero_grad(set_to_none=True)
    best = progress.best_record.epoch
    return FinetuneResult(student.eval(), progress.history, best, progress.model, masks)


def _frozen_copy(teacher: nn.Module | None) -> nn.Module | None:
    return None if teacher is None else copy_of(teacher).eval().requires_grad_(False)


def _extend(progress: Progress | None, training: Training, record: EpochRecord) -> Progress:
    state = snapshot(training.model.state_dict())
    improved = progress is None or record.rank > progress.best_record.rank
    return Progress(
        (*(progress.history if progress else ()), record),
        state,
        snapshot(training.optimizer.state_dict()),
        state if improved or progress is None else progress.best,
        None if training.scheduler is None else snapshot(training.scheduler.state_dict()),
    )


def _count_batches(loader: Iterable[Any], settings: FinetuneSettings) -> int:
    """Batches in one pass: `len`, or a pass of counting for a loader that has none."""
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise DataError(f"train is a {type(loader).__name__}. Give a DataLoader or a list.")
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        with seeded(settings.seed, 0):
            cpu = torch.device("cpu")
            count = sum(1 for _ in batches(loader, cpu, Place("train", 0)))
    if count < 1:
        raise DataError("train is empty: its loader has no batch. Is drop_last set on few samples?")
    return count
