"""Atomic files: whatever goes wrong, the old file or the new one, and nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prune_env.errors import RunError
from prune_env.storage import load_tensors, save_tensors, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    assert write_text(path, "grün\n") == path
    assert path.read_bytes() == "grün\n".encode()
    write_bytes(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["text.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("broken", ["replace", "fsync", "chmod", "fdopen"])
def test_a_failure_leaves_the_old_file_and_no_other(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "file", "old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(RunError, match=r"cannot write '.*file': No space left on device\."):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_data_is_on_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "file", "text")
    assert order == ["fsync", "replace"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(RunError, match=r"cannot write .*Choose a folder you may write to"):
            write_text(path, "")


def test_a_name_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        write_text(tmp_path / "file", "")
    tmp_path.chmod(0o700)


def test_tensors_round_trip_with_views_ties_and_types(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "tied": whole,
        "view": whole.T,
        "slice": whole[:, 1:3],
        "double": whole.double(),
        "half": whole.bfloat16(),
        "count": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "leaf": torch.ones(2, requires_grad=True),
    }
    again = load_tensors(save_tensors(tmp_path / "t", tensors, {"a": "b"}))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype


def test_files_without_tensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors here")
    (tmp_path / "empty").write_text("")
    good = save_tensors(tmp_path / "good", {"a": torch.ones(100)})
    (tmp_path / "torn").write_bytes(good.read_bytes()[:200])
    for name in ("text", "empty", "torn", "missing", "."):
        with pytest.raises(RunError, match="cannot read tensors from"):
            load_tensors(tmp_path / name)
