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

from prune_env.errors import DataError, ModelError
from prune_env.quality.outputs import AUTO, Output, Said
from prune_env.quality.padding import IGNORED
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
    Place,
    accuracy_and_loss,
    batches,
    build_loss,
    device_of,
    logits_for,
    output_of,
)
from prune_env.recovery.masks import KeepMasks, require_masks
from prune_env.recovery.schedule import FinetuneSettings, build_optimizer, learning_rate_at
from prune_env.structure.entry import copy_of, require_loaded

__all__ = ["EpochRecord", "FinetuneResult", "FinetuneSettings", "finetune"]


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
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    settings: FinetuneSettings = FinetuneSettings(),  # noqa: B008 (frozen)
    teacher: nn.Module | None = None,
    masks: KeepMasks | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    output: Said = AUTO,
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
            with "labels"; targets (B,) int64 for logits (B, C).
        teacher: usually the dense network; its softened outputs enter the loss.
        masks: which weights stay, instead of those that are not zero (see above).
        checkpoint: a file replaced after every epoch. If it is there, the run goes on from it
            and ends with the weights, to the bit, of a run that was never stopped.
        on_epoch: called after every epoch made by this call, epoch 0 included, once it is saved.
        output: which part of the outputs is the logits, by name or index, or all that is known of
            them: `task.output`, so that what was measured is what is tuned. Found on `val` if not
            said.

    Raises:
        ConfigError: `masks` is something else.
        DataError: an empty loader, a malformed batch, targets out of range.
        ModelError: the model cannot run a batch, its loss becomes NaN or infinite, or the masks are
            those of another network.
        RunError: the checkpoint belongs to another run, or cannot be read or written.
    """
    require_loaded(model)
    if teacher is not None:
        require_loaded(teacher)
    steps = _count_batches(train, settings)
    masks = KeepMasks.of_network(model) if masks is None else require_masks(masks)
    with _seeded(settings.seed, 0):
        read = output_of(model, val, Place("val", 0), output)
    data = (train, val)
    print_ = fingerprint(settings, model, teacher, steps, masks, data, read) if checkpoint else {}
    student = copy_of(model)
    run = _Run(
        student,
        build_optimizer(student, settings),
        build_loss(settings, _frozen_copy(teacher), read),
        settings,
        steps,
        read,
    )
    progress = load_progress(checkpoint, print_) if checkpoint else None
    if progress is not None:
        student.load_state_dict(progress.model)
        run.optimizer.load_state_dict(progress.optimizer)
    with masks.kept(student):
        for epoch in range(len(progress.history) if progress else 0, settings.epochs + 1):
            progress = _extend(progress, run, _one_epoch(run, train, val, epoch))
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
    optimizer: Optimizer
    loss: Loss
    settings: FinetuneSettings
    steps: int  # per epoch
    output: Output


def _frozen_copy(teacher: nn.Module | None) -> nn.Module | None:
    return None if teacher is None else copy_of(teacher).eval().requires_grad_(False)


def _one_epoch(run: _Run, train: Iterable[Any], val: Iterable[Any], epoch: int) -> EpochRecord:
    """Train for one epoch (none for epoch 0), then measure on val, all under the epoch's seed."""
    loss, rate = None, 0.0
    with _seeded(run.settings.seed, epoch):
        if epoch:
            loss, rate = _train(run, train, epoch)
        quality = accuracy_and_loss(run.model, val, place=Place("val", epoch), output=run.output)
    return EpochRecord(epoch, loss, quality.loss, quality.accuracy, rate)


def _train(run: _Run, train: Iterable[Any], epoch: int) -> tuple[float, float]:
    """One pass over `train`; mean loss over its samples and the last learning rate."""
    run.model.train()
    device, halved = device_of(run.model), run.settings.precision == "bfloat16"
    total, count, rate = 0.0, 0, 0.0
    for step, batch in enumerate(batches(train, device, Place("train", epoch))):
        done = (epoch - 1) * run.steps + min(step, run.steps - 1)
        rate = learning_rate_at(done, run.settings.epochs * run.steps, run.settings)
        with torch.autocast(device.type, torch.bfloat16, enabled=halved):
            logits, targets = logits_for(run.model, batch, Place("train", epoch, step), run.output)
        loss = run.loss(logits.float(), targets, batch.inputs)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"the training loss is {value} at epoch {epoch}, step {step} (learning rate "
                f"{rate:.3g}). Lower the learning rate or set clip_norm, and look for NaN in "
                "the inputs."
            )
        _step(run, loss, rate)
        labelled = int((targets != IGNORED).sum())
        total, count = total + value * labelled, count + labelled
    return total / count, rate


def _step(run: _Run, loss: torch.Tensor, rate: float) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if run.settings.clip_norm < math.inf:
        nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.clip_norm)
    run.optimizer.step()


def _extend(progress: Progress | None, run: _Run, record: EpochRecord) -> Progress:
    state = snapshot(run.model.state_dict())
    improved = progress is None or record.rank > progress.best_record.rank
    return Progress(
        (*(progress.history if progress else ()), record),
        state,
        snapshot(run.optimizer.state_dict()),
        state if improved or progress is None else progress.best,
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
