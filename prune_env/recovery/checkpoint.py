"""What a killed fine-tuning run needs to go on: one file, replaced after every epoch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import RunError
from prune_env.fingerprint import described, identity_of
from prune_env.records import read_record
from prune_env.recovery.masks import KeepMasks
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.storage import read_sealed, write_sealed

KIND, CURE = "fine-tuning checkpoint", "Delete it to start again, or give another path."
Fingerprint = dict[str, Any]
State = dict[str, Any]


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history. Epoch 0 is the model as it came, before any step.

    Attributes:
        epoch: passes over the training data made so far.
        train_loss: mean loss over the steps of this epoch, distillation included; None at 0.
        val_loss: mean loss on val.
        val_figure: the objective's figure on val, such as accuracy in [0, 1].
        learning_rate: of the last step; 0 at epoch 0.
        higher: whether more of the figure is better.
    """

    epoch: int
    train_loss: float | None
    val_loss: float
    val_figure: float
    learning_rate: float
    higher: bool = True

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: the figure first, then the lower loss."""
        return (self.val_figure if self.higher else -self.val_figure, -self.val_loss)


@dataclass(frozen=True)
class Progress:
    """A run after some epochs: the history so far and the states needed to go on."""

    history: tuple[EpochRecord, ...]
    model: State
    optimizer: State
    best: State
    scheduler: State | None = None

    @property
    def best_record(self) -> EpochRecord:
        return max(self.history, key=lambda record: record.rank)  # the earliest of equals


def snapshot(state: Any) -> Any:
    """A deep copy of a nested state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: snapshot(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(snapshot(value) for value in state)
    return state


def fingerprint(
    settings: FinetuneSettings,
    model: nn.Module,
    teacher: nn.Module | None,
    steps: int,
    masks: KeepMasks,
    data: tuple[Any, Any],
    decided: Mapping[str, Any],
) -> Fingerprint:
    """What two runs must share for one to go on where the other stopped.

    Of the data of train and val what can be told by content is, see `described`; so is what else
    decides (`decided`, by name).
    """
    shapes = {name: list(value.shape) for name, value in _tensors(model).items()}
    return {
        **{f"settings.{name}": value for name, value in asdict(settings).items()},
        **identity_of(**decided),
        **{f"shape of {name}": shape for name, shape in shapes.items()},
        "initial weights": _digest(model),
        "teacher": "none" if teacher is None else _digest(teacher),
        "steps per epoch": steps,
        "masks": masks.digest,
        "train data": described(data[0]),
        "val data": described(data[1]),
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: value for n, value in model.state_dict().items() if isinstance(value, Tensor)}


def _digest(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, value in sorted(_tensors(model).items()):
        content.update(name.encode())
        content.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return content.hexdigest()[:16]


def save_progress(path: Path, progress: Progress, print_: Fingerprint) -> None:
    """Replace `path` by this progress, atomically; sealed by a digest."""
    buffer = io.BytesIO()
    content = {
        "fingerprint": print_,
        "history": [asdict(record) for record in progress.history],
        "model": progress.model,
        "optimizer": progress.optimizer,
        "best": progress.best,
        "scheduler": progress.scheduler,
    }
    torch.save(content, buffer)
    write_sealed(path, buffer.getvalue())


def load_progress(path: Path, print_: Fingerprint) -> Progress | None:
    """The progress kept in `path`, or None when there is no such file.

    Raises:
        RunError: the file is not a checkpoint, or belongs to another run (says what differs).
    """
    if not path.exists():
        return None
    data = read_sealed(path, KIND, CURE)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found: Fingerprint = content["fingerprint"]
        progress = Progress(
            tuple(read_record(EpochRecord, record) for record in content["history"]),
            content["model"],
            content["optimizer"],
            content["best"],
            content["scheduler"],
        )
    except Exception as error:  # torch.load lets through whatever damaged bytes run into
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"'{path}' is not a {KIND} ({reason[0]}). {CURE}") from error
    _check_same(path, found, print_)
    return progress


def _check_same(path: Path, found: Fingerprint, wanted: Fingerprint) -> None:
    missing = object()
    names = [*wanted, *(name for name in found if name not in wanted)]
    differ = [n for n in names if found.get(n, missing) != wanted.get(n, missing)]
    if not differ:
        return
    shown = "; ".join(
        f"{name}: {found.get(name, 'absent')} in the file, {wanted.get(name, 'absent')} now"
        for name in differ[:4]
    )
    more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
    raise RunError(f"the checkpoint '{path}' belongs to another run ({shown}{more}). {CURE}")
