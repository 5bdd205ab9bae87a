"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Something that counts steps and shows a remark with each."""

    def step(self, remark: str = "") -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str = "it", shown: bool = True) -> Iterator[Progress]:
    """Counts `total` steps with the time left; tqdm on a terminal, else about ten lines."""
    if not shown:
        yield _Silent()
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True, leave=True) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(label, total, unit)


class _Silent:
    def step(self, remark: str = "") -> None:
        pass


class _Bar:
    def __init__(self, bar: object) -> None:
        self._bar = bar

    def step(self, remark: str = "") -> None:
        self._bar.set_postfix_str(remark, refresh=False)  # type: ignore[attr-defined]
        self._bar.update(1)  # type: ignore[attr-defined]


class _Lines:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._shown, self._start = 0, 0.0, time.monotonic()

    def step(self, remark: str = "") -> None:
        self._done += 1
        share = self._done / max(1, self._total)
        if share < self._shown + 0.1 and self._done != self._total:
            return
        self._shown = share
        elapsed = time.monotonic() - self._start
        left = elapsed / share - elapsed
        text = f"{self._label}: {self._done}/{self._total} {self._unit}, {left:.0f} s left"
        print(f"{text}, {remark}" if remark else text, file=sys.stderr, flush=True)
