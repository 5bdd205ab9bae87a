"""Reading labelled images from disk: one reader per kind of source, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from prune_env.errors import DataError
from prune_env.experiments.data.images import ImageSet, as_images, as_labels, decode, read_arrays
from prune_env.experiments.data.parquet import parquet_files, read_parquet
from prune_env.experiments.data.parts import ALIASES, RawSplits, cached_parts, numbered

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_NPZ_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))  # Keras, MedMNIST


def _only_npz(path: Path) -> Path | None:
    """The npz of a folder that holds one, as `prune-env data` leaves it."""
    found = [*path.glob("*.npz")] if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _read_npz(path: Path) -> RawSplits:
    path = _only_npz(path) or path
    try:
        arrays = read_arrays(path)
    except Exception as error:  # numpy believes what a damaged header says
        raise DataError(
            f"cannot read '{path}' as npz: {error}. Write plain arrays with numpy.savez."
        ) from error
    named = {
        part: (images.format(alias), labels.format(alias))
        for part, aliases in ALIASES.items()
        for alias in aliases
        for images, labels in _NPZ_KEYS
        if images.format(alias) in arrays and labels.format(alias) in arrays
    }
    if "train" not in named:
        named = {"all": ("images", "labels")}
    if not {name for pair in named.values() for name in pair} <= set(arrays):
        raise DataError(
            f"'{path}' holds the arrays {sorted(arrays)}. Name them x_train, y_train, x_val, "
            "y_val, x_test, y_test, or images and labels."
        )
    parts = {}
    for part, (images, labels) in named.items():
        pixels = as_images(arrays[images], f"'{images}' in '{path}'")
        numbers = as_labels(arrays[labels], len(pixels), f"'{labels}' in '{path}'")
        parts[part] = ImageSet(pixels, numbers)
    return RawSplits(parts, numbered(parts.values()))


def _class_folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and sub.name[0] != ".")


def _images_below(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())


def _read_image_folder(path: Path) -> RawSplits:
    named = {
        part: path / alias
        for part, aliases in ALIASES.items()
        for alias in aliases
        if (path / alias).is_dir()
    }
    folders = named if "train" in named else {"all": path}
    files = {
        part: {sub.name: _images_below(sub) for sub in _class_folders(folder)}
        for part, folder in folders.items()
    }
    classes = tuple(files["train" if "train" in files else "all"])
    for part, by_class in files.items():
        strange = sorted(set(by_class) - set(classes))
        if strange:
            raise DataError(
                f"'{folders[part]}' has the class '{strange[0]}', which training data lacks."
            )
        if not any(by_class.values()):
            raise DataError(
                f"no images below '{folders[part]}'. Put them in one folder per class, as "
                f"{', '.join(SUFFIXES[:3])} or the like."
            )

    def read() -> dict[str, ImageSet]:
        return {part: _decode_files(by_class, classes) for part, by_class in files.items()}

    everything = [f for by_class in files.values() for found in by_class.values() for f in found]
    return RawSplits(cached_parts(path, everything, read), classes)


def _decode_files(by_class: dict[str, list[Path]], classes: tuple[str, ...]) -> ImageSet:
    files = [file for name in classes for file in by_class.get(name, [])]
    labels = [n for n, name in enumerate(classes) for _ in by_class.get(name, [])]
    return ImageSet(decode((str(f), f.read_bytes()) for f in files), torch.tensor(labels))


class Reader(NamedTuple):
    """A kind of source: how to recognise it, and how to read it."""

    knows: Callable[[Path], bool]
    read: Callable[[Path], RawSplits]


READERS: dict[str, Reader] = {
    "npz": Reader(lambda path: path.suffix == ".npz" or _only_npz(path) is not None, _read_npz),
    "parquet": Reader(lambda path: bool(parquet_files(path)), read_parquet),
    "image folder": Reader(lambda path: path.is_dir(), _read_image_folder),
}
"""Kind -> reader; the first that knows the path reads it. Add a kind of data here."""
