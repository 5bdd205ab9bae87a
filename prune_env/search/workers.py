"""Who measures plans: this process, or several that each hold the task. The outcomes are the same.

ledger.measure(plans) --questions--> workers.map --outcomes, as they come--> ledger
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch

from prune_env.checks import whole
from prune_env.errors import ConfigError, RunError
from prune_env.fingerprint import Identity, differences
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.search.questions import Question, answer

_log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt` in malloc.h."""

Factory = Callable[[], PruningTask]


class Workers(Protocol):
    """Whoever measures plans that were asked for together."""

    def map(
        self, task: PruningTask, questions: Sequence[Question]
    ) -> Iterator[tuple[Question, Outcome]]:
        """The answers, in any order, each as soon as it is there.

        Raises:
            PruneEnvError: what measuring a plan raised.
            RunError: workers died.
        """
        ...


class InProcess:
    """One plan after the other, here."""

    def map(
        self, task: PruningTask, questions: Sequence[Question]
    ) -> Iterator[tuple[Question, Outcome]]:
        """The answers in order; each is measured when it is asked for."""
        return ((question, answer(task, question)) for question in questions)


IN_PROCESS = InProcess()


class Processes:
    """Several processes, each with the task and as many threads as this one.

    They start with the first plans that are asked for together, stay for all that follow, and end
    with the `with` block, or with this process however it ends. One that dies is replaced, once.

        with Processes(4) as workers:
            run_search(task, "random", 100, seed=0, workers=workers)

    Attributes:
        count: how many.
        factory: makes the task in each of them; None: the task is sent to them.
    """

    def __init__(self, count: int, factory: Factory | None = None) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: `count` is no number from 1.
        """
        whole(1)("workers", count)
        self.count, self.factory = count, factory
        self._pool: ProcessPoolExecutor | None = None
        self._identity: Identity = {}
        self._replaced = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *raised: object) -> None:
        self._close(wait=raised[0] is None)

    def map(
        self, task: PruningTask, questions: Sequence[Question]
    ) -> Iterator[tuple[Question, Outcome]]:
        """The answers as they come; a single plan is measured here.

        Raises:
            PruneEnvError: what measuring a plan raised.
            ConfigError: the task cannot be sent, or the factory makes another one.
            RunError: a worker died for the second time.
        """
        if min(self.count, len(questions)) <= 1:
            yield from IN_PROCESS.map(task, questions)
            return
        left = dict.fromkeys(questions)
        while left:
            for question, outcome in self._answered(task, list(left)):
                del left[question]
                yield question, outcome
            if left:
                self._replace(list(left))

    def _answered(
        self, task: PruningTask, questions: Sequence[Question]
    ) -> Iterator[tuple[Question, Outcome]]:
        """The answers of workers that live; an error comes last, and is that of the first plan."""
        futures = dict[Future[Outcome], Question]()
        failed = dict[int, BaseException]()
        try:
            with contextlib.suppress(BrokenProcessPool):
                pool = self._opened(task)
                for question in questions:
                    futures[pool.submit(_answer, question)] = question
            order = list(futures)
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield futures[future], future.result()
                elif not isinstance(error, BrokenProcessPool):
                    place = order.index(future)
                    failed[place] = error
                    for later in order[place:]:  # in one process they would not have been asked
                        later.cancel()
            if failed:
                raise failed[min(failed)]
        finally:
            for future in futures:
                future.cancel()

    def _replace(self, questions: Sequence[Question]) -> None:
        self._close(wait=False)
        where = f"while plans were measured that keep {[list(kept) for kept, _ in questions[:3]]}"
        if self._replaced:
            raise RunError(
                f"workers died twice, the second time {where}. Mostly memory runs out: take fewer "
                "workers. In a script the search must stand under `if __name__ == '__main__':`. "
                "What was measured is in the journal; the same search goes on from there."
            )
        self._replaced = True
        _log.warning("a worker died %s; it is replaced once.", where)

    def _opened(self, task: PruningTask) -> ProcessPoolExecutor:
        identity = dict(task.fingerprint)
        if self._pool is None or self._identity != identity:
            self._close(wait=False)
            made = (self.factory, identity) if self.factory else _sent(task)
            self._pool = pool_of(self.count, _threads(self.count), made)
            self._identity = identity
        return self._pool

    def _close(self, wait: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=True)
        self._pool = None


@contextlib.contextmanager
def opened(workers: int | Workers) -> Iterator[Workers]:
    """That many processes for the `with` block (1: this one), or the workers that are given.

    Raises:
        ConfigError: neither.
    """
    given: Any = workers
    if hasattr(given, "map"):
        yield given
        return
    with Processes(given) as processes:
        yield processes


def _threads(count: int) -> int:
    """Of every worker, as many as here: sums in another order would make other numbers."""
    threads, most = torch.get_num_threads(), cores()
    if count * threads > most:
        each = f"{threads} thread{'s' * (threads > 1)} each"
        _log.warning(
            "%d workers of %s share %d cores; torch.set_num_threads(%d) before the task is made "
            "is faster.", count, each, most, max(1, most // count),
        )  # fmt: skip
    return threads


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool_of(count: int, threads: int, made: Any = None) -> ProcessPoolExecutor:
    """Processes of so many threads each that end when this one does, however that is."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _start, (threads, torch.get_default_dtype(), made))


Made = tuple[Factory, Identity] | bytes
"""How a worker gets its task: by a factory, which must make one of this identity, or as bytes."""

_held: dict[str, Any] = {}
"""Of a worker: how its task is made, then the task."""


def _start(threads: int, dtype: torch.dtype, made: Any) -> None:
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    _keep_memory()
    _held["made"] = made
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_memory() -> None:
    """Let glibc keep what is freed, for the next plan.

    Activations are given back and asked for again in every layer; the page faults of several
    processes queue up in the kernel. On ResNet-20 two workers took 0.64 to 0.73 of the time of one
    process without this, and 0.48 to 0.54 with it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes


def _end_with_parent() -> None:
    """Wait for the parent to be gone; the kernel says so, also when it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _answer(question: Question) -> Outcome:
    """In a worker; what is wrong with the task is raised here, so that it is told."""
    if "task" not in _held:
        _held["task"] = _received(_held.pop("made"))
    return answer(_held["task"], question)


CURE = (
    "Define the network and what belongs to it in a module, or give "
    "Processes(count, factory=...) a function of a module that makes the task."
)


def _sent(task: PruningTask) -> bytes:
    """The task for processes of ours; never written to a file."""
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"the task cannot be sent to workers: {error}. {CURE}") from error


def _received(made: Made) -> PruningTask:
    if isinstance(made, bytes):
        try:
            task: PruningTask = pickle.loads(made)
        except (AttributeError, ImportError) as error:
            raise ConfigError(f"a worker cannot make the task: {error}. {CURE}") from error
        return task
    factory, wanted = made
    task = factory()
    differ = differences(task.fingerprint, wanted)
    if differ:
        raise ConfigError(f"the factory of the workers makes another task: {differ}.")
    return task
