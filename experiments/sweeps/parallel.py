"""The same work on several things, in one process or several, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

from prune_env.search.workers import pool_of

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
    return pool_of(processes, threads=1)
