"""How good a network is: an evaluator takes a model and returns named `Metrics`.

One engine for all: searches measure on samples that are kept, beside the dense network's
predictions; fine-tuning and reports on whatever a loader yields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prune_env.errors import DataError, ModelError, PruneEnvError
from prune_env.progress import progress
from prune_env.quality.batches import Batch
from prune_env.quality.choosing import Wish, find_objective, wished
from prune_env.quality.inference import PLAIN, Inference
from prune_env.quality.objectives import ACCURACY, Figure, Objective, Rows, floating
from prune_env.quality.outputs import AUTO, Said, run
from prune_env.structure.inputs import call_model, eval_mode


@dataclass(frozen=True)
class Metrics:
    """What was measured; what the figure and the divergence are called, the `Objective` says.

    Attributes:
        figure: what people read, such as accuracy in [0, 1].
        loss: mean loss on the targets.
        divergence: mean distance to the dense network.
        samples: number of predictions measured.
        share: the part that they are of a full measurement, with what was repaired on; below 1
            where it was given up, or only glimpsed.
        figure_error, loss_error, divergence_error: standard errors, as if predictions were
            independent.
        more: further figures by name.
    """

    figure: float
    loss: float
    divergence: float
    samples: int
    share: float = 1.0
    figure_error: float = 0.0
    loss_error: float = 0.0
    divergence_error: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict)

    def at_best(self, errors: float, figure: Figure = ACCURACY) -> Metrics:
        """The same, this many standard errors better than measured."""
        value = self.figure + errors * self.figure_error * (1 if figure.higher else -1)
        return replace(
            self,
            figure=min(1.0, max(0.0, value)) if figure.unit == "%" else value,
            loss=max(0.0, self.loss - errors * self.loss_error),
            divergence=max(0.0, self.divergence - errors * self.divergence_error),
        )


def named(objective: Objective, metrics: Metrics) -> dict[str, float]:
    """All figures by name: the objective's own, "loss", "divergence" and what that is called."""
    return {
        objective.figure.name: metrics.figure,
        **metrics.more,
        "loss": metrics.loss,
        "divergence": metrics.divergence,
        objective.distance: metrics.divergence,
    }


Hopeless = Callable[[Metrics], bool]
"""Whether what was measured so far is reason enough to give up."""


class Measure(Protocol):
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
class Evaluator:
    """An objective on fixed batches, beside what the dense network gave for them.

    Attributes:
        objective: what is measured, and how outputs are read.
        batches: what is measured, always in this order.
        dense: the dense network's predictions, by batch; none where the objective is a function.
        counts: predictions of every batch.
        inference: how networks are run.
        stages: numbers of samples after which a hopeless network may be given up, growing.
        best: what the dense network's figure is, where the objective is a function.
    """

    objective: Objective
    batches: tuple[Batch, ...]
    dense: tuple[Any, ...] = ()
    counts: tuple[int, ...] = ()
    inference: Inference = PLAIN
    stages: tuple[int, ...] = ()
    best: float = 0.0

    @staticmethod
    def of(
        dense: nn.Module,
        batches: Sequence[Batch],
        inference: Inference = PLAIN,
        stages: Sequence[int] = (),
        objective: Wish = AUTO,
        output: Said = AUTO,
    ) -> Evaluator:
        """An evaluator that compares with `dense`, which is always run the plain way.

        Raises:
            ConfigError: see `find_objective`.
            DataError: there are no batches, or targets do not fit the outputs.
            ModelError: the dense network fails on them, or gives NaN or infinite outputs.
        """
        if not batches:
            raise DataError("there is nothing to evaluate on: the loader gave no batch.")
        wish = wished(objective)
        if isinstance(wish, Objective) and wish.evaluate is not None:
            value = own_figure(wish, dense)
            return Evaluator(wish, tuple(batches), inference=inference, best=value)
        with eval_mode(dense), torch.inference_mode():
            raws, label = [], "measure the dense network"
            with progress(label, len(batches), "batches", passing=True) as bar:
                for number, batch in enumerate(batches):
                    raws.append(run(dense, batch, f"batch {number}"))
                    bar.step()
            found = find_objective(dense, batches, raws, wish, output)
            read = [
                found.read(raw, batch, f"batch {i}")
                for i, (raw, batch) in enumerate(zip(raws, batches, strict=True))
            ]
            for number, (predictions, _) in enumerate(read):
                _require_finite(predictions, f"the dense network gives NaN or infinite outputs on "
                                f"batch {number}. Check its weights and the scaling of the inputs "
                                "before pruning.")  # fmt: skip
            rows = [found.rows(*both, dense=both[0]) for both in read]
        counts = tuple(map(_count, rows))
        if not sum(counts):
            raise DataError("every target is -100 (left out): there is nothing to evaluate.")
        predictions = tuple(both[0] for both in read)
        return Evaluator(found, tuple(batches), predictions, counts, inference, tuple(stages))

    @property
    def samples(self) -> int:
        """Number of predictions in all batches."""
        return sum(self.counts) or 1

    def __call__(
        self,
        model: nn.Module,
        hopeless: Hopeless | None = None,
        stages: Sequence[int] | None = None,
    ) -> Metrics:
        if self.objective.evaluate is not None:
            return self._of_function(own_figure(self.objective, model))
        rows: list[Rows] = []
        seen, total, stages = 0, self.samples, self.stages if stages is None else stages
        with self.inference.ready(model) as fast:
            for number, count in enumerate(self.counts):
                rows.append(self._rows(fast, number))
                seen += count
                if hopeless is None or not stages or not stages[0] <= seen < total:
                    continue
                stages = [stage for stage in stages if stage > seen]
                metrics = summary(self.objective, rows, seen / total)
                if hopeless(metrics):
                    return metrics
        return summary(self.objective, rows)

    def rows(self, model: nn.Module, numbers: Iterable[int]) -> list[Rows]:
        """Every named value of every prediction, by batch, of the batches of these numbers."""
        with self.inference.ready(model) as fast:
            return [self._rows(fast, number) for number in numbers]

    def _rows(self, fast: nn.Module, number: int) -> Rows:
        batch = self.batches[number]
        raw = call_model(fast, batch.inputs)
        ours, targets = self.objective.read(raw, batch, f"batch {number}")
        return self.objective.rows(ours, targets, self.dense[number])

    def _of_function(self, value: float) -> Metrics:
        """How far a figure fell behind the dense network's is the divergence."""
        worse = (self.best - value) if self.objective.higher else (value - self.best)
        return Metrics(value, worse, worse, 1)


def quality(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    reference: nn.Module | None = None,
    place: Callable[[int], object] = "batch {}".format,
) -> Metrics:
    """What a network is worth on batches that lie on its device, one after the other.

    Args:
        reference: what the divergence is taken from; it is not measured (NaN) without one.
        place: names a batch by its number, for messages.

    Raises:
        DataError: targets do not fit, or there is none.
        ModelError: the network fails, or gives NaN or infinite outputs.
    """
    if objective.evaluate is not None:
        value = own_figure(objective, model)
        return Metrics(value, -value if objective.higher else value, math.nan, 1)
    rows: list[Rows] = []
    with eval_mode(model), torch.no_grad():
        for number, batch in enumerate(batches):
            where = place(number)
            ours, targets = objective.read(run(model, batch, where), batch, where)
            _require_finite(
                ours, f"{type(model).__name__} gives NaN or infinite outputs ({where}). Check its "
                "weights and inputs; if tuning made them, lower the learning rate.",
            )  # fmt: skip
            dense = None
            if reference is not None:
                with eval_mode(reference):
                    dense, _ = objective.read(run(reference, batch, where), batch, where)
            rows.append(objective.rows(ours, targets, dense))
    if not any(rows) or not sum(map(_count, rows)):
        raise DataError(
            f"nothing can be measured of objective '{objective.name}': "
            + ("it compares with the dense network, and none is given (teacher=...)."
               if objective.needs_dense else "every target is -100, which means unlabelled.")
        )  # fmt: skip
    return summary(objective, rows)


def own_figure(objective: Objective, model: nn.Module) -> float:
    """What the user's function gives of a network.

    Raises:
        ModelError: it fails, or gives no finite number.
    """
    assert objective.evaluate is not None
    try:
        with eval_mode(model), torch.no_grad():
            value = float(objective.evaluate(model))
    except PruneEnvError:
        raise
    except Exception as error:
        raise ModelError(
            f"{objective.name}, your own evaluation, fails: {type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(value):
        raise ModelError(f"{objective.name}, your own evaluation, gives {value}.")
    return value


def summary(objective: Objective, rows: Sequence[Rows], share: float = 1.0) -> Metrics:
    """Means and their standard errors.

    Raises:
        ModelError: they are not finite.
    """
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    plain = Figure("", _unused)
    parts = [name for name in ("loss", "divergence") if name in joined]
    values: dict[str, tuple[float, float]] = {name: _mean(joined[name], plain) for name in parts}
    values |= {figure.name: _mean(joined[figure.name], figure) for figure in objective.figures}
    if not all(math.isfinite(value) for value, _ in values.values()):
        raise ModelError(
            "the network gives NaN or infinite outputs on the evaluation data. "
            "Check weights and BatchNorm statistics, or limit max_sparsity."
        )
    missing = (math.nan, 0.0)
    loss, apart = values.get("loss", missing), values.get("divergence", missing)
    loss = apart if loss is missing else loss
    first = values.get(objective.figure.name, loss)
    return Metrics(
        figure=first[0], loss=loss[0], divergence=apart[0],
        samples=sum(map(_count, rows)), share=share,
        figure_error=first[1], loss_error=loss[1], divergence_error=apart[1],
        more={figure.name: values[figure.name][0] for figure in objective.figures[1:]},
    )  # fmt: skip


def _unused(predictions: Any, targets: Any) -> Tensor:
    raise AssertionError


def _count(rows: Rows) -> int:
    """Predictions of a batch."""
    for name in ("loss", "divergence"):
        if name in rows:
            return len(rows[name])
    return max((len(row) for row in rows.values()), default=0)


def _mean(rows: Tensor, figure: Figure) -> tuple[float, float]:
    """A figure and its standard error, to first order (the delta method)."""
    count = len(rows)
    rows_NM = rows if rows.ndim > 1 else rows[:, None]
    with torch.inference_mode(False), torch.enable_grad():
        mean_M = rows_NM.clone().mean(0).requires_grad_(True)
        value = figure.combine(mean_M)
        (slope_M,) = torch.autograd.grad(value, mean_M)
    felt_N = (rows_NM - mean_M.detach()) @ slope_M
    error = float(felt_N.std(correction=min(1, count - 1))) / math.sqrt(count)
    return float(value.detach()), error if math.isfinite(error) else 0.0  # sqrt has no slope at 0


def _require_finite(predictions: Any, complaint: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in floating(predictions)):
        raise ModelError(complaint)
