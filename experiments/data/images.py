"""Labelled images in memory, and getting them there from encoded bytes."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prune_env.errors import DataError

Pixels = npt.NDArray[np.uint8]
MOST_CLASSES = 100_000
"""A larger number is taken for a label that is none."""


class ImageSet(NamedTuple):
    """Images (N, C, H, W) uint8, 0 to 255, and labels (N,) int64."""

    images: Tensor
    labels: Tensor


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an npz file, by name.

    Raises:
        Exception: the file is damaged, in whatever way numpy runs into; or an entry is no array.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise ValueError(f"its entry '{strange[0]}' is no array")
    return arrays


def import_extra(name: str) -> Any:
    """A package that only some data needs; an error that names the extra where it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"this data needs the package '{name.split('.')[0]}'. pip install 'prune_env[data]'"
        ) from error


def decode(encoded: Iterable[tuple[str, bytes]]) -> Tensor:
    """Images (N, C, H, W) uint8 from pairs of a name and the bytes of a JPEG, PNG or the like.

    One channel if every image is grey, else three.

    Raises:
        DataError: an image cannot be decoded (says which), sizes differ, or there is none.
    """
    pillow = import_extra("PIL.Image")
    first = ""
    arrays: list[Pixels] = []
    for name, data in encoded:
        array = _decode_one(pillow, name, data)
        first = first or name
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(
                f"images differ in size: '{first}' is {_size(arrays[0])}, '{name}' is "
                f"{_size(array)}. Resize them to one size first."
            )
        arrays.append(array)
    if not arrays:
        raise DataError("there is no image to decode.")
    if any(array.ndim == 3 for array in arrays):  # a few grey ones among colour
        arrays = [array if array.ndim == 3 else np.stack([array] * 3, -1) for array in arrays]
    stacked = np.stack(arrays)
    return _channels_first(stacked if stacked.ndim == 4 else stacked[..., None])


def _decode_one(pillow: Any, name: str, data: bytes) -> Pixels:
    try:
        with pillow.open(io.BytesIO(data)) as image:
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            return np.asarray(image.convert(mode), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, TypeError, pillow.DecompressionBombError) as error:
        raise DataError(f"cannot decode image '{name}': {error}. Repair or remove it.") from error


def _size(array: Pixels) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _channels_first(array: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def as_images(array: npt.NDArray[Any], where: str) -> Tensor:
    """Images (N, C, H, W) uint8 from an array (N, H, W), (N, H, W, C) or (N, C, H, W).

    uint8 is taken as it is; floats must lie in [0, 1].

    Raises:
        DataError: another shape, type or range.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or (array.shape[3] not in (1, 3) and array.shape[1] not in (1, 3)):
        raise DataError(
            f"{where} has shape {array.shape}. Images are (N, H, W), (N, H, W, C) or "
            "(N, C, H, W) with 1 or 3 channels."
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise DataError(f"{where} holds floats from {low:g} to {high:g}; scale to [0, 1].")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{where} is of type {array.dtype}; uint8, or floats in [0, 1], needed.")
    last = array.shape[3] in (1, 3)
    return _channels_first(array if last else array.transpose(0, 2, 3, 1))


def require_few_classes(highest: int, where: str) -> None:
    """Check a label before a name and a row of weights are made for every class up to it.

    Raises:
        DataError: it is `MOST_CLASSES` or more.
    """
    if highest >= MOST_CLASSES:
        raise DataError(
            f"{where} holds the label {highest}; labels are class numbers below {MOST_CLASSES:,}. "
            "Number the classes from 0 without gaps."
        )


def as_labels(array: npt.NDArray[Any], count: int, where: str) -> Tensor:
    """Labels (N,) int64 from `count` integers.

    Raises:
        DataError: not integers, another number of them, one below 0 or far too large.
    """
    flat = array.reshape(-1)
    if not np.issubdtype(flat.dtype, np.integer):
        raise DataError(f"{where} is of type {array.dtype}; class numbers must be integers.")
    if len(flat) != count:
        raise DataError(f"{where} has {len(flat)} labels for {count} images.")
    if len(flat) and int(flat.min()) < 0:
        raise DataError(f"{where} holds the label {flat.min()}; class numbers start at 0.")
    require_few_classes(int(flat.max(initial=0)), where)
    return torch.from_numpy(flat.astype(np.int64))
