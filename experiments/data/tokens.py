"""Token ids from files, and batches of next-token prediction of them.

Legend: N rows, T tokens of a row, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from prune_env.errors import DataError
from prune_env.experiments.data.images import read_arrays
from prune_env.quality.padding import IGNORED

ALIASES = {
    "train": ("train", "calibration"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "evaluation"),
}
"""What each part may be called."""
SHARES = {"test": 0.2, "val": 0.2}
"""Fraction of the training rows cut off for a part that the data does not bring."""
LENGTH = 256
"""Tokens of a row, where the data is one long line."""


@dataclass(frozen=True, eq=False)
class TokenSplits:
    """Rows of token ids, int64 (N, T), in three parts that never mix."""

    train: Tensor
    val: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            rows_NT = getattr(self, name)
            if rows_NT.ndim != 2 or not len(rows_NT) or rows_NT.shape[1] < 2:
                raise DataError(
                    f"the {name} part has shape {tuple(rows_NT.shape)}; at least one row of two "
                    "tokens is needed. Give more tokens, or shorter rows."
                )


@dataclass(frozen=True, eq=False)
class TokenBatches:
    """Yields `{"input_ids", "labels"}`, both int64 (B, T), anew on every pass.

    Labels are the ids one step ahead, so that the model's logits stand beside what they predict;
    the last position of a row has none (-100). Without a seed the order is drawn from torch's
    global generator, as in `ImageBatches`.
    """

    rows_NT: Tensor
    batch_size: int
    shuffle: bool = False
    seed: int | None = None

    def __len__(self) -> int:
        return -(-len(self.rows_NT) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = None if self.seed is None else Generator().manual_seed(self.seed)
        count = len(self.rows_NT)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for index in order.split(self.batch_size):
            ids_BT = self.rows_NT[index]
            yield {"input_ids": ids_BT, "labels": next_tokens(ids_BT)}


def next_tokens(ids_BT: Tensor) -> Tensor:
    """The targets of next-token prediction: ids one step ahead, -100 at the end of a row."""
    labels_BT = torch.full_like(ids_BT, IGNORED)
    labels_BT[:, :-1] = ids_BT[:, 1:]
    return labels_BT


def load_tokens(path: str | Path, *, length: int = LENGTH) -> TokenSplits:
    """The token ids in a file, in parts.

    .npz with arrays called train or calibration, val, test or evaluation (or one array); .npy; .txt
    with ids apart by white space; .bin with uint16 ids. Rows (N, T) stay as they are; a line of ids
    is cut into rows of `length`, and what is left over is dropped. A missing part is cut from the
    end of train, so that no text is in two parts.

    Raises:
        DataError: nothing there, nothing readable, not whole numbers, or too few of them.
    """
    return split_rows(read_tokens(path, length=length))


def read_tokens(path: str | Path, *, length: int = LENGTH) -> dict[str, Tensor]:
    """Every array of a token file as rows (N, T), by part ("all" where it has one part only).

    Raises:
        DataError: as `load_tokens`.
    """
    path = Path(path).expanduser()
    if path.suffix not in READERS:
        raise DataError(
            f"'{path}' is no file of token ids; its name ends in none of {', '.join(READERS)}."
        )
    try:
        arrays = READERS[path.suffix](path)
    except Exception as error:  # numpy believes what a damaged header says
        raise DataError(f"cannot read token ids from '{path}': {error}.") from error
    return {name: _rows(array, length, f"'{name}' in '{path}'") for name, array in arrays.items()}


def split_rows(parts: Mapping[str, Tensor]) -> TokenSplits:
    """The three parts; absent ones are cut from the end of the training rows."""
    named = {
        part: parts[alias]
        for part, aliases in ALIASES.items()
        for alias in aliases
        if alias in parts
    }
    if "train" not in named:
        if len(parts) != 1:
            raise DataError(
                f"the tokens come as {sorted(parts)}. Name the parts train, val and test."
            )
        named = {"train": next(iter(parts.values()))}
    rest_NT = named["train"]
    for name, share in SHARES.items():
        if name not in named:
            cut = len(rest_NT) - max(1, round(share * len(rest_NT)))
            rest_NT, named[name] = rest_NT[:cut], rest_NT[cut:]
    return TokenSplits(rest_NT, named["val"], named["test"])


def _rows(array: Any, length: int, where: str) -> Tensor:
    plain = isinstance(array, np.ndarray)  # a zip may hold anything
    if not plain or not np.issubdtype(array.dtype, np.integer) or array.ndim not in (1, 2):
        found = f"{array.dtype} of shape {array.shape}" if plain else type(array).__name__
        raise DataError(
            f"{where} is {found}. Token ids are whole numbers, in a line (N,) or in rows (N, T)."
        )
    ids = torch.from_numpy(array.astype(np.int64))
    if ids.numel() and int(ids.min()) < 0:
        raise DataError(f"{where} holds the id {int(ids.min())}; token ids start at 0.")
    if ids.ndim == 1:
        ids = ids[: len(ids) // length * length].reshape(-1, length)
    if not len(ids):
        raise DataError(f"{where} has fewer than the {length} tokens of one row.")
    return ids


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": read_arrays,
    ".npy": lambda path: {"all": np.load(path, allow_pickle=False)},
    ".txt": lambda path: {"all": np.array([int(word) for word in path.read_text().split()])},
    ".bin": lambda path: {"all": np.fromfile(path, dtype="<u2")},
}
"""Suffix -> reader of named arrays. Add a kind of file here."""
