"""How good a network is: evaluators take a model and return named `Metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.errors import DataError, ModelError
from prune_env.measure.batches import Batch
from prune_env.structure.inputs import Inputs, batch_size, call_model, eval_mode, logits_of


@dataclass(frozen=True)
class Metrics:
    """What was measured.

    Attributes:
        accuracy: fraction of predictions that are right, in [0, 1].
        loss: mean cross-entropy to the targets, in nats.
        kl: mean KL divergence from the dense network's predictions, in nats.
        samples: number of predictions measured.
    """

    accuracy: float
    loss: float
    kl: float
    samples: int


class Evaluator(Protocol):
    """Measures a model; must not change it."""

    def __call__(self, model: nn.Module) -> Metrics: ...


@dataclass(frozen=True, eq=False)
class ClassifierEvaluator:
    """Accuracy, cross-entropy and KL to the dense network on fixed batches.

    Works per sample (logits (B, K)) and per token (logits (B, T, K), targets (B, T)); targets of
    -100 are left out, as in PyTorch.

    Attributes:
        batches: what is measured, always in this order.
        dense_logits: the dense network's logits for each batch.
    """

    batches: tuple[Batch, ...]
    dense_logits: tuple[Tensor, ...]

    @staticmethod
    def of(dense: nn.Module, batches: Sequence[Batch]) -> ClassifierEvaluator:
        """An evaluator that compares with `dense`.

        Raises:
            DataError: there are no batches, or targets do not fit the outputs.
            ModelError: the dense network fails on them, or gives NaN or infinite outputs.
        """
        if not batches:
            raise DataError("there is nothing to evaluate on: the loader gave no batch.")
        try:
            with eval_mode(dense), torch.inference_mode():
                logits = tuple(logits_of(call_model(dense, batch.inputs)) for batch in batches)
        except ModelError:
            raise
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"{type(dense).__name__} does not run on the data: {first}. Does the loader give "
                "batches of the shape the model was built for?"
            ) from error
        for number, (batch, values) in enumerate(zip(batches, logits, strict=True)):
            _require_fit(number, batch, values)
        evaluator = ClassifierEvaluator(tuple(batches), logits)
        if not evaluator.samples:
            raise DataError("every target is -100 (left out): there is nothing to evaluate.")
        return evaluator

    @property
    def samples(self) -> int:
        """Number of predictions in all batches."""
        return sum(int((batch.targets != -100).sum()) for batch in self.batches)

    def __call__(self, model: nn.Module) -> Metrics:
        right, loss, kl = 0.0, 0.0, 0.0
        with eval_mode(model), torch.inference_mode():
            for batch, dense in zip(self.batches, self.dense_logits, strict=True):
                logits = logits_of(call_model(model, batch.inputs)).flatten(0, -2).float()
                counts = batch.targets.flatten() != -100
                targets, logits = batch.targets.flatten()[counts].long(), logits[counts]
                log_p = F.log_softmax(dense.flatten(0, -2).float()[counts], -1)
                log_q = F.log_softmax(logits, -1)
                right += float((logits.argmax(-1) == targets).sum())
                loss += float(F.nll_loss(log_q, targets, reduction="sum"))
                kl += float((log_p.exp() * (log_p - log_q)).sum())
        total = self.samples
        metrics = Metrics(right / total, loss / total, kl / total, total)
        if not (metrics.loss < float("inf") and metrics.kl < float("inf")):
            raise ModelError(
                f"{type(model).__name__} gives NaN or infinite outputs on the evaluation data. "
                "Check weights and BatchNorm statistics, or limit max_sparsity."
            )
        return metrics


def _require_fit(number: int, batch: Batch, logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"the dense network gives NaN or infinite outputs on batch {number}. Check its weights "
            "and the scaling of the inputs before pruning."
        )
    if logits.shape[:-1] != batch.targets.shape:
        raise DataError(
            f"batch {number}: targets have shape {tuple(batch.targets.shape)}, but the model's "
            f"logits {tuple(logits.shape)} ask for {tuple(logits.shape[:-1])} class indices."
        )
    if batch.targets.is_floating_point():
        raise DataError(
            f"batch {number}: targets are {batch.targets.dtype}; class indices are whole numbers. "
            "Turn one-hot or soft targets into indices with argmax(-1)."
        )
    valid = batch.targets[batch.targets != -100]
    if valid.numel() and not 0 <= int(valid.min()) <= int(valid.max()) < logits.shape[-1]:
        raise DataError(
            f"batch {number}: targets run from {int(valid.min())} to {int(valid.max())}, but the "
            f"model has {logits.shape[-1]} classes. Is it the right data set for this model?"
        )


CACHE = 3.2e6
"""Bytes the largest activation of a batch may take, about what stays in a core's cache. Batches of
500 CIFAR images cost a ResNet-20 half as much again per image as batches of 50."""


def fitting_batch(model: nn.Module, example: Inputs) -> int:
    """Samples per batch whose largest activation fits the cache, between 8 and 250.

    Computed, not timed, so that every run of a search sums in the same order.
    """
    largest = 1.0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with eval_mode(model), torch.no_grad():
            call_model(model, example)
    except Exception:  # reported, with its cause, when the data are measured
        return 125
    finally:
        for handle in handles:
            handle.remove()
    return int(min(250, max(8, CACHE * batch_size(example) / largest)))
