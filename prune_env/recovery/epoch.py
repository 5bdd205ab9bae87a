"""One pass over the data: to move the weights, or to measure them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_env.errors import ConfigError, DataError, ModelError
from prune_env.quality.batches import Batch, loader_of, split_batch
from prune_env.quality.choosing import Wish, find_objective, wished
from prune_env.quality.evaluators import Metrics, quality
from prune_env.quality.objectives import Objective, floating, labelled_log_p
from prune_env.quality.outputs import AUTO, Said, run
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.structure.inputs import call_model, device_of, eval_mode


@dataclass(frozen=True)
class Place:
    """Where in a run a batch was met, for messages."""

    name: str
    epoch: int
    step: int = 0

    def __str__(self) -> str:
        return f"{self.name}, epoch {self.epoch}, step {self.step}"


def batches(loader: Iterable[Any], device: torch.device, place: Place) -> Iterator[Batch]:
    """Every batch of one pass, on `device`.

    Raises:
        DataError: the loader is empty or can be read only once, or yields a malformed item.
    """
    iterator = iter(loader)  # once: it may start worker processes
    if iterator is loader:
        raise DataError(
            f"{place.name} is a {type(loader).__name__}, which can be read only once. Give "
            "something that starts again every epoch: a DataLoader or a list of batches."
        )
    step = -1
    for step, item in enumerate(iterator):
        batch = split_batch(item)
        if len(batch) == 0:
            raise DataError(f"batch {step} of {place.name} is empty.")
        yield batch.to(device)
    if step < 0:
        raise DataError(f"{place.name} is empty: its loader yielded no batch in {place}.")


def objective_of(
    model: nn.Module,
    loader: Iterable[Any],
    place: Place,
    objective: Wish = AUTO,
    output: Said = AUTO,
) -> Objective:
    """What quality means, by the first batch of `loader` where it is not said.

    Raises:
        ConfigError, DataError, ModelError: see `find_objective`, `batches` and `run`.
    """
    wish = wished(objective)
    if isinstance(wish, Objective) and output == AUTO:
        return wish
    batch = next(batches(loader, device_of(model), place))
    with eval_mode(model), torch.no_grad():
        return find_objective(model, [batch], [run(model, batch, place)], wish, output)


def evaluate(
    model: nn.Module,
    loader: Any,
    *,
    objective: Wish = AUTO,
    output: Said = AUTO,
    reference: nn.Module | None = None,
    batch: Callable[[Any], Any] | None = None,
    place: Place | None = None,
) -> Metrics:
    """What `model` is worth over one pass of `loader`, in eval mode.

    The training flag of every submodule is put back afterwards.

    Args:
        loader: batches, a `Dataset` or arrays; see `prune_env.quality.batches.loader_of`.
        objective, output, batch: see `TaskOptions`; `task.objective` is both of the first two.
        reference: the dense network, that the divergence is taken from.

    Raises:
        DataError: the loader is empty, malformed, or its targets do not fit the model.
        ModelError: the model cannot run a batch, or gives NaN or infinite outputs.
    """
    place = place or Place("the loader", 0)
    loader = loader_of(loader, batch)
    read = objective_of(model, loader, place, objective, output)
    name, epoch = place.name, place.epoch
    return quality(
        model, batches(loader, device_of(model), place), read, reference,
        lambda step: Place(name, epoch, step),
    )  # fmt: skip


Loss = Callable[[Any, Batch, Place], tuple[Tensor, int]]
"""(what the network returned, batch, place) -> the scalar to descend, and predictions in it."""
OwnLoss = Callable[[Any, Any], Tensor]
"""(what the network returned, targets) -> scalar, or a value per sample."""
Opinion = Callable[[Batch, Place], Any]
"""(batch, place) -> predictions of the teacher."""


def opinion_of(teacher: nn.Module, objective: Objective) -> Opinion:
    """What a teacher predicts, asked anew for every batch; it is only called."""

    def opinion(batch: Batch, place: Place) -> Any:
        with torch.no_grad():
            return objective.read(call_model(teacher, batch.inputs), batch, place)[0]

    return opinion


def build_loss(
    settings: FinetuneSettings,
    opinion: Opinion | None,
    objective: Objective,
    own: OwnLoss | None = None,
) -> Loss:
    """The loss to descend: the objective's or one's own, mixed with the teacher's opinion.

    With share w and temperature T: (1 - w) * loss + w * T^2 * divergence(student, teacher), both
    softened by T where the objective can be; T^2 keeps the gradients of the two terms of one size.
    Distilling the Knowledge in a Neural Network, Hinton, Vinyals and Dean 2015. Without targets
    the teacher's `opinion` is all there is.

    Raises:
        ConfigError: there is nothing to descend, or label smoothing of what are no classes.
    """
    alone = own is None and objective.loss is None
    if alone and opinion is None:
        raise ConfigError(
            f"the objective '{objective.name}' has no loss to descend. Give finetune(..., loss=a "
            "function of (outputs, targets)), or teacher=the dense network to follow."
        )
    smoothing = settings.label_smoothing
    if smoothing and (own is not None or objective.predictions is not labelled_log_p):
        raise ConfigError(
            f"label_smoothing is {smoothing}, and there are no classes to smooth "
            f"({'your own loss' if own else objective.name}). Leave it out."
        )
    weight, heat = 1.0 if alone else settings.distill_weight, settings.temperature
    soften = objective.softened or (lambda predictions, temperature: predictions)

    def hard(raw: Any, ours: Any, targets: Any, batch: Batch) -> Tensor:
        if own is not None:
            return own(raw, batch.targets)
        if smoothing:
            return F.cross_entropy(ours, targets, label_smoothing=smoothing, reduction="none")
        assert objective.loss is not None
        return objective.loss(ours, targets)

    def loss(raw: Any, batch: Batch, place: Place) -> tuple[Tensor, int]:
        if own is not None and opinion is None:  # of outputs that only its author understands
            return own(raw, batch.targets).float().mean(), len(batch)
        ours, targets = objective.read(raw, batch, place)
        if isinstance(targets, Tensor) and not targets.numel():
            raise DataError(f"every target of a batch is -100, which means unlabelled ({place}).")
        values = None if alone else hard(raw, ours, targets, batch)
        count = len(values) if values is not None and values.ndim else len(batch)
        if opinion is None:
            assert values is not None
            return values.float().mean(), count
        theirs = opinion(batch, place)
        _require_alike(ours, theirs)
        soft = objective.divergence(soften(ours, heat), soften(theirs, heat)).mean()
        soft = weight * heat**2 * soft if objective.softened else weight * soft
        return (soft if values is None else (1 - weight) * values.mean() + soft).float(), count

    return loss


def _require_alike(ours: Any, theirs: Any) -> None:
    shapes = [[tuple(t.shape) for t in floating(each)] for each in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"the teacher gives outputs {shapes[0]}, the model {shapes[1]}. Distil from the dense "
            "network of the same task."
        )
