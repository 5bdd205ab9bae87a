"""One pass over the data: to move the weights, or to measure them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_env.errors import DataError, ModelError
from prune_env.quality.batches import Batch, split_batch
from prune_env.quality.outputs import AUTO, TAKES, Output, Said, find_output, require_fit, run
from prune_env.quality.padding import IGNORED
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.structure.blame import CURE
from prune_env.structure.inputs import Inputs, call_model, eval_mode, map_tensors

Loss = Callable[[Tensor, Tensor, Inputs], Tensor]
"""(logits (B, C), targets (B,), inputs) -> scalar."""


class Quality(NamedTuple):
    """What a model is worth on some data.

    Attributes:
        accuracy: fraction of predictions that are right, in [0, 1].
        loss: mean cross-entropy, nats.
        predictions: how many labelled samples (or tokens) these are means over.
        loss_std: standard deviation of the cross-entropy of one prediction.
    """

    accuracy: float
    loss: float
    predictions: int
    loss_std: float


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
        inputs = map_tensors(lambda tensor: tensor.to(device), batch.inputs)
        yield Batch(inputs, batch.targets.to(device))
    if step < 0:
        raise DataError(f"{place.name} is empty: its loader yielded no batch in {place}.")


def logits_for(
    model: nn.Module, batch: Batch, place: Place, output: Output
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) of a batch; positions, if any, are folded into N.

    Raises:
        ModelError: the model cannot run the batch.
        DataError: the targets do not fit the logits.
    """
    raw = run(model, batch, place, f"{TAKES} {CURE}.")
    logits, targets = output.logits(raw), output.read(batch).targets
    require_fit(logits, targets, place)
    if not bool((targets != IGNORED).any()):
        raise DataError(f"every target of a batch is {IGNORED}, which means unlabelled ({place}).")
    return logits.flatten(0, -2), targets.flatten()


def output_of(model: nn.Module, loader: Iterable[Any], place: Place, said: Said = AUTO) -> Output:
    """How `model`'s outputs are read, by the first batch of `loader`.

    Raises:
        ConfigError, DataError, ModelError: see `find_output`, `batches` and `run`.
    """
    if isinstance(said, Output):
        return said
    batch = next(batches(loader, device_of(model), place))
    with eval_mode(model), torch.no_grad():
        output, _ = find_output(model, [batch], [run(model, batch, place)], said)
    return output


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives; the CPU for a model without any."""
    return next((value.device for value in model.parameters()), torch.device("cpu"))


def accuracy_and_loss(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    place: Place | None = None,
    output: Said = AUTO,
) -> Quality:
    """Accuracy and mean cross-entropy of `model` over one pass of `loader`, in eval mode.

    The training flag of every submodule is put back afterwards.

    Args:
        output: which part of the outputs is the logits; see `TaskOptions.output`.

    Raises:
        DataError: the loader is empty, malformed, or its targets do not fit the model.
        ModelError: the model cannot run a batch, or gives NaN or infinite outputs.
    """
    place = place or Place("the loader", 0)
    device, read = device_of(model), output_of(model, loader, place, output)
    correct, count, loss, square = 0, 0, 0.0, 0.0
    with eval_mode(model), torch.no_grad():
        for step, batch in enumerate(batches(loader, device, place)):
            here = Place(place.name, place.epoch, step)
            logits, targets = logits_for(model, batch, here, read)
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    f"{type(model).__name__} gives NaN or infinite logits ({here}). Check its "
                    "weights and inputs; if tuning made them, lower the learning rate."
                )
            correct += int((logits.argmax(-1) == targets).sum())  # no class is IGNORED
            losses = F.cross_entropy(logits.float(), targets, reduction="none").double()
            loss += float(losses.sum())  # 0 where there is no label
            square += float(losses.square().sum())
            count += int((targets != IGNORED).sum())
    mean = loss / count
    return Quality(correct / count, mean, count, math.sqrt(max(0.0, square / count - mean**2)))


def build_loss(settings: FinetuneSettings, teacher: nn.Module | None, output: Output) -> Loss:
    """The loss to descend: cross-entropy, mixed with the teacher's opinion where there is one.

    With share w and temperature T: (1 - w) * CE + w * T^2 * KL(teacher || student), both
    softened by T; T^2 keeps the gradients of the two terms of one size. Distilling the Knowledge
    in a Neural Network, Hinton, Vinyals and Dean 2015. `teacher` is only called.
    """

    def cross_entropy(logits: Tensor, targets: Tensor, inputs: Inputs) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)

    if teacher is None:
        return cross_entropy
    dense = teacher
    weight, heat = settings.distill_weight, settings.temperature

    def distilled(logits: Tensor, targets: Tensor, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            opinion = output.logits(call_model(dense, inputs))
        if opinion.shape[-1] != logits.shape[-1]:
            raise ModelError(
                f"the teacher has {opinion.shape[-1]} classes, the model {logits.shape[-1]}. "
                "Distil from the dense network of the same task."
            )
        labelled = targets != IGNORED
        soft = F.log_softmax(opinion.reshape(logits.shape)[labelled] / heat, dim=-1)
        ours = F.log_softmax(logits[labelled] / heat, dim=-1)
        divergence = F.kl_div(ours, soft, reduction="batchmean", log_target=True)
        hard = cross_entropy(logits, targets, inputs)
        return (1 - weight) * hard + weight * heat**2 * divergence

    return distilled
