"""Damage to files, as discs, editors and kills do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

OPERATIONS = ("fdopen", "fsync", "chmod", "replace", "unlink")
"""What our writing asks of the system, in os."""


class Killed(BaseException):
    """The process ends here: nothing that follows is done, no error is handled."""


def damaged(data: bytes, draw: st.DataObject) -> bytes:
    """One bit turned, the end cut off, or a stretch deleted, or zeroed."""
    start = draw.draw(st.integers(0, len(data) - 1))
    stop = min(len(data), start + draw.draw(st.sampled_from([1, 2, 7, 64])))
    how = draw.draw(st.sampled_from(["turned", "cut", "deleted", "zeroed"]))
    turned = bytes([data[start] ^ (1 << draw.draw(st.integers(0, 7)))])
    middle = {"turned": turned + data[start + 1 : stop], "cut": b"", "deleted": b""}
    end = b"" if how == "cut" else data[stop:]
    return data[:start] + middle.get(how, bytes(stop - start)) + end


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Inside the `with` block the process ends before its operation number `step`, from 0."""
    done = iter(range(step + 1))

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(done, step) == step:
                raise Killed
            return real(*args, **kwargs)

        return call

    real = {name: getattr(os, name) for name in OPERATIONS}
    try:
        for name, function in real.items():
            setattr(os, name, counted(function))
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
