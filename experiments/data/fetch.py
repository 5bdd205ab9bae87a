"""Public data by name: from its source, checked by size and hash, kept in the cache folder."""

from __future__ import annotations

import hashlib
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.errors import DataError, look_up
from prune_env.progress import progress
from prune_env.tasks.cache import cache_folder

CHUNK, PATIENCE = 1 << 18, 60
"""Bytes read at once, and seconds without any before a download counts as broken off."""
MEGA = 1e6


@dataclass(frozen=True)
class Source:
    """A public file: where it is, what it is called here, and what it must be."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """Files that make a data set.

    Attributes:
        about: what it is, and the terms it comes under.
        sources: of the files.
        make: from their folder to what is read, where they are not read as they are; its `made` is
            the file that it leaves.
        made: name of that file.
    """

    about: str
    sources: tuple[Source, ...]
    make: Callable[[Path, Path], None] | None = None
    made: str = ""


def fetch(name: str, folder: Path | None = None) -> Path:
    """The folder of a data set, downloaded if it is not there; what `--data NAME` then finds.

    A download that was broken off goes on where it was, and a file is only ever there whole.

    Args:
        name: of `DATA_SETS`.
        folder: that holds the data sets; None: `data` in the cache folder.

    Raises:
        DataError: unknown, unreachable, broken off, of another size or hash, or no place to write;
            says what to do.
    """
    found = look_up("data set", name, DATA_SETS)
    place = (folder or cache_folder() / "data") / name
    done = place / found.made if found.made else None
    if done is not None and done.exists():
        return place
    try:
        place.mkdir(parents=True, exist_ok=True)
        for source in found.sources:
            download(source, place / source.name)
        if found.make is not None and done is not None:
            half = done.with_name(f".{done.name}")
            found.make(place, half)
            half.replace(done)
            for source in found.sources:
                (place / source.name).unlink()
    except OSError as error:
        raise DataError(
            f"cannot write '{place}': {error.strerror or error}. $PRUNE_ENV_CACHE names another "
            "place."
        ) from error
    return place


def download(source: Source, path: Path) -> None:
    """A file, if it is not there yet; see `fetch`."""
    if path.exists():
        return
    part = path.with_name(f".{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    if have < source.size:
        try:
            _receive(source, part, have)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            got = part.stat().st_size if part.exists() else 0
            raise DataError(
                f"the download of {source.url} broke off after {got / MEGA:.1f} of "
                f"{source.size / MEGA:.1f} MB ({getattr(error, 'reason', error)}). Give the same "
                "command again: it goes on from there."
            ) from error
    size, digest = part.stat().st_size, _digest(part)
    if (size, digest) != (source.size, source.sha256):
        part.unlink()
        raise DataError(
            f"{source.url} gave {size:,} bytes of sha256 {digest}, not {source.size:,} of "
            f"{source.sha256}: it is another file, or was changed on the way. Nothing was kept."
        )
    part.replace(path)


def _receive(source: Source, part: Path, have: int) -> None:
    asked = urllib.request.Request(source.url, headers={"Range": f"bytes={have}-"} if have else {})
    with (
        urllib.request.urlopen(asked, timeout=PATIENCE) as answer,
        progress(f"download {source.name}", max(1, round(source.size / MEGA)), "MB") as bar,
    ):
        goes_on = have and answer.status == 206
        with part.open("ab" if goes_on else "wb") as file:
            while file.tell() <= source.size:  # never more than what is expected, and a little
                chunk = answer.read(CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                bar.step("", len(chunk) / MEGA)
            if file.tell() < source.size:
                raise ConnectionError("the server sent no more")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cifar_arrays(folder: Path, path: Path) -> None:
    """The binary version of CIFAR-10 as an npz: a tenth of the training images are val.

    A record is a label and 3 x 32 x 32 pixels, of one byte each; see the data set's page. The last
    5,000 of the training images, which are in no order, are val.

    Raises:
        DataError: the archive holds something else.
    """
    with tarfile.open(folder / "cifar-10-binary.tar.gz") as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}

        def read(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise DataError(f"the archive of CIFAR-10 in '{folder}' holds no {name}.")
            return np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)

        train = np.concatenate([read(f"data_batch_{number}.bin") for number in range(1, 6)])
        parts = {"train": train[:-5000], "val": train[-5000:], "test": read("test_batch.bin")}
    arrays: dict[str, Any] = {}
    for name, rows in parts.items():
        arrays[f"x_{name}"] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"y_{name}"] = rows[:, 0].astype(np.int64)
    with path.open("wb") as out:
        np.savez(out, **arrays)


def _github(repository: str, commit: str, path: str, size: int, sha256: str) -> Source:
    return Source(f"https://raw.githubusercontent.com/{repository}/{commit}/{path}", size, sha256)


_RNNLM = ("timbmg/RNNLM", "e26dff5d8f4b5d07ee459f192ee2131923d7584f")
_SST = ("AcademiaSinicaNLPLab/sentiment_dataset", "23c72429de5fb3d2f3da87bf2efb5559c15b78f7")
_SHAKESPEARE = ("karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e")

DATA_SETS = {
    "cifar10": DataSet(
        "60,000 images of 32 x 32, ten classes (Krizhevsky 2009); 170 MB",
        (
            Source(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        cifar_arrays,
        "cifar10.npz",
    ),
    "tinyshakespeare": DataSet(
        "Shakespeare's plays as one text, public domain; 1 MB",
        (
            _github(*_SHAKESPEARE, "data/tinyshakespeare/input.txt", 1_115_394,
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        ),
    ),
    "sst2": DataSet(
        "sentences of film reviews with their sentiment (Socher et al. 2013), research use; 1 MB",
        (
            _github(*_SST, "data/stsa.binary.train", 738_844,
                    "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338"),
            _github(*_SST, "data/stsa.binary.dev", 94_400,
                    "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1"),
            _github(*_SST, "data/stsa.binary.test", 193_562,
                    "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b"),
        ),
    ),
    "warandpeace": DataSet(
        "the novel in three parts, public domain; 3 MB",
        (
            _github(*_RNNLM, "data/wap.train.txt", 2_281_656,
                    "8ebb39059034fd00517e25fb2d5ca1a75f37d39a156762c51f146ff988f4bd41"),
            _github(*_RNNLM, "data/wap.valid.txt", 490_831,
                    "f07f149651ba86619d97483c35f83841a964486328ca43e2a92877426a6d6a1e"),
            _github(*_RNNLM, "data/wap.test.txt", 504_362,
                    "bdf3aada8ee2f91b2988a616fa25414d846fda6855749023016954739b6689d8"),
        ),
    ),
}  # fmt: skip
"""Name -> what it is made of."""
