"""The same work on several things, in one process or several, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

import torch

One = TypeVar("One")
Made = TypeVar("Made")


def mapped(work: Callable[[One], Made], things: Sequence[One], processes: int) -> list[Made]:
    """What `work` makes of each thing, in their order."""
    torch.set_num_threads(1)  # sums in another order would make other numbers
    if processes == 1:
        return [work(thing) for thing in things]
    with workers(processes) as pool:
        return list(pool.map(work, things))


def workers(processes: int) -> ProcessPoolExecutor:
    """Processes of one thread each that end when this one does, however that is."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start)


def _start() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent to be gone; the kernel says so, also when it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
