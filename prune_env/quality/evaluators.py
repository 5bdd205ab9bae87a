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
from prune_env.quality.batches import Batch
from prune_env.quality.inference import PLAIN, Inference
from prune_env.quality.outputs import AUTO, Output, Said, find_output, require_fit, run
from prune_env.quality.padding import IGNORED
from prune_env.structure.inputs import call_model, eval_mode


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
class Reference:
    """What every network is compared with on one batch.

    Attributes:
        labelled: which predictions have a target, (P,); None where all of them do.
        targets_N: their classes.
        log_p_NK: logarithms of the dense network's probabilities.
    """

    labelled: Tensor | None
    targets_N: Tensor
    log_p_NK: Tensor

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Reference:
        """The dense network's logits (..., K) beside targets (...)."""
        labelled = targets.flatten() != IGNORED
        log_p_NK = logits.flatten(0, -2)[labelled].float().log_softmax(-1)
        some = None if bool(labelled.all()) else labelled
        return Reference(some, targets.flatten()[labelled], log_p_NK)

    def rows(self, logits: Tensor) -> Tensor:
        """Whether each of N predictions is right, its cross-entropy and its KL, float64 (3, N)."""
        flat = logits.flatten(0, -2)
        log_q = (flat if self.labelled is None else flat[self.labelled]).float().log_softmax(-1)
        right = log_q.argmax(-1) == self.targets_N
        loss = F.nll_loss(log_q, self.targets_N, reduction="none")
        kl = (self.log_p_NK.exp() * (self.log_p_NK - log_q)).sum(-1)
        return torch.stack([right.double(), loss.double(), kl.double()])


@dataclass(frozen=True, eq=False)
class ClassifierEvaluator:
    """Accuracy, cross-entropy and KL to the dense network on fixed batches.

    Works per sample (logits (B, K)), per token (logits (B, T, K), targets (B, T)) and per pixel
    (logits (B, K, H, W), targets (B, H, W)); targets of -100 are left out, as in PyTorch.

    Attributes:
        batches: what is measured, always in this order.
        references: what it is compared with, by batch.
        output: how outputs and targets are read.
        inference: how networks are run.
        stages: numbers of samples after which a hopeless network may be given up, growing.
    """

    batches: tuple[Batch, ...]
    references: tuple[Reference, ...]
    output: Output
    inference: Inference = PLAIN
    stages: tuple[int, ...] = ()

    @staticmethod
    def of(
        dense: nn.Module,
        batches: Sequence[Batch],
        inference: Inference = PLAIN,
        stages: Sequence[int] = (),
        output: Said = AUTO,
    ) -> ClassifierEvaluator:
        """An evaluator that compares with `dense`, which is always run the plain way.

        Raises:
            ConfigError: see `find_output`.
            DataError: there are no batches, or targets do not fit the outputs.
            ModelError: the dense network fails on them, or gives NaN or infinite outputs.
        """
        if not batches:
            raise DataError("there is nothing to evaluate on: the loader gave no batch.")
        with eval_mode(dense), torch.inference_mode():
            raws = (run(dense, batch, f"batch {i}") for i, batch in enumerate(batches))
            read, logits = find_output(dense, batches, raws, output)
        batches = [read.read(batch) for batch in batches]
        for number, (batch, values) in enumerate(zip(batches, logits, strict=True)):
            require_fit(values, batch.targets, f"batch {number}")
        references = tuple(Reference.of(v, b.targets) for b, v in zip(batches, logits, strict=True))
        for number, reference in enumerate(references):
            if not bool(torch.isfinite(reference.log_p_NK).all()):
                raise ModelError(
                    f"the dense network gives NaN or infinite outputs on batch {number}. Check its "
                    "weights and the scaling of the inputs before pruning."
                )
        evaluator = ClassifierEvaluator(tuple(batches), references, read, inference, tuple(stages))
        if not evaluator.samples:
            raise DataError("every target is -100 (left out): there is nothing to evaluate.")
        return evaluator

    @property
    def samples(self) -> int:
        """Number of predictions in all batches."""
        return sum(len(reference.targets_N) for reference in self.references)

    def __call__(
        self,
        model: nn.Module,
        hopeless: Hopeless | None = None,
        stages: Sequence[int] | None = None,
    ) -> Metrics:
        rows: list[Tensor] = []
        seen, total, stages = 0, self.samples, self.stages if stages is None else stages
        with self.inference.ready(model) as fast:
            for batch, reference in zip(self.batches, self.references, strict=True):
                logits = self.output.logits(call_model(fast, batch.inputs))
                rows.append(reference.rows(logits))
                seen += rows[-1].shape[1]
                if hopeless is None or not stages or not stages[0] <= seen < total:
                    continue
                stages = [stage for stage in stages if stage > seen]
                metrics = _metrics(torch.cat(rows, 1), total, model)
                if hopeless(metrics):
                    return metrics
        return _metrics(torch.cat(rows, 1), total, model)


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
