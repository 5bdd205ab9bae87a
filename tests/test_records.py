"""Typed reading: what a dataclass says is what comes out of JSON, or the field is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env.records import read_record
from prune_env.storage import Unreadable


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


@dataclass(frozen=True)
class Everything:
    name: str
    points: tuple[Point, ...]
    pair: tuple[int, str]
    kind: Literal["a", "b"]
    limit: int | None = None
    share: dict[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    sure: bool = False


GOOD = Everything("n", (Point(1), Point(2, 0.5)), (3, "c"), "a", None, {"s": 1.0}, {"x": [1]}, True)


def written(record: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(record)))


@given(st.builds(Point, st.integers(), st.floats(allow_nan=False)), st.none() | st.integers())
def test_what_was_written_is_read(point: Point, limit: int | None) -> None:
    record = dataclasses.replace(GOOD, points=(point,), limit=limit)
    assert read_record(Everything, written(record)) == record


def test_defaults_may_be_missing_and_whole_numbers_pass_for_numbers() -> None:
    assert read_record(Point, {"x": 3}) == Point(3)
    assert read_record(Point, {"x": 3, "y": 2}) == Point(3, 2.0)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("name",), 3, r"name is 3 \(int\), not a text"),
        (("points", 1, "x"), 2.5, r"points\[1\]\.x is 2.5 \(float\), not a whole number"),
        (("points", 1, "x"), True, r"points\[1\]\.x is True \(bool\), not a whole number"),
        (("points", 1, "y"), 10**400, r"points\[1\]\.y is too large"),
        (("points", 1), None, r"points\[1\] is None \(NoneType\), not an object with fields"),
        (("points",), {}, r"points is \{\} \(dict\), not a list"),
        (("points", 0, "z"), 1, r"points\[0\] has the unknown field 'z'"),
        (("pair",), [1], r"pair is \[1\] \(list\), not a list of 2"),
        (("kind",), "c", r"kind is 'c' \(str\), not one of a, b"),
        (("kind",), [], r"kind is \[\] \(list\), not one of a, b"),
        (("limit",), "x", r"limit is 'x' \(str\), not a whole number, and limit .* not null"),
        (("share", "s"), "x", r"share\['s'\] is 'x' \(str\), not a number"),
        (("notes",), [], r"notes is \[\] \(list\), not an object"),
        (("sure",), 1, r"sure is 1 \(int\), not true or false"),
    ],
)  # fmt: skip
def test_every_wrong_field_is_named(place: tuple[Any, ...], value: Any, said: str) -> None:
    content = node = written(GOOD)
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(Unreadable, match=said):
        read_record(Everything, content)


def test_a_missing_field_and_a_wrong_whole_are_named() -> None:
    with pytest.raises(Unreadable, match="it lacks 'x'"):
        read_record(Point, {})
    with pytest.raises(Unreadable, match=r"row 3 is \[\] \(list\), not an object"):
        read_record(Point, [], "row 3")
