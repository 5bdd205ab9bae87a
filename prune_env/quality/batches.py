"""Batches of labelled samples, taken from whatever loader the user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prune_env.errors import DataError
from prune_env.quality.padding import Positions, data_positions, without_padding
from prune_env.structure.inputs import Inputs, batch_size, map_tensors


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and their labels; the first dimension of every tensor runs over the samples.

    Whole numbers become int64, so that -100 is the same in every type a loader may use, and a
    position that `attention_mask` leaves out has no label.
    """

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        targets = self.targets
        if not (targets.is_floating_point() or targets.is_complex()):
            targets = targets.long()
        object.__setattr__(self, "targets", without_padding(self.inputs, targets))

    @cached_property
    def positions(self) -> Positions:
        """Which positions are data; empty where all are."""
        return data_positions(self.inputs, self.targets)

    def __len__(self) -> int:
        return int(self.targets.shape[0])


def split_batch(item: Any) -> Batch:
    """What a loader yields, as a `Batch`: a pair `(inputs, targets)` or a dict with "labels".

    Raises:
        DataError: the item has another form, or inputs and targets differ in length.
    """
    if isinstance(item, Batch):
        return item
    inputs, targets = _parts(item)
    targets = targets if isinstance(targets, Tensor) else _as_tensor(targets)
    size = batch_size(inputs)
    if targets.ndim == 0 or targets.shape[0] != size:
        raise DataError(
            f"a batch has {size} inputs but targets of shape {tuple(targets.shape)}. "
            "Both need the same first dimension."
        )
    return Batch(inputs, targets)


def _as_tensor(targets: Any) -> Tensor:
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"the targets of a batch are a {type(targets).__name__} that is no tensor: {reason}. "
            "Give a tensor of class numbers."
        ) from error


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "labels" in item and len(item) > 1:
        return {name: value for name, value in item.items() if name != "labels"}, item["labels"]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    found = f"keys {sorted(item)}" if isinstance(item, Mapping) else type(item).__name__
    if isinstance(item, tuple | list):
        found = f"a {type(item).__name__} of {len(item)}"
    raise DataError(
        f"a loader yielded {found}. Yield (inputs, targets), or a dict with 'labels' and the "
        "model's named inputs; several inputs go into one tuple: ((a, b), targets)."
    )


def take_batches(
    loader: Iterable[Any], samples: int | None, batch_size: int | None = None
) -> list[Batch]:
    """The first `samples` samples of `loader`, in its order; all of them for None.

    A loader with fewer samples gives what it has. `batch_size` re-batches inputs that are one
    tensor; tuples and dicts keep the loader's batches (their parts may be padded differently).

    Raises:
        DataError: the loader is empty or not iterable, an item is malformed, or `samples` or
            `batch_size` is below 1.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1.")
    batches = list(_first(loader, samples))
    if not batches:
        raise DataError(
            "the loader gave no samples. Is the data set empty, or a generator already used up?"
        )
    if batch_size is None or not all(isinstance(batch.inputs, Tensor) for batch in batches):
        return batches
    return _rebatch(batches, batch_size)


def _first(loader: Iterable[Any], samples: int | None) -> Iterator[Batch]:
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise DataError(
            f"a {type(loader).__name__} cannot be iterated over. Give a DataLoader or a list of "
            "(inputs, targets) batches."
        )
    taken = 0
    for item in loader:
        batch = split_batch(item)
        if samples is not None and taken + len(batch) > samples:
            batch = first_samples(batch, samples - taken)
        taken += len(batch)
        if len(batch):
            yield batch
        if taken == samples:
            return


def first_samples(batch: Batch, count: int) -> Batch:
    """The first `count` samples; tensors without the batch dimension stay whole."""
    return _samples(batch, slice(count))


def parted(batches: Iterable[Batch], samples: int) -> tuple[list[Batch], list[Batch]]:
    """The first `samples` samples, and the rest; a batch that lies across is cut in two."""
    first, rest, left = list[Batch](), list[Batch](), samples
    for batch in batches:
        pieces = (_samples(batch, slice(max(0, left))), _samples(batch, slice(max(0, left), None)))
        for into, piece in zip((first, rest), pieces, strict=True):
            into += [piece] if len(piece) else []
        left -= len(batch)
    return first, rest


def _samples(batch: Batch, chosen: slice) -> Batch:
    size = len(batch)

    def part(tensor: Tensor) -> Tensor:
        return tensor[chosen] if tensor.ndim and tensor.shape[0] == size else tensor

    return Batch(map_tensors(part, batch.inputs), batch.targets[chosen])


def _rebatch(batches: list[Batch], size: int) -> list[Batch]:
    tensors = [batch.inputs for batch in batches if isinstance(batch.inputs, Tensor)]
    shapes = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
    if len(shapes) > 1:
        raise DataError(f"the loader's samples differ in shape: {shapes[0]} and {shapes[1]}.")
    inputs = torch.split(torch.cat(tensors), size)
    targets = torch.split(torch.cat([batch.targets for batch in batches]), size)
    return [Batch(x, y) for x, y in zip(inputs, targets, strict=True)]


def channels_last(batch: Batch) -> Batch:
    """The same batch with images in the memory order that convolutions run fastest in."""

    def ordered(tensor: Tensor) -> Tensor:
        image = tensor.ndim == 4 and tensor.is_floating_point()
        return tensor.contiguous(memory_format=torch.channels_last) if image else tensor

    return Batch(map_tensors(ordered, batch.inputs), batch.targets)
