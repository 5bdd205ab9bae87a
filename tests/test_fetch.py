"""Downloads, from a server of our own: whole or not at all, resumed, checked."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from prune_env.errors import ConfigError, DataError
from prune_env.experiments.command import main
from prune_env.experiments.data import fetch
from prune_env.experiments.data.fetch import DATA_SETS, DataSet, Source, cifar_arrays
from prune_env.experiments.data.places import locate
from prune_env.experiments.data.splits import load_splits

BODY = np.random.default_rng(0).bytes(300_000)


class Files(BaseHTTPRequestHandler):
    """Gives `files`; breaks off after `most` bytes of an answer; notes where it was to begin."""

    files: ClassVar[dict[str, bytes]] = {}
    most, ranges, begun = 1 << 30, True, list[int]()

    def do_GET(self) -> None:
        body = self.files.get(self.path.strip("/"))
        if body is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.partition("=")[2].rstrip("-")) if self.ranges else 0
        self.begun.append(start)
        self.send_response(206 if start else 200)
        self.end_headers()
        self.wfile.write(body[start : start + self.most])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(Files, "files", {"text.txt": BODY})
    monkeypatch.setattr(Files, "begun", [])
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def source(server: str, body: bytes = BODY, name: str = "text.txt") -> Source:
    return Source(f"{server}/{name}", len(body), hashlib.sha256(body).hexdigest())


@pytest.fixture
def known(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DATA_SETS, "mine", DataSet("a file", (source(server),)))
    return server


def test_what_is_downloaded_is_found_by_name(
    known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="prune-env data mine"):
        locate("mine")
    for _ in range(2):
        assert main(["data", "mine"]) == 0
        assert "mine: " in capsys.readouterr().out
    assert (locate("mine") / "text.txt").read_bytes() == BODY
    assert Files.begun == [0], "it is there already"
    assert main(["data"]) == 0
    assert "cifar10" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(
    known: str, ranges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, where the server knows no ranges."""
    monkeypatch.setattr(Files, "most", 100_000)
    monkeypatch.setattr(Files, "ranges", ranges)
    with pytest.raises(DataError, match=r"broke off after 0\.1 of 0\.3 MB.*goes on from there"):
        fetch.fetch("mine", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".text.txt.part"]
    monkeypatch.setattr(Files, "most", 1 << 30)
    assert (fetch.fetch("mine", tmp_path) / "text.txt").read_bytes() == BODY
    assert Files.begun == [0, 100_000 if ranges else 0]


@pytest.mark.parametrize("body", [b"another" * 40_000, BODY + b"more", BODY[:-1] + b"?"])
def test_another_file_is_refused_and_not_kept(
    known: str, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "files", {"text.txt": body.ljust(len(BODY), b".")})
    with pytest.raises(DataError, match="Nothing was kept"):
        fetch.fetch("mine", tmp_path)
    assert list((tmp_path / "mine").iterdir()) == []


def test_no_such_name_no_such_file_no_such_server(
    known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no data set 'cifar11'"):
        fetch.fetch("cifar11", tmp_path)
    monkeypatch.setattr(Files, "files", {})
    with pytest.raises(DataError, match="Not Found"):
        fetch.fetch("mine", tmp_path)
    gone = Source("http://127.0.0.1:9/text.txt", 3, "0")
    monkeypatch.setitem(DATA_SETS, "mine", DataSet("a file", (gone,)))
    with pytest.raises(DataError, match="refused"):
        fetch.fetch("mine", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="PRUNE_ENV_CACHE"):
        fetch.fetch("mine", tmp_path / "file")


def test_cifar10_is_read_as_it_is_written(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its binary version: a label, then the red, the green and the blue pixels by rows."""
    generator, rows = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        label = np.arange(1100, dtype=np.uint8)[:, None] % 10
        rows[name] = np.hstack([label, generator.integers(0, 256, (1100, 3072), np.uint8)])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in rows.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = content.size
            archive.addfile(info, io.BytesIO(content.tobytes()))
    body, name = packed.getvalue(), "cifar-10-binary.tar.gz"
    monkeypatch.setattr(Files, "files", {name: body})
    small = DataSet("images", (source(server, body, name),), cifar_arrays, "cifar10.npz")
    monkeypatch.setitem(DATA_SETS, "cifar10", small)
    folder = fetch.fetch("cifar10")
    assert [path.name for path in folder.iterdir()] == ["cifar10.npz"]
    splits = load_splits("cifar10", seed=0)
    assert [len(part.labels) for part in (splits.train, splits.val, splits.test)] == [
        500,
        5000,
        1100,
    ]
    first = rows["data_batch_1.bin"][7]
    assert int(splits.train.labels[7]) == first[0]
    assert splits.train.images[7].numpy().tolist() == first[1:].reshape(3, 32, 32).tolist()
