"""The parts of a data set as a reader finds them, and the cache of what it decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prune_env.experiments.data.images import ImageSet
from prune_env.tasks.cache import Tensors, cache_folder, cached_tensors

ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""What each part may be called in file, folder and array names."""


@dataclass(frozen=True)
class RawSplits:
    """What a reader found: parts named train, val, test, or "all" where nothing is split yet."""

    parts: dict[str, ImageSet]
    classes: tuple[str, ...]


def numbered(parts: Iterable[ImageSet]) -> tuple[str, ...]:
    """Names for classes that have none: their numbers."""
    highest = max((int(part.labels.max()) for part in parts if len(part.labels)), default=-1)
    return tuple(str(number) for number in range(highest + 1))


def cached_parts(
    path: Path, files: list[Path], read: Callable[[], dict[str, ImageSet]]
) -> dict[str, ImageSet]:
    """Decoded parts, kept in the cache folder until one of the files changes."""
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps([str(path.resolve()), facts]).encode()).hexdigest()[:16]

    def make() -> Tensors:
        parts = read().items()
        return {f"{part}.{k}": v for part, found in parts for k, v in found._asdict().items()}

    def fits(tensors: Tensors) -> bool:
        return {name.split(".")[-1] for name in tensors} == set(ImageSet._fields)

    tensors = cached_tensors(cache_folder() / f"images-{key}.safetensors", make, fits)
    parts = sorted({name.split(".")[0] for name in tensors})
    return {part: ImageSet(tensors[f"{part}.images"], tensors[f"{part}.labels"]) for part in parts}
