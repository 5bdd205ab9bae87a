"""Odd values and damaged files, all drawn from one generator: what `experiments.fuzz` tries."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Random = np.random.Generator
T = TypeVar("T")
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 10**9, 2**31, 2**63, 2**70, -(2**63), 0.0, -0.0, 0.5, -0.5,
    1.0, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, "", " ", "0.5", "x", "nan", "é\u2028",
    "a" * 300, "*", "[", "../x", "\x00",
)  # fmt: skip
DEEP = 80
"""Levels of the deepest nesting."""


def pick(random: Random, values: Sequence[T]) -> T:
    """One of them."""
    return values[int(random.integers(len(values)))]


def odd(random: Random, depth: int = 0) -> Any:
    """A value that JSON can hold, of any type and size."""
    choice = int(random.integers(12))
    if choice < 8 or depth > 2:
        return pick(random, SCALARS)
    if choice == 8:
        return [odd(random, depth + 1) for _ in range(random.integers(4))]
    if choice == 9:
        keys = ("a", "", "format", "0", "kept")
        return {keys[random.integers(5)]: odd(random, depth + 1) for _ in range(random.integers(3))}
    if choice == 10:
        nested: Any = 0
        for _ in range(DEEP):
            nested = [nested]
        return nested
    return [pick(random, SCALARS)] * int(random.integers(1, 400))


def near(random: Random, value: Any) -> Any:
    """`value` a little changed, of the same type: harder to see than an odd one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        steps = (value + 1, value - 1, -value, value * 2, value * 10**6, float(value), str(value))
        return steps[random.integers(len(steps))]
    if isinstance(value, float):
        scales = (-value, value * 2, value + 1e-9, value * 1e12, math.nan, math.inf, str(value))
        return scales[random.integers(len(scales))]
    if isinstance(value, str) and value:
        place = int(random.integers(len(value)))
        middle = ("", "x", value[place] * 2)[random.integers(3)]
        return value[:place] + middle + value[place + 1 :]
    return odd(random)


def places(value: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside `value`."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack and len(found) < limit:
        holder = stack.pop()
        inside = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, entry in inside:
            found.append((holder, key))
            if isinstance(entry, dict | list):
                stack.append(entry)
    return found


def edited(random: Random, content: Any) -> Any:
    """A copy of parsed JSON with one to three edits anywhere in it."""
    content = copy.deepcopy(content)
    for _ in range(random.integers(1, 4)):
        spots = places(content)
        if not spots:
            return odd(random)
        holder, key = spots[random.integers(len(spots))]
        pick(random, EDITS)(random, holder, key)
    return content


def _replace(random: Random, holder: Any, key: Any) -> None:
    holder[key] = odd(random)


def _nudge(random: Random, holder: Any, key: Any) -> None:
    holder[key] = near(random, holder[key])


def _remove(random: Random, holder: Any, key: Any) -> None:
    del holder[key]


def _add(random: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[f"{key}_more"] = odd(random)
    else:
        holder.insert(key, copy.deepcopy(holder[key]))


def _swap(random: Random, holder: Any, key: Any) -> None:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    other = keys[int(random.integers(len(keys)))]
    holder[key], holder[other] = holder[other], holder[key]


def _wrap(random: Random, holder: Any, key: Any) -> None:
    holder[key] = ([holder[key]], {"a": holder[key]}, str(holder[key]))[random.integers(3)]


EDITS: Sequence[Callable[[Random, Any, Any], None]] = (
    _replace, _replace, _nudge, _nudge, _remove, _add, _swap, _wrap,
)  # fmt: skip


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes with what disks, networks and killed writers do to them."""
    if not data:
        return bytes(random.integers(0, 256, 8, dtype=np.uint8))
    return pick(random, DAMAGES)(random, data)


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 4)):
        changed[random.integers(len(data))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _overwrite(random: Random, data: bytes) -> bytes:
    start, size = int(random.integers(len(data))), int(random.integers(1, 65))
    junk = bytes(size) if random.integers(2) else random.bytes(size)
    return data[:start] + junk[: len(data) - start] + data[start + size :]


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.integers(len(data))]


def _cut_out(random: Random, data: bytes) -> bytes:
    start, size = int(random.integers(len(data))), int(random.integers(1, 200))
    return data[:start] + data[start + size :]


def _double(random: Random, data: bytes) -> bytes:
    start, size = int(random.integers(len(data))), int(random.integers(1, 200))
    return data[: start + size] + data[start:]


def _append(random: Random, data: bytes) -> bytes:
    return data + (random.bytes(int(random.integers(1, 40))) if random.integers(2) else data)


def _header(random: Random, data: bytes) -> bytes:
    """Flips in the first hundred bytes, where sizes and shapes stand."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 3)):
        changed[random.integers(min(100, len(data)))] = int(random.integers(256))
    return bytes(changed)


DAMAGES: Sequence[Callable[[Random, bytes], bytes]] = (
    _flip, _flip, _flip, _overwrite, _truncate, _truncate, _cut_out, _double, _append, _header,
)  # fmt: skip


def as_text(random: Random, content: Any) -> str:
    """JSON text of `content`, laid out in one of the ways that mean the same."""
    return json.dumps(content, indent=(None, 1, 2)[random.integers(3)])


Attempt = Callable[[Random], str]
"""Makes an input, hands it in, and says "same" or "valid"; a refusal is raised."""


@dataclass(frozen=True)
class Door:
    """One place where input comes in.

    Attributes:
        name: of the kind.
        said: what is varied, for the table.
        share: of all inputs, relative to the other kinds: cheap ones get more.
        open: prepares what the attempts need, in a folder of their own.
    """

    name: str
    said: str
    share: float
    open: Callable[[Path], Attempt]


class Taken(Exception):
    """A damaged input was taken for a good one, or what came out breaks its promise."""


def require(holds: object, what: str) -> None:
    """Raise `Taken` unless it holds."""
    if not holds:
        raise Taken(what)
