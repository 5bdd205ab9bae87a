"""Labelled images in parquet files, as data sets are published today; needs pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.errors import DataError
from prune_env.experiments.data.images import ImageSet, as_labels, decode, import_extra
from prune_env.experiments.data.parts import ALIASES, RawSplits, cached_parts, numbered


def parquet_files(path: Path) -> dict[str, list[Path]]:
    """Files of each part: train.parquet, or shards like data/train-00000-of-00002.parquet."""
    if path.is_file():
        return {"all": [path]} if path.suffix == ".parquet" else {}
    candidates = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    return {
        part: files
        for part, aliases in ALIASES.items()
        if (files := [f for f in candidates if f.stem.split("-")[0] in aliases])
    }


def read_parquet(path: Path) -> RawSplits:
    files = parquet_files(path)
    if not {"train", "all"} & set(files):
        raise DataError(f"'{path}' has {sorted(files)} parquet files but no train.parquet.")
    everything = [file for found in files.values() for file in found]
    first = files.get("train", everything)[0]

    def read() -> dict[str, ImageSet]:
        return {part: _decode_parquet(found) for part, found in files.items()}

    parts = cached_parts(path, everything, read)
    names = _parquet_classes(_schema(first))
    return RawSplits(parts, names or numbered(parts.values()))


def _schema(file: Path) -> Any:
    parquet = import_extra("pyarrow.parquet")
    try:
        return parquet.read_schema(file)
    except Exception as error:  # as above
        raise DataError(f"cannot read '{file}' as parquet: {error}") from error


def _table(file: Path, columns: list[str]) -> Any:
    parquet = import_extra("pyarrow.parquet")
    try:
        return parquet.read_table(file, columns=columns)
    except Exception as error:  # the library lets through whatever damaged pages run into
        raise DataError(f"cannot read '{file}' as parquet: {error}") from error


def _columns(file: Path) -> tuple[str, str]:
    """The image column (bytes, or a struct with bytes) and the label column of a file."""
    types = import_extra("pyarrow").types
    schema = _schema(file)

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def is_image(kind: Any) -> bool:
        if not types.is_struct(kind):
            return is_bytes(kind)
        return any(part.name == "bytes" and is_bytes(part.type) for part in kind)

    images = [column.name for column in schema if is_image(column.type)]
    numbers = [column.name for column in schema if types.is_integer(column.type)]
    usual = [name for name in ("label", "labels", "fine_label") if name in numbers]
    if not images or not numbers or (len(numbers) > 1 and not usual):
        raise DataError(
            f"'{file}' has the columns {schema.names}. One of encoded image bytes (or a struct "
            "with 'bytes') and one of integers named 'label' are needed."
        )
    return images[0], (usual or numbers)[0]


def _decode_parquet(files: list[Path]) -> ImageSet:
    encoded: list[tuple[str, bytes]] = []
    labels: list[Any] = []
    for file in files:
        image, label = _columns(file)
        table = _table(file, [image, label])
        for row, value in enumerate(table[image].to_pylist()):
            data = value["bytes"] if isinstance(value, dict) else value
            if data is None:
                raise DataError(f"row {row} of '{file}' has no image bytes in '{image}'.")
            encoded.append((f"{file} row {row}", data))
        if table[label].null_count:
            raise DataError(f"'{file}' has {table[label].null_count} rows without a '{label}'.")
        labels.extend(table[label].to_pylist())
    if not encoded:
        raise DataError(f"'{files[0]}' has no rows.")
    numbers = as_labels(np.asarray(labels), len(encoded), f"'{files[0]}'")
    return ImageSet(decode(encoded), numbers)


def _parquet_classes(schema: Any) -> tuple[str, ...]:
    """Class names from the file's metadata, ours or Hugging Face's; empty where there are none."""
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        return tuple(metadata[b"classes"].decode().split(","))
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(next(f["names"] for f in features.values() if "names" in f))
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration):
        return ()
