"""Progress of long work: who works says how far it is, who called says how that is shown.

    with progress("search", 200, "episodes") as bar: bar.step("best -0.31")

shows nothing unless somebody above said `with showing(on_terminal()): ...`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol


class Progress(Protocol):
    """Something that counts steps, or parts of them, and shows a remark with each."""

    def step(self, remark: str = "", steps: float = 1.0) -> None: ...


Show = Callable[[str, int, str, bool], AbstractContextManager[Progress]]
"""From a label, a number of steps, what one is called and whether it is `passing` to what counts
them."""

_SHOWN: ContextVar[Show | None] = ContextVar("progress", default=None)


def progress(
    label: str, total: int, unit: str = "it", *, passing: bool = False
) -> AbstractContextManager[Progress]:
    """Counts `total` steps with the time left, in the way that `showing` said, if any.

    What is `passing` (a part of the way to a task) leaves no trace: its bar goes when it is done.
    """
    show = _SHOWN.get()
    return nullcontext(_Silent()) if show is None else show(label, total, unit, passing)


@contextmanager
def showing(show: Show | None) -> Iterator[None]:
    """What `progress` does inside; None: nothing. It counts for this thread and its tasks."""
    token = _SHOWN.set(show)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def on_terminal() -> Show | None:
    """Bars where standard error is a terminal, else nothing."""
    return bars if sys.stderr.isatty() else None


def aloud() -> Show:
    """Bars where standard error is a terminal, else about ten lines."""
    return on_terminal() or lines


@contextmanager
def bars(label: str, total: int, unit: str, passing: bool = False) -> Iterator[Progress]:
    """A bar of tqdm with the share, the time left and the remark."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=label, unit=f" {unit}", dynamic_ncols=True, leave=not passing
    ) as bar:
        yield _Bar(bar)


@contextmanager
def lines(label: str, total: int, unit: str, passing: bool = False) -> Iterator[Progress]:
    """A line on standard error at every tenth of the way; none for what is passing."""
    yield _Silent() if passing else _Lines(label, total, unit)


class _Silent:
    def step(self, remark: str = "", steps: float = 1.0) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any) -> None:
        self._bar, self._done = bar, 0.0

    def step(self, remark: str = "", steps: float = 1.0) -> None:
        self._done += steps
        self._bar.set_postfix_str(remark, refresh=False)
        self._bar.update(_whole(self._done) - self._bar.n)


class _Lines:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._shown, self._start = 0.0, 0.0, time.monotonic()

    def step(self, remark: str = "", steps: float = 1.0) -> None:
        before, self._done = self._done, self._done + steps
        share = self._done / max(1, self._total)
        ended = before < self._total <= self._done
        if not ended and (share < self._shown + 0.1 or before >= self._total):
            return
        self._shown = share
        elapsed = time.monotonic() - self._start
        left = max(0.0, elapsed / share - elapsed)
        done = min(_whole(self._done), self._total)
        text = f"{self._label}: {done}/{self._total} {self._unit}, {left:.0f} s left"
        print(f"{text}, {remark}" if remark else text, file=sys.stderr, flush=True)


def _whole(steps: float) -> int:
    """Steps that are done; shares that should sum to one may be short of it by rounding."""
    return int(steps + 1e-9)
