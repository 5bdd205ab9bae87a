"""One process at a time in a folder: whoever comes second waits, and says for whom.

The lock is the kernel's (`flock`), so it ends with its process, however that dies.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from prune_env.errors import RunError

LOCK = ".lock"
"""File in a folder that is locked, with the number of the process that works there."""

_held: dict[tuple[Path, int], IO[str]] = {}
"""Locks of this process, by folder and thread: who holds one may take it again."""


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside the `with` block no other process (or thread) is inside one for this folder.

    Waits for one that is, with a line on stderr that names it. The folder is made if missing.
    On systems without `fcntl` nothing is locked.

    Raises:
        RunError: the folder cannot be written.
    """
    place = Path(folder)
    key = (place.absolute(), threading.get_ident())
    if key in _held:
        yield
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot write '{place}': {error.strerror or error}. Choose a folder you may write to."
        ) from error
    with file:
        _acquire(file, place)
        _held[key] = file
        try:
            yield
        finally:
            _held.pop(key, None)


def _acquire(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        print(f"waiting for process {owner}, which works in '{folder}'", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def _leave_to_parent() -> None:
    """A forked child has the parent's files: closing its own keeps the parent's lock."""
    for file in list(_held.values()):
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
