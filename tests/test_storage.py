"""Atomic, sealed files: the old one or the new one whole, and to the bit what was written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.errors import RunError
from prune_env.storage import (
    SEAL,
    Unreadable,
    load_described,
    load_foreign,
    load_tensors,
    read_json,
    read_sealed,
    save_tensors,
    seal,
    unseal,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
)


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


# ---- seals: what was written, or refused


DOCUMENT = {"name": "grün", "numbers": [1, 2.5, -0.0, 1e300], "nested": {"1": None, "on": True}}


def test_documents_come_back(tmp_path: Path) -> None:
    path = write_json(tmp_path / "d.json", {**DOCUMENT, 3: "a number as a name"})
    assert read_json(path, "document") == {**DOCUMENT, "3": "a number as a name"}
    assert unseal(seal(DOCUMENT)) == DOCUMENT
    assert "\n" not in seal({"text": "a\nb"})


def test_layout_and_order_of_a_document_are_free_and_the_seal_may_be_taken_out() -> None:
    content = json.loads(seal(DOCUMENT))
    assert unseal(json.dumps(dict(reversed(content.items())), indent=7)) == DOCUMENT
    del content[SEAL]
    content["name"] = "edited"
    assert unseal(json.dumps(content), required=False)["name"] == "edited"
    with pytest.raises(Unreadable, match='no "sha256"'):
        unseal(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 9999, '{"sha256": 3}', "\ud800"])
def test_what_is_no_document_says_so(text: str) -> None:
    for required in (True, False):
        with pytest.raises(Unreadable):
            unseal(text, required=required)


@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_document_is_refused_or_says_the_same(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_json(Path(folder) / "d.json", DOCUMENT)
        path.write_bytes(damaged(path.read_bytes(), data))
        with contextlib.suppress(RunError):
            assert read_json(path, "document") == DOCUMENT


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_tensors_and_bytes_are_refused(data: st.DataObject) -> None:
    """Header, names, shapes, kinds, values, metadata, padding: every byte of the file."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = {"a": torch.arange(5.0), "b": torch.tensor([[True, False]])}
        path = save_tensors(Path(folder) / "t", tensors, {"plan": seal(DOCUMENT)})
        whole = path.read_bytes()
        path.write_bytes(broken := damaged(whole, data))
        with pytest.raises(RunError) if broken != whole else contextlib.nullcontext():
            load_described(path)
        path = write_sealed(Path(folder) / "b", whole)
        assert read_sealed(path, "thing") == whole
        sealed = path.read_bytes()
        path.write_bytes(broken := damaged(sealed, data))
        with pytest.raises(RunError) if broken != sealed else contextlib.nullcontext():
            read_sealed(path, "thing")


def test_foreign_tensors_are_read_and_ours_verified(tmp_path: Path) -> None:
    tensors = {"sha256": torch.ones(3)}
    foreign = tmp_path / "foreign"
    safetensors.torch.save_file(tensors, foreign)
    assert torch.equal(load_foreign(foreign)["sha256"], torch.ones(3))
    with pytest.raises(RunError, match="no sha256 of ours"):
        load_tensors(foreign)
    ours = save_tensors(tmp_path / "ours", tensors, {"about": "x"})
    assert load_described(ours)[1] == {"about": "x"}
    assert torch.equal(safetensors.torch.load_file(ours)["sha256"], torch.ones(3))
    ours.write_bytes(ours.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="a byte has changed"):
        load_foreign(ours)


def test_what_is_missing_is_named_with_the_cure(tmp_path: Path) -> None:
    for read in (read_json, read_sealed):
        with pytest.raises(RunError, match=r"cannot read the note '.*none': No such.*Ask again"):
            read(tmp_path / "none", "note", "Ask again.")


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    """The library writes metadata in another order every time."""
    parts = {name: name for name in "abcdefgh"}
    paths = [save_tensors(tmp_path / str(n), {"t": torch.ones(3)}, parts) for n in range(6)]
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_described(paths[0])[1] == parts
