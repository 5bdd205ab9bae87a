"""Every file we write and read goes through here: atomic, and sealed by a digest of its content.

A killed process leaves the old file or the new one, never half of one; a file that is not, to the
bit, what was written is refused before anything looks at its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from prune_env.errors import RunError

SEAL = "sha256"
"""The field of a JSON document, or of a safetensors file's metadata, that holds its digest."""
_BLANK = "0" * 64
_TRAILER = b"\nsha256 "
_CHUNK = 1 << 24
AGAIN = "Delete it, and what wrote it makes it again."


class Unreadable(ValueError):
    """What was read is not what was written; the message is a clause that says why.

    Whoever knows the file and the cure makes an error of our family of it.
    """


# ---- atomic writing


def write_bytes(path: str | Path, *parts: bytes | memoryview) -> Path:
    """Write `parts` to `path` through a temporary file in the same folder, fsync and rename.

    Raises:
        RunError: the folder cannot be created or written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; ours are ordinary ones
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(
            f"cannot write '{path}': {error.strerror or error}. Choose a folder you may write to."
        ) from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, atomically; without a seal: for people to read."""
    return write_bytes(path, text.encode("utf-8"))


def _read_bytes(path: str | Path, kind: str, cure: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot read the {kind} '{path}': {reason}. {cure}") from error


# ---- JSON documents


def seal(content: Mapping[str, Any], indent: int | None = None) -> str:
    """`content` as JSON text with a digest of it under "sha256": a document, or a journal's line.

    Raises:
        TypeError, ValueError: it cannot be JSON.
    """
    seen = json.loads(json.dumps(dict(content)))  # as a reader will see it: keys are strings
    return json.dumps({**seen, SEAL: _digest(seen)}, indent=indent)


def unseal(text: str, *, required: bool = True) -> dict[str, Any]:
    """What `seal` was given. Layout and order of keys may have changed, nothing else.

    Args:
        text: one JSON object.
        required: whether a text without a digest is refused. A file that people may edit goes
            without: they take the digest out, which changes nothing, and then edit.

    Raises:
        Unreadable: not a JSON object, no digest, or not what was sealed.
    """
    content = parse(text)
    found = content.pop(SEAL, None)
    if found is None and required:
        raise Unreadable(f'it has no "{SEAL}" of its content')
    if found is not None and found != _digest(content):
        raise Unreadable(f'its content is not what its "{SEAL}" was made of: a byte has changed')
    return content


def parse(text: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        Unreadable: there is none.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Unreadable(f"a JSON object is wanted, this is a {type(content).__name__}")
    return content


def _digest(content: Any) -> str:
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write a sealed document for `read_json`, atomically."""
    return write_text(path, seal(content, indent=1) + "\n")


def read_json(path: str | Path, kind: str, cure: str = AGAIN) -> dict[str, Any]:
    """The document that `write_json` wrote.

    Args:
        path: the file.
        kind: what it is, for the error.
        cure: what to do when it cannot be read, for the error.

    Raises:
        RunError: missing, damaged, or no document of ours.
    """
    try:
        return unseal(_read_bytes(path, kind, cure).decode("utf-8"))
    except ValueError as error:
        raise RunError(f"'{path}' is damaged, or no {kind} ({error}). {cure}") from error


# ---- bytes of any other library


def write_sealed(path: str | Path, data: bytes) -> Path:
    """Write bytes and their digest behind them, for `read_sealed`, atomically."""
    return write_bytes(path, data, _TRAILER, hashlib.sha256(data).hexdigest().encode())


def read_sealed(path: str | Path, kind: str, cure: str = AGAIN) -> bytes:
    """The bytes that `write_sealed` wrote.

    Raises:
        RunError: missing, or not what was written.
    """
    data, found, digest = _read_bytes(path, kind, cure).rpartition(_TRAILER)
    if not found or hashlib.sha256(data).hexdigest().encode() != digest:
        raise RunError(f"'{path}' is damaged, or no {kind} (a byte has changed). {cure}")
    return data


# ---- tensors


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write named tensors as sealed safetensors, atomically; shared storage is written per name.

    The digest is of the whole file with zeros in its own place, so it covers names, shapes, types,
    values and metadata, and any safetensors reader reads the file.
    """
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in plain.items()}
    blank = {**(metadata or {}), SEAL: _BLANK}
    try:
        data = memoryview(safetensors.torch.save(contiguous, blank))
    except safetensors.SafetensorError as error:
        raise RunError(f"cannot write '{path}': {error}.") from error
    length = 8 + int.from_bytes(data[:8], "little")
    header, values = _ordered(json.loads(bytes(data[8:length]))), data[length:]
    total = hashlib.sha256(header)
    total.update(values)
    place = _seal_place(header)
    assert place is not None
    sealed = header[: place[0]] + total.hexdigest().encode() + header[place[1] :]
    return write_bytes(path, sealed, values)


def _ordered(header: dict[str, Any]) -> bytes:
    """The length and the header of a safetensors file; the library shuffles its metadata."""
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read what `save_tensors` wrote.

    Raises:
        RunError: the file is missing, damaged, or not one of ours.
    """
    return load_described(path)[0]


def load_described(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata that `save_tensors` was given.

    Raises:
        RunError: the file is missing, damaged, or not one of ours.
    """
    if not _verified(path):
        raise RunError(f"cannot read tensors from '{path}': it has no {SEAL} of ours. {AGAIN}")
    return _load(path)


def load_foreign(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of anyone's safetensors file; verified where it is one of ours.

    Raises:
        RunError: the file is missing, damaged, or not a safetensors file.
    """
    _verified(path)
    return _load(path)[0]


def _load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = dict(file.metadata() or {})
    except Exception as error:  # the library lets through whatever damaged headers run into
        raise RunError(
            f"cannot read tensors from '{path}': {error}. Is it a safetensors file?"
        ) from error
    described.pop(SEAL, None)
    return tensors, described


def _verified(path: str | Path) -> bool:
    """Whether a safetensors file holds a digest of its content; one that differs is refused."""
    try:
        with Path(path).open("rb") as file:
            header = _header(file.read(8), file)
            place = _seal_place(header)
            if place is None:
                return False
            start, stop = place
            total = hashlib.sha256(header[:start] + _BLANK.encode() + header[stop:])
            while part := file.read(_CHUNK):
                total.update(part)
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot read tensors from '{path}': {getattr(error, 'strerror', None) or error}. Is "
            "it a safetensors file?"
        ) from error
    if total.hexdigest().encode() != header[start:stop]:
        raise RunError(f"cannot read tensors from '{path}': a byte has changed. {AGAIN}")
    return True


def _header(length: bytes, file: Any) -> bytes:
    """The length and the header of a safetensors file."""
    size = os.fstat(file.fileno()).st_size
    count = int.from_bytes(length, "little")
    if len(length) < 8 or count > size - 8:
        raise Unreadable("it ends before its header does")
    return length + bytes(file.read(count))


def _seal_place(header: bytes) -> tuple[int, int] | None:
    """Where the digest stands in a header; None where there is none."""
    found = re.search(rb'"sha256"\s*:\s*"([0-9a-f]{64})"', header)
    return None if found is None else found.span(1)
