"""How fast the weights move: fine-tuning's settings, its learning rates and its optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from prune_env.checks import Check, among, check_fields, real, whole
from prune_env.errors import ModelError


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides how `finetune` moves the weights, except model, data and teacher.

    Attributes:
        epochs: passes over the training data.
        learning_rate: peak of the schedule, reached at the end of the warm-up.
        optimizer: a name in `OPTIMIZERS`.
        momentum: of SGD (Nesterov's when above 0); AdamW's first beta.
        weight_decay: on matrices and kernels only; biases and norm scales are left alone.
        warmup: fraction of all steps over which the learning rate rises linearly.
        label_smoothing: probability mass spread over all classes in the cross-entropy.
        distill_weight: share of the teacher's term in the loss; unused without a teacher.
        temperature: softens both distributions in the teacher's term.
        clip_norm: largest Euclidean norm of the whole gradient.
        precision: of the products in the forward pass, "float32" or "bfloat16" (autocast).
        seed: of everything drawn from torch's generator while tuning.
    """

    epochs: int = 10
    learning_rate: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    label_smoothing: float = 0.0
    distill_weight: float = 0.5
    temperature: float = 2.0
    clip_norm: float = math.inf
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, CHECKS)


PRECISIONS = ("float32", "bfloat16")


_FRACTION = real("a number at least 0 and below 1", lambda x: 0 <= x < 1)
_SHARE = real("a number between 0 and 1", lambda x: 0 <= x <= 1)
_POSITIVE = real("a number above 0 and finite", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = real("a number at least 0 and finite", lambda x: 0 <= x < math.inf)


def learning_rate_at(step: int, steps: int, settings: FinetuneSettings) -> float:
    """The learning rate of `step` (from 0) out of `steps`: linear warm-up, then half a cosine.

    A pure function of the step, so a resumed run needs no scheduler state. With w warm-up steps:
    peak * (step + 1) / w below w, then peak * (1 + cos(pi * (step - w) / (steps - w))) / 2.
    SGDR, Loshchilov and Hutter 2017, without restarts.
    """
    warmup = min(steps, math.ceil(settings.warmup * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if step >= steps:
        return 0.0
    turn = math.pi * (step - warmup) / (steps - warmup)
    return settings.learning_rate * (1 + math.cos(turn)) / 2


Parameters = list[dict[str, object]]


def _sgd(parameters: Parameters, settings: FinetuneSettings) -> Optimizer:
    momentum = settings.momentum
    return SGD(parameters, settings.learning_rate, momentum, nesterov=momentum > 0)


def _adamw(parameters: Parameters, settings: FinetuneSettings) -> Optimizer:
    return AdamW(parameters, settings.learning_rate, (settings.momentum, 0.999))


OPTIMIZERS: dict[str, Callable[[Parameters, FinetuneSettings], Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}


def build_optimizer(model: nn.Module, settings: FinetuneSettings) -> Optimizer:
    """The optimizer named in `settings` over the parameters of `model` that require gradients.

    Raises:
        ModelError: no parameter does.
    """
    trainable = [value for value in model.parameters() if value.requires_grad]
    if not trainable:
        raise ModelError(
            f"no parameter of {type(model).__name__} requires a gradient, so there is nothing "
            "to tune. Call requires_grad_(True) on the ones to train."
        )
    groups: Parameters = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[settings.optimizer]([g for g in groups if g["params"]], settings)


CHECKS: Mapping[str, Check] = {
    "epochs": whole(0),
    "learning_rate": _POSITIVE,
    "optimizer": among(OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    "momentum": _FRACTION,
    "weight_decay": _NOT_NEGATIVE,
    "warmup": _SHARE,
    "label_smoothing": _FRACTION,
    "distill_weight": _SHARE,
    "temperature": _POSITIVE,
    "clip_norm": real("a number above 0", lambda x: x > 0),
    "precision": among(PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "seed": whole(0),
}
"""Field of the settings -> check."""
