"""The same work on several things, in one process or several, one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

One = TypeVar("One")
Made = TypeVar("Made")


def mapped(work: Callable[[One], Made], things: Sequence[One], processes: int) -> list[Made]:
    """What `work` makes of each thing, in their order."""
    torch.set_num_threads(1)  # sums in another order would end the journals of searches
    if processes == 1:
        return [work(thing) for thing in things]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        return list(pool.map(work, things))
