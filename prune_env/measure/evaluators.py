"""How good a network is: evaluators take a model and return named `Metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.errors import DataError, ModelError
from prune_env.measure.batches import Batch
from prune_env.measure.inference import PLAIN, Inference
from prune_env.structure.entry import why_not
from prune_env.structure.inputs import call_model, eval_mode, logits_of


@dataclass(frozen=True)
class Metrics:
    """What was measured.

    Attributes:
        accuracy: fraction of predictions that are right, in [0, 1].
        loss: mean cross-entropy to the targets, in nats.
        kl: mean KL divergence from the dense network's predictions, in nats.
        samples: number of predictions measured.
        share: the part that they are of all that would have been measured; below 1 where the
            measurement was given up.
        accuracy_error, loss_error, kl_error: standard errors of the means, as if predictions
            were independent.
    """

    accuracy: float
    loss: float
    kl: float
    samples: int
    share: float = 1.0
    accuracy_error: float = 0.0
    loss_error: float = 0.0
    kl_error: float = 0.0

    def at_best(self, errors: float) -> Metrics:
        """The same, this many standard errors better than measured."""
        return replace(
            self,
            accuracy=min(1.0, self.accuracy + errors * self.accuracy_error),
            loss=max(0.0, self.loss - errors * self.loss_error),
            kl=max(0.0, self.kl - errors * self.kl_error),
        )


Hopeless = Callable[[Metrics], bool]
"""Whether what was measured so far is reason enough to give up."""


class Evaluator(Protocol):
    """Measures a model; must not change it."""

    def __call__(
        self,
        model: nn.Module,
        hopeless: Hopeless | None = None,
        stages: Sequence[int] | None = None,
    ) -> Metrics:
        """All samples; fewer when `hopeless` says so at one of `stages` (None: its own)."""
        ...


@dataclass(frozen=True, eq=False)
class ClassifierEvaluator:
    """Accuracy, cross-entropy and KL to the dense network on fixed batches.

    Works per sample (logits (B, K)) and per token (logits (B, T, K), targets (B, T)); targets of
    -100 are left out, as in PyTorch.

    Attributes:
        batches: what is measured, always in this order.
        dense_logits: the dense network's logits for each batch.
        inference: how networks are run.
        stages: numbers of samples after which a hopeless network may be given up, growing.
    """

    batches: tuple[Batch, ...]
    dense_logits: tuple[Tensor, ...]
    inference: Inference = PLAIN
    stages: tuple[int, ...] = ()

    @staticmethod
    def of(
        dense: nn.Module,
        batches: Sequence[Batch],
        inference: Inference = PLAIN,
        stages: Sequence[int] = (),
    ) -> ClassifierEvaluator:
        """An evaluator that compares with `dense`, which is always run the plain way.

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
            cure = why_not(dense, batches[0].inputs, "Does the loader give batches of the shape "
                           "the model was built for?")  # fmt: skip
            raise ModelError(
                f"{type(dense).__name__} does not run on the data: {first}. {cure}"
            ) from error
        for number, (batch, values) in enumerate(zip(batches, logits, strict=True)):
            _require_fit(number, batch, values)
        evaluator = ClassifierEvaluator(tuple(batches), logits, inference, tuple(stages))
        if not evaluator.samples:
            raise DataError("every target is -100 (left out): there is nothing to evaluate.")
        return evaluator

    @property
    def samples(self) -> int:
        """Number of predictions in all batches."""
        return sum(int((batch.targets != -100).sum()) for batch in self.batches)

    def __call__(
        self,
        model: nn.Module,
        hopeless: Hopeless | None = None,
        stages: Sequence[int] | None = None,
    ) -> Metrics:
        rows: list[Tensor] = []
        seen, total, stages = 0, self.samples, self.stages if stages is None else stages
        with self.inference.ready(model) as fast:
            for batch, dense in zip(self.batches, self.dense_logits, strict=True):
                rows.append(_per_prediction(call_model(fast, batch.inputs), dense, batch.targets))
                seen += rows[-1].shape[1]
                if hopeless is None or not stages or not stages[0] <= seen < total:
                    continue
                stages = [stage for stage in stages if stage > seen]
                metrics = _metrics(torch.cat(rows, 1), total, model)
                if hopeless(metrics):
                    return metrics
        return _metrics(torch.cat(rows, 1), total, model)


def _per_prediction(output: object, dense: Tensor, targets: Tensor) -> Tensor:
    """Whether each of N predictions is right, its cross-entropy and its KL, float64 (3, N)."""
    counts = targets.flatten() != -100
    targets = targets.flatten()[counts].long()
    log_q = logits_of(output).flatten(0, -2)[counts].float().log_softmax(-1)
    log_p = dense.flatten(0, -2)[counts].float().log_softmax(-1)
    right = log_q.argmax(-1) == targets
    loss = F.nll_loss(log_q, targets, reduction="none")
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return torch.stack([right.double(), loss.double(), kl.double()])


def _metrics(rows_3N: Tensor, total: int, model: nn.Module) -> Metrics:
    """Means and their standard errors.

    Raises:
        ModelError: they are not finite.
    """
    seen = rows_3N.shape[1]
    accuracy, loss, kl = rows_3N.mean(1).tolist()
    if not (loss < math.inf and kl < math.inf):
        raise ModelError(
            f"{type(model).__name__} gives NaN or infinite outputs on the evaluation data. "
            "Check weights and BatchNorm statistics, or limit max_sparsity."
        )
    errors = (rows_3N.std(1, correction=min(1, seen - 1)) / math.sqrt(seen)).tolist()
    return Metrics(accuracy, loss, kl, seen, seen / total, *errors)


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
