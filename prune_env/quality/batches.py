"""Batches of labelled samples, taken from whatever loader the user has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prune_env.errors import DataError
from prune_env.quality.padding import Positions, data_positions, without_padding
from prune_env.structure.inputs import Inputs, batch_size, map_tensors


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and their targets; the first dimension of every tensor runs over the samples.

    Targets are a tensor, any tree that an objective of one's own understands, or None. Whole
    numbers become int64, so that -100 is the same in every type a loader may use, and a position
    that `attention_mask` leaves out has no label.
    """

    inputs: Inputs
    targets: Any = None

    def __post_init__(self) -> None:
        targets = self.targets
        if not isinstance(targets, Tensor):
            return
        if not (targets.is_floating_point() or targets.is_complex()):
            targets = targets.long()
        object.__setattr__(self, "targets", without_padding(self.inputs, targets))

    @cached_property
    def positions(self) -> Positions:
        """Which positions are data; empty where all are."""
        return data_positions(self.inputs, self.targets)

    def __len__(self) -> int:
        return batch_size(self.inputs)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; itself if it is there."""
        inputs = map_tensors(lambda tensor: tensor.to(device), self.inputs)
        return Batch(inputs, map_tensors(lambda tensor: tensor.to(device), self.targets))


def split_batch(item: Any) -> Batch:
    """What a loader yields, as a `Batch`.

    A pair `(inputs, targets)`; a dict with "labels"; or inputs alone (a tensor, a list of one, a
    dict without "labels"). NumPy arrays are as good as tensors.

    Raises:
        DataError: the item has another form, or inputs and targets differ in length.
    """
    if isinstance(item, Batch):
        return item
    inputs, targets = _parts(_as_tensors(item))
    size = batch_size(inputs)
    if targets is None:
        return Batch(inputs)
    if isinstance(targets, list | tuple) and any(map(_is_tree, targets)):
        found: Any = (len(targets),)  # one entry per sample, such as the boxes of an image
    elif _is_tree(targets):
        found = (batch_size(targets),)
    else:
        targets = targets if isinstance(targets, Tensor) else _as_tensor(targets)
        found = tuple(targets.shape)
    if not found or found[0] != size:
        raise DataError(
            f"a batch has {size} inputs but targets of shape {tuple(found)}. "
            "Both need the same first dimension."
        )
    return Batch(inputs, targets)


def _is_tree(value: Any) -> bool:
    """Whether targets are more than numbers: only an objective of one's own understands them."""
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(entry, Tensor) for entry in value)
    )


def _as_tensors(item: Any) -> Any:
    """Arrays as tensors; numbers of double precision, NumPy's default, as networks take them."""
    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        tensor = torch.from_numpy(np.ascontiguousarray(item))
        return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor
    if isinstance(item, Mapping):
        return {name: _as_tensors(value) for name, value in item.items()}
    if isinstance(item, tuple | list) and any(isinstance(x, np.ndarray) for x in item):
        return type(item)(_as_tensors(value) for value in item)
    return item


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
    if isinstance(item, Mapping) and item:
        if "labels" in item and len(item) == 1:
            raise DataError("a loader yielded a dict of 'labels' alone: the inputs are missing.")
        return {k: v for k, v in item.items() if k != "labels"}, item.get("labels")
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple | list) and len(item) == 1:
        return item[0], None
    found = f"keys {sorted(item)}" if isinstance(item, Mapping) else type(item).__name__
    if isinstance(item, tuple | list):
        found = f"a {type(item).__name__} of {len(item)}"
    raise DataError(
        f"a loader yielded {found}. Yield (inputs, targets), or a dict with 'labels' and the "
        "model's named inputs; several inputs go into one tuple: ((a, b), targets). Or say what "
        "is what: batch=lambda item: (inputs, targets)."
    )


@dataclass(frozen=True, eq=False)
class Mapped:
    """A loader, each item turned into (inputs, targets) by a function of the user's."""

    loader: Iterable[Any]
    batch: Callable[[Any], Any]

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            try:
                yield self.batch(item)
            except Exception as error:
                raise DataError(
                    f"batch= fails on what the loader gave ({type(item).__name__}): "
                    f"{type(error).__name__}: {error}"
                ) from error

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


DATASET_BATCH = 64
"""Samples per batch of a data set that comes without a loader."""


def loader_of(
    data: Any, batch: Callable[[Any], Any] | None = None, *, shuffle: bool = False
) -> Iterable[Any]:
    """Whatever the user has, as something that yields batches.

    A loader or a list of batches stays what it is. A `torch.utils.data.Dataset`, a tuple of arrays
    `(inputs, targets)`, and one array, with a row per sample, are read `DATASET_BATCH` at a time.

    Args:
        batch: from what the loader gives to (inputs, targets).
        shuffle: a data set or arrays anew every time, as torch's generator says.

    Raises:
        DataError: arrays of different length.
    """
    rows = (Tensor, np.ndarray)
    if isinstance(data, rows):
        data = (data,)
    if isinstance(data, tuple) and 1 <= len(data) <= 2 and all(isinstance(x, rows) for x in data):
        arrays = [torch.as_tensor(_as_tensors(part)) for part in data]
        if len({len(array) for array in arrays}) > 1:
            raise DataError(
                f"{len(arrays[0])} inputs and {len(arrays[1])} targets. Both arrays need a row for "
                "every sample."
            )
        data = TensorDataset(*arrays)
    if isinstance(data, IterableDataset):
        data = DataLoader(data, DATASET_BATCH)
    elif isinstance(data, Dataset):
        data = DataLoader(data, DATASET_BATCH, shuffle=shuffle)
    return data if batch is None else Mapped(data, batch)


def take_batches(
    loader: Iterable[Any], samples: int | None, batch_size: int | None = None, cut: bool = True
) -> list[Batch]:
    """The first `samples` samples of `loader`, in its order; all of them for None.

    A loader with fewer samples gives what it has. `batch_size` re-batches inputs that are one
    tensor; tuples and dicts keep the loader's batches (their parts may be padded differently).
    The last batch is cut to the number asked for, unless `cut` is False.

    Raises:
        DataError: the loader is empty or not iterable, an item is malformed, or `samples` or
            `batch_size` is below 1.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1.")
    batches = list(_first(loader, samples, cut))
    if not batches:
        raise DataError(
            "the loader gave no samples. Is the data set empty, or a generator already used up?"
        )
    if batch_size is None or not all(map(_of_tensors, batches)):
        return batches
    return _rebatch(batches, batch_size)


def take_then(
    loader: Iterable[Any], samples: int, batches: int, cut: bool = True
) -> tuple[list[Batch], list[Batch]]:
    """The first `samples` samples, as of `take_batches`, and so many whole batches after them.

    Raises:
        DataError: see `take_batches`.
    """
    stream = _first(loader, None, cut)
    return take_batches(stream, samples, cut=cut), list(islice(stream, batches))


def _first(loader: Iterable[Any], samples: int | None, cut: bool) -> Iterator[Batch]:
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise DataError(
            f"a {type(loader).__name__} cannot be iterated over. Give a DataLoader or a list of "
            "(inputs, targets) batches."
        )
    taken = 0
    for item in loader:
        batch = split_batch(item)
        if cut and samples is not None and taken + len(batch) > samples:
            batch = first_samples(batch, samples - taken)
        taken += len(batch)
        if len(batch):
            yield batch
        if samples is not None and taken >= samples:
            return


def first_samples(batch: Batch, count: int) -> Batch:
    """The first `count` samples; tensors without the batch dimension stay whole."""
    return _samples(batch, slice(count))


def parted(
    batches: Iterable[Batch], samples: int, cut: bool = True
) -> tuple[list[Batch], list[Batch]]:
    """The first `samples` samples, and the rest.

    A batch that lies across is cut in two, or else belongs to the first.
    """
    first, rest, left = list[Batch](), list[Batch](), samples
    for batch in batches:
        place = max(0, left) if cut or left <= 0 else len(batch)
        pieces = (_samples(batch, slice(place)), _samples(batch, slice(place, None)))
        for into, piece in zip((first, rest), pieces, strict=True):
            into += [piece] if len(piece) else []
        left -= len(batch)
    return first, rest


def _samples(batch: Batch, chosen: slice) -> Batch:
    size = len(batch)

    def part(tensor: Tensor) -> Tensor:
        return tensor[chosen] if tensor.ndim and tensor.shape[0] == size else tensor

    targets = batch.targets
    if isinstance(targets, list | tuple) and len(targets) == size:
        return Batch(map_tensors(part, batch.inputs), targets[chosen])
    return Batch(map_tensors(part, batch.inputs), map_tensors(part, targets))


def _of_tensors(batch: Batch) -> bool:
    labels = batch.targets is None or isinstance(batch.targets, Tensor)
    return isinstance(batch.inputs, Tensor) and labels


def _rebatch(batches: list[Batch], size: int) -> list[Batch]:
    tensors = [batch.inputs for batch in batches if isinstance(batch.inputs, Tensor)]
    shapes = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
    if len(shapes) > 1:
        raise DataError(f"the loader's samples differ in shape: {shapes[0]} and {shapes[1]}.")
    inputs = torch.split(torch.cat(tensors), size)
    if any(batch.targets is None for batch in batches):
        return [Batch(x) for x in inputs]
    targets = torch.split(torch.cat([batch.targets for batch in batches]), size)
    return [Batch(x, y) for x, y in zip(inputs, targets, strict=True)]


def channels_last(batch: Batch) -> Batch:
    """The same batch with images in the memory order that convolutions run fastest in."""

    def ordered(tensor: Tensor) -> Tensor:
        image = tensor.ndim == 4 and tensor.is_floating_point()
        return tensor.contiguous(memory_format=torch.channels_last) if image else tensor

    return Batch(map_tensors(ordered, batch.inputs), batch.targets)
