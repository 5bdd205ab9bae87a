"""What quality means: how far a network strays from the dense one, its loss, and what people read.

An `Objective` is a value; each of its functions takes what a network gave for a batch and answers
for every prediction by itself. Whatever searches, tunes, reports or logs reads names and numbers
from it, so that nothing above this folder knows what a task is about.

Legend: B samples, N predictions (labelled samples, tokens, pixels), K classes, M sums of a figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from prune_env.errors import DataError
from prune_env.quality.batches import Batch
from prune_env.quality.outputs import Output
from prune_env.quality.padding import IGNORED
from prune_env.quality.shapes import require_classes, require_same_shape

Rows = dict[str, Tensor]
"""Values of all predictions by name, float64, (N,) or (N, M)."""


WHOLE = Output(tensor=False)
"""Whatever the network returns."""


def only(mean_M: Tensor) -> Tensor:
    """The one mean there is."""
    return mean_M[0]


@dataclass(frozen=True)
class Figure:
    """A number that people read.

    Attributes:
        name: what it is called, in `info`, tables and TensorBoard.
        of: its value for every prediction, (N,), or rows of M sums that it is made from, (N, M);
            any number of rows.
        combine: from the means (M,) to the number; it may be a ratio, a root, an exponential.
        higher: whether more is better.
        unit: "%" for a fraction that is shown as percent, or "dB" and the like.
    """

    name: str
    of: Callable[[Any, Any], Tensor]
    combine: Callable[[Tensor], Tensor] = only
    higher: bool = True
    unit: str = ""


def straying(outputs: Any, dense_outputs: Any) -> Tensor:
    """Squared error to the dense outputs, by sample, relative to their mean square, (B,).

    Of any tree of tensors: the mean over those of floating point. One that has no row per sample
    counts alike for all.
    """
    ours, theirs = floating(outputs), floating(dense_outputs)
    if [tuple(a.shape) for a in ours] != [tuple(b.shape) for b in theirs] or not ours:
        raise DataError(
            f"outputs {_shapes(ours)} cannot be compared with the dense network's "
            f"{_shapes(theirs)}: their number or their shapes change with what is removed. Say "
            "which part has a fixed shape (output=...), or what quality means "
            "(objective=evaluate, a function from a network to a number)."
        )
    samples = max((len(tensor) for tensor in theirs if tensor.ndim), default=1)
    total_B = torch.zeros(samples, dtype=torch.float64, device=theirs[0].device)
    for mine, dense in zip(ours, theirs, strict=True):
        rows = samples if dense.ndim and len(dense) == samples else 1
        error = (mine.double() - dense.double()).square().reshape(rows, -1).mean(1)
        total_B = total_B + error / dense.double().square().mean().clamp_min(1e-12)
    return total_B / len(theirs)


def floating(tree: Any) -> list[Tensor]:
    """The tensors of floating point in what a network returned, in order."""
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def as_they_are(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """All outputs beside all targets."""
    return outputs, targets


@dataclass(frozen=True)
class Objective:
    """What quality means for a network.

    One's own takes the outputs and targets as they are; the functions give a value per sample (B,),
    or one for all. Missing ones are made up: `divergence` is the relative squared error to the
    dense outputs, the figure is the loss. `Objective("mAP", evaluate=function)` is for figures that
    do not decompose: what the function gives of a network is all that is measured.

    Attributes:
        name: what it is called.
        loss: what fine-tuning descends, of (outputs, targets).
        figures: what people read; the first decides which epoch is kept.
        divergence: distance to the dense network, of (outputs, dense outputs); what a search is
            paid for, unless it is told otherwise.
        evaluate: the figure of a whole network, instead of all this.
        higher: whether more of `evaluate` is better.
        predictions: from outputs and targets to those that count, side by side.
        fits: complains about targets that do not go with outputs, given a place for the message.
        softened: predictions at a temperature, for distillation.
        distance: what the divergence is called.
        output: how the outputs are found in what the network returns.
        labelled: whether it needs targets.
        batchwise: whether what a sample is worth depends on the others of its batch (contrastive
            losses): batches are then never cut or joined.
    """

    name: str
    loss: Callable[[Any, Any], Tensor] | None = None
    figures: tuple[Figure, ...] = ()
    divergence: Callable[[Any, Any], Tensor] = straying
    evaluate: Callable[[nn.Module], float] | None = None
    higher: bool = True
    predictions: Callable[[Any, Any], tuple[Any, Any]] = as_they_are
    fits: Callable[[Any, Any, object], None] | None = None
    softened: Callable[[Any, float], Any] | None = None
    distance: str = "divergence"
    output: Output = WHOLE
    labelled: bool = True
    batchwise: bool = False

    @property
    def figure(self) -> Figure:
        """What people read first."""
        if self.figures:
            return self.figures[0]
        if self.evaluate is not None:
            return Figure(self.name, _nothing, higher=self.higher)
        return Figure("loss", _nothing, higher=False)

    @property
    def needs_dense(self) -> bool:
        """Whether the dense network is what everything is compared with."""
        return not self.labelled and self.evaluate is None

    def reading(self, output: Output) -> Objective:
        """The same, with the outputs found so."""
        return dataclasses.replace(self, output=output)

    def read(self, raw: Any, batch: Batch, where: object = "a batch") -> tuple[Any, Any]:
        """Predictions and targets that count, in what a network returned for a batch.

        Raises:
            ModelError: the outputs are not there.
            DataError: the targets do not fit them.
        """
        outputs, targets = self.output.of(raw), self.output.beside(batch)
        if self.fits is not None:
            self.fits(outputs, targets, where)
        return self.predictions(outputs, targets)

    def rows(self, predictions: Any, targets: Any, dense: Any = None) -> Rows:
        """Every named value of every prediction.

        Args:
            predictions, targets: see `read`.
            dense: the dense network's predictions; None leaves the divergence out.
        """
        rows: Rows = {}
        if dense is not None:
            rows["divergence"] = self.divergence(predictions, dense)
        if self.needs_dense:
            rows |= {"loss": rows["divergence"]} if rows else {}
        elif self.loss is not None:
            rows["loss"] = self.loss(predictions, targets)
        for figure in self.figures:
            if self.needs_dense:
                rows |= {figure.name: rows["divergence"]} if rows else {}
            else:
                rows[figure.name] = figure.of(predictions, targets)
        count = max((len(row) for row in rows.values() if row.ndim), default=1)
        return {k: (v if v.ndim else v.expand(count)).detach().double() for k, v in rows.items()}


def _nothing(predictions: Any, targets: Any) -> Tensor:
    return torch.zeros(1)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "(none)"


def labelled_log_p(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of probabilities (N, K) and classes (N,) where there is a class."""
    flat = targets.flatten()
    some = flat != IGNORED
    rows = logits.flatten(0, -2)
    rows = rows if bool(some.all()) else rows[some]
    return rows.float().log_softmax(-1), flat[some]


def kl(log_q_NK: Tensor, log_p_NK: Tensor) -> Tensor:
    """KL divergence from the dense network's predictions p, in nats, (N,)."""
    return (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1)


def cross_entropy(log_q_NK: Tensor, targets_N: Tensor) -> Tensor:
    """In nats, (N,)."""
    return F.nll_loss(log_q_NK, targets_N, reduction="none")


def right(log_q_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Whether the likeliest class is the target, (N,)."""
    return log_q_NK.argmax(-1) == targets_N


def overlap(log_q_NK: Tensor, targets_N: Tensor) -> Tensor:
    """Pixels per class that are in target and prediction, then in either, in one row (1, 2K)."""
    classes, said_N = log_q_NK.shape[-1], log_q_NK.argmax(-1)
    both = torch.bincount(targets_N[said_N == targets_N], minlength=classes)
    said, true = (torch.bincount(each, minlength=classes) for each in (said_N, targets_N))
    return torch.cat([both, said + true - both])[None].double()


def mean_overlap(mean_2K: Tensor) -> Tensor:
    """Mean over the classes seen of intersection over union (the Jaccard index)."""
    both, either = mean_2K.chunk(2)
    seen = either > 0
    return (both[seen] / either[seen]).mean()


def exponential(mean_1: Tensor) -> Tensor:
    """Perplexity of a mean cross-entropy; a ruined network must not overflow."""
    return mean_1[0].clamp_max(700.0).exp()


def softened(log_q_NK: Tensor, temperature: float) -> Tensor:
    """The distribution at a temperature, as logarithms."""
    return (log_q_NK / temperature).log_softmax(-1)


def flat_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets in {0, 1} of every label, both (N,), where there is one."""
    flat = targets.flatten()
    some = flat != IGNORED
    return logits.flatten()[some].float(), flat[some].float()


def binary_kl(logit_N: Tensor, dense_N: Tensor) -> Tensor:
    """KL divergence of every label from what the dense network says of it, in nats, (N,)."""
    p = dense_N.sigmoid()
    yes = F.logsigmoid(dense_N) - F.logsigmoid(logit_N)
    no = F.logsigmoid(-dense_N) - F.logsigmoid(-logit_N)
    return p * yes + (1 - p) * no


def binary_cross_entropy(logit_N: Tensor, targets_N: Tensor) -> Tensor:
    """In nats, (N,)."""
    return F.binary_cross_entropy_with_logits(logit_N, targets_N, reduction="none")


def right_labels(logit_N: Tensor, targets_N: Tensor) -> Tensor:
    """Whether a label is on the right side of one half, (N,)."""
    return (logit_N > 0) == (targets_N > 0.5)


def hits(logit_N: Tensor, targets_N: Tensor) -> Tensor:
    """Whether a label is found, claimed, and true, (N, 3)."""
    said, true = logit_N > 0, targets_N > 0.5
    return torch.stack([said & true, said, true], -1).double()


def f1(mean_3: Tensor) -> Tensor:
    """Micro-averaged F1: twice what was found over what was claimed and what is true."""
    return 2 * mean_3[0] / (mean_3[1] + mean_3[2]).clamp_min(1e-12)


def half_temperature(logit_N: Tensor, temperature: float) -> Tensor:
    """Logits of labels at a temperature."""
    return logit_N / temperature


def values(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers as they are, in the shape of the targets."""
    return outputs.reshape(targets.shape), targets.to(outputs.dtype)


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of a sample, (B,)."""
    return (values.float() - targets.float()).square().reshape(len(targets), -1).mean(1)


def moments(values: Tensor, targets: Tensor) -> Tensor:
    """Squared error, target and squared target of a sample, (B, 3)."""
    flat = targets.double().reshape(len(targets), -1)
    return torch.stack([squared_error(values, targets), flat.mean(1), flat.square().mean(1)], -1)


def explained(mean_3: Tensor) -> Tensor:
    """The share of the targets' variance that is explained, R squared."""
    return 1 - mean_3[0] / (mean_3[2] - mean_3[1].square()).clamp_min(1e-12)


def root(mean_1: Tensor) -> Tensor:
    """Square root of a mean."""
    return mean_1[0].clamp_min(0.0).sqrt()


ACCURACY = Figure("accuracy", right, unit="%")
CLASSIFICATION = Objective(
    "classification", cross_entropy, (ACCURACY,), kl, predictions=labelled_log_p,
    fits=require_classes, softened=softened, distance="kl", output=Output(),
)  # fmt: skip
"""One class for every sample: cross-entropy, accuracy, KL to the dense network."""
PERPLEXITY = Figure("perplexity", cross_entropy, exponential, higher=False)
TOKENS = dataclasses.replace(CLASSIFICATION, name="tokens", figures=(ACCURACY, PERPLEXITY))
"""One class for every position of a sequence."""
MIOU = Figure("miou", overlap, mean_overlap, unit="%")
SEGMENTATION = dataclasses.replace(
    CLASSIFICATION, name="segmentation", figures=(MIOU, ACCURACY), output=Output(classes=1)
)
"""One class for every pixel, classes on dimension 1: mean intersection over union."""
LABELS = Figure("accuracy", right_labels, unit="%")
MULTILABEL = Objective(
    "multilabel", binary_cross_entropy, (Figure("f1", hits, f1, unit="%"), LABELS), binary_kl,
    predictions=flat_labels, fits=require_same_shape, softened=half_temperature, distance="kl",
    output=Output(),
)  # fmt: skip
"""Labels that are there or not, one logit each; see `BINARY` for a single one."""
BINARY = dataclasses.replace(MULTILABEL, name="binary", figures=(LABELS,))
"""One label that is there or not."""
REGRESSION = Objective(
    "regression", squared_error,
    (Figure("rmse", squared_error, root, higher=False), Figure("r2", moments, explained)),
    predictions=values, fits=require_same_shape, output=Output(),
)  # fmt: skip
"""Numbers, images, maps: squared error; root mean square, and R squared beside it."""
OUTPUTS = Objective(
    "outputs", figures=(Figure("output_error", _nothing, root, higher=False, unit="%"),),
    labelled=False,
)  # fmt: skip
"""No targets: how far the outputs stray from the dense network's, root of a relative square."""

OBJECTIVES: Mapping[str, Objective] = {
    objective.name: objective
    for objective in (
        CLASSIFICATION, TOKENS, SEGMENTATION, MULTILABEL, BINARY, REGRESSION, OUTPUTS
    )
}  # fmt: skip
"""By name."""
