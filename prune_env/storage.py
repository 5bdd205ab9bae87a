"""Atomic files: a killed process leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from prune_env.errors import RunError


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` through a temporary file in the same folder, fsync and rename.

    Raises:
        RunError: the folder cannot be created or written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
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
    """Write `text` as UTF-8 to `path`, atomically."""
    return write_bytes(path, text.encode("utf-8"))


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write named tensors as safetensors, atomically; shared storage is written out per name."""
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in plain.items()}
    return write_bytes(path, safetensors.torch.save(contiguous, dict(metadata or {})))


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        RunError: the file is missing or is not a safetensors file.
    """
    try:
        return safetensors.torch.load_file(str(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"cannot read tensors from '{path}': {error}. Is it a safetensors file?"
        ) from error
