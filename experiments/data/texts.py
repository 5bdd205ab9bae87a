"""Plain text as token ids: characters for a language model, words for a classifier."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from prune_env.errors import DataError
from prune_env.experiments.data.images import require_few_classes
from prune_env.experiments.data.tokens import TokenSplits

PAD, UNKNOWN, START, END = range(4)
"""Ids of no word: filling, a word that training data lack, and the ends of a sentence."""


class Characters(NamedTuple):
    """Text in three parts as ids of characters, and the characters by id."""

    splits: TokenSplits
    alphabet: str


def load_characters(path: Path, *, length: int, held_out: float = 0.05) -> Characters:
    """A text file by character, in rows of `length`; val and test are its last parts.

    Raises:
        DataError: the file cannot be read as text, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text from '{path}': {error}.") from error
    alphabet = "".join(sorted(set(text)))
    number = {character: k for k, character in enumerate(alphabet)}
    ids = torch.tensor([number[character] for character in text], dtype=torch.int64)
    rows_NT = ids[: len(ids) // length * length].reshape(-1, length)
    cut = round(held_out * len(rows_NT))
    if not 0 < 2 * cut < len(rows_NT):
        raise DataError(
            f"'{path}' has {len(text)} characters: too few for rows of {length} in three parts."
        )
    train, val, test = rows_NT.split([len(rows_NT) - 2 * cut, cut, cut])
    return Characters(TokenSplits(train, val, test), alphabet)


class Sentences(NamedTuple):
    """Labelled sentences: ids (N, T) filled up with `PAD`, labels (N,)."""

    ids_NT: Tensor
    labels_N: Tensor


class Words(NamedTuple):
    """Labelled sentences in three parts, and how many ids there are."""

    train: Sentences
    val: Sentences
    test: Sentences
    vocabulary: int


def load_sentences(folder: Path, *, length: int = 48, at_least: int = 2) -> Words:
    """Files `*.train`, `*.dev` and `*.test`, each line a label and the words of a sentence.

    Words that occur less than `at_least` times in training data share one id; sentences are cut
    at `length`.

    Raises:
        DataError: a file is missing, or a line has no label.
    """
    lines = {part: list(_lines(folder, part)) for part in ("train", "dev", "test")}
    counts = Counter(word for _, words in lines["train"] for word in words)
    known = sorted(word for word, count in counts.items() if count >= at_least)
    number = {word: k for k, word in enumerate(known, start=END + 1)}

    def numbered(part: str) -> Sentences:
        ids_NT = torch.full((len(lines[part]), length), PAD)
        for row, (_, words) in zip(ids_NT, lines[part], strict=True):
            ids = [START, *(number.get(word, UNKNOWN) for word in words[: length - 2]), END]
            row[: len(ids)] = torch.tensor(ids)
        return Sentences(ids_NT, torch.tensor([label for label, _ in lines[part]]))

    return Words(numbered("train"), numbered("dev"), numbered("test"), len(known) + END + 1)


def _lines(folder: Path, part: str) -> Iterator[tuple[int, Sequence[str]]]:
    files = sorted(folder.glob(f"*.{part}"))
    if len(files) != 1:
        raise DataError(f"'{folder}' has {len(files)} files '*.{part}'; one is needed.")
    for place, line in enumerate(files[0].read_text(encoding="utf-8").splitlines(), start=1):
        found = re.match(r"(\d+)\s+(\S.*)", line)
        if found is None:
            raise DataError(
                f"line {place} of '{files[0]}' is no label and sentence: '{line[:60]}'."
            )
        label = int(found[1])
        require_few_classes(label, f"line {place} of '{files[0]}'")
        yield label, found[2].lower().split()


@dataclass(frozen=True, eq=False)
class SentenceBatches:
    """Yields `{"input_ids", "attention_mask", "labels"}`, cut to the longest of the batch.

    Without a seed the order is drawn from torch's global generator, as in `ImageBatches`.
    """

    data: Sentences
    batch_size: int
    shuffle: bool = False
    seed: int | None = None

    def __len__(self) -> int:
        return -(-len(self.data.labels_N) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = None if self.seed is None else Generator().manual_seed(self.seed)
        count = len(self.data.labels_N)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for index in order.split(self.batch_size):
            ids_BT = self.data.ids_NT[index]
            there_BT = (ids_BT != PAD).long()
            longest = int(there_BT.sum(1).max())
            yield {
                "input_ids": ids_BT[:, :longest],
                "attention_mask": there_BT[:, :longest],
                "labels": self.data.labels_N[index],
            }
