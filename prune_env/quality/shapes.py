"""Whether targets go with outputs, and what to say where they do not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prune_env.errors import DataError
from prune_env.quality.padding import IGNORED

KINDS = (
    "Whole numbers, one for every prediction, are classes (objective 'classification', 'tokens', "
    "'segmentation'); zeros and ones in the shape of the outputs are 'multilabel' or 'binary', "
    "other numbers in that shape 'regression'; without targets it is 'outputs'. Or say what "
    "quality means by an Objective of your own, or by a function from a network to a number "
    "(objective=...)."
)


def seen(outputs: Any, targets: Any) -> str:
    """What was found, for messages."""
    return f"outputs are {_described(outputs)}, targets {_described(targets)}"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    first = ", ".join(f"{number:g}" for number in value.flatten()[:3].tolist())
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(value.shape)} ({first}{', ...' if value.numel() > 3 else ''})"


def require_classes(logits: Tensor, targets: Any, where: object) -> None:
    """Check that targets are class numbers of these logits (..., K).

    Raises:
        DataError: says what was found, and what would fit.
    """
    if not isinstance(targets, Tensor):
        raise DataError(f"{where}: {seen(logits, targets)}; no class numbers. {KINDS}")
    classes = logits.shape[-1] if logits.ndim else 0
    if logits.ndim < 2 or logits.shape[:-1] != targets.shape:
        raise DataError(
            f"{where}: targets have shape {tuple(targets.shape)}, but the model's logits "
            f"{tuple(logits.shape)} ask for {tuple(logits.shape[:-1])} class indices "
            f"({seen(logits, targets)}). Images of classes have them on dimension 1. {KINDS}"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise DataError(
            f"{where}: targets are {targets.dtype}; class indices are whole numbers. "
            "Turn one-hot or soft targets into indices with argmax(-1)."
        )
    if classes < 2:
        raise DataError(
            f"{where}: the model gives one number for every prediction, and targets are not all 0 "
            f"or 1 ({seen(logits, targets)}). Numbers to be met are objective='regression'."
        )
    labelled = targets[targets != IGNORED]
    if not labelled.numel():
        return
    low, high = int(labelled.min()), int(labelled.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where}: targets run from {low} to {high}, but the model has {classes} classes, "
            f"numbered 0 to {classes - 1}. Is it the right data set for this model?"
        )


def alike(outputs: Any, targets: Any) -> bool:
    """Whether targets have the shape of the outputs, but for dimensions of 1."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    ours, theirs = ([n for n in each.shape if n != 1] for each in (outputs, targets))
    return ours == theirs and outputs.shape[:1] == targets.shape[:1]


def require_same_shape(outputs: Tensor, targets: Any, where: object) -> None:
    """Check that every output has a target.

    Raises:
        DataError: says what was found, and what would fit.
    """
    if not alike(outputs, targets):
        raise DataError(f"{where}: {seen(outputs, targets)}; one target goes with one output. "
                        f"{KINDS}")  # fmt: skip
