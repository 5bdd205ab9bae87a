"""The plan: the same after JSON, and refused where it does not belong."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import NAMES, plans, toy

from prune_env.errors import PlanError, PruneEnvError
from prune_env.plan.cut import compact, masked
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.testing import toy_model

NOTES = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.booleans()))


def half(name: str = "residual") -> PruningPlan:
    return PruningPlan.uniform(toy(name).model, toy(name).groups, 0.5)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), notes=NOTES)
def test_json_round_trip(name: str, data: st.DataObject, notes: dict[str, Any]) -> None:
    plan = data.draw(plans(toy(name).live))
    plan = PruningPlan(plan.groups, plan.kept, notes)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.groups == plan.groups
    assert again.to_json() == plan.to_json()


def test_a_file_round_trip_and_a_summary_for_people(tmp_path: Path) -> None:
    plan = half()
    assert PruningPlan.load(plan.save(tmp_path / "deep" / "plan.json")) == plan
    content = json.loads((tmp_path / "deep" / "plan.json").read_text())
    assert content["summary"]["b1.0"] == "5 of 10"


def test_it_is_shown_in_one_line() -> None:
    assert repr(half()).startswith("PruningPlan(4 groups: stem.0 4/8, ")
    assert len(repr(half())) < 150


def test_levels_and_sparsity_say_what_is_kept() -> None:
    plan = half()
    assert plan.levels == {"stem.0": 4, "a1.0": 3, "shortcut": 6, "b1.0": 5}
    assert set(plan.sparsity.values()) == {0.5}
    assert all(index.dtype == torch.int64 for index in plan.indices().values())


def test_the_units_with_the_highest_scores_stay() -> None:
    case = toy("residual")
    weight = case.model.get_parameter("b1.0.weight")
    best = weight.abs().sum((1, 2, 3)).topk(5).indices.sort().values.tolist()
    assert list(half().kept["b1.0"]) == best
    orders = rank_units(case.model, case.live)
    plan = PruningPlan.of_levels(case.live, [8, 6, 12, 5], orders)
    assert plan.kept["b1.0"] == half().kept["b1.0"]
    assert plan.kept["stem.0"] == tuple(range(8))


def test_uniform_leaves_frozen_groups_out_and_keeps_at_least_one_unit() -> None:
    everything = PruningPlan.uniform(toy("chain").model, toy("chain").groups, 1.0)
    assert set(everything.levels.values()) == {1}
    assert "head" not in everything.kept


@pytest.mark.parametrize("other", [name for name in NAMES if name != "residual"])
def test_another_model_is_refused_and_the_difference_named(other: str) -> None:
    model = toy_model(other)
    for use in (compact, lambda m, p: masked(m, p).__enter__()):
        with pytest.raises(PlanError, match=r"does not fit \w+: group '.*' (lives in|expects)"):
            use(model, half())


def test_another_width_and_a_second_application_are_refused() -> None:
    plan = half()
    small = compact(toy("residual").model, plan)
    with pytest.raises(PlanError, match=r"expects \(8,\) along dims \(0,\).*has \(4,\)"):
        compact(small, plan)
    wide = copy.deepcopy(toy("residual").model)
    wide.b1[0] = nn.Conv2d(8, 11, 3, padding=1)  # type: ignore[index, operator]
    with pytest.raises(PlanError, match=r"group 'b1.0' expects .*pruned already, or built for"):
        compact(wide, plan)


@pytest.mark.parametrize("units", [(1, 0), (0, 0), (0, 99), (-1, 0), (), ("a",), (0.5,)], ids=str)
def test_bad_units_are_refused(units: tuple[Any, ...]) -> None:
    plan = half()
    with pytest.raises(PlanError, match=r"group 'b1\.0'"):
        PruningPlan(plan.groups, {**plan.kept, "b1.0": units})


def test_missing_and_unknown_groups_are_named() -> None:
    plan = half()
    kept = {name: units for name, units in plan.kept.items() if name != "b1.0"}
    with pytest.raises(PlanError, match=r"no units for \['b1.0'\], unknown groups none"):
        PruningPlan(plan.groups, kept)
    with pytest.raises(PlanError, match=r"unknown groups \['x'\].*another model"):
        PruningPlan(plan.groups, {**plan.kept, "x": (1,)})


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "3", "null", "{}", '{"format": 2}', "[" * 5000,
        '{"format": 2, "notes": {}, "kept": [], "groups": []}',
        '{"format": 2, "notes": 3, "kept": {}, "groups": []}',
        '{"format": 2, "notes": {}, "kept": {"a": [Infinity]}, "groups": []}',
        '{"format": 2, "notes": {}, "kept": {}, "groups": [{"name": "a"}]}',
    ],
)  # fmt: skip
def test_garbage_is_refused_in_one_family(text: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_json(text)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError):
        PruningPlan.load(tmp_path / "plan.json")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "binary.json"):
        with pytest.raises(PlanError, match="cannot read the plan"):
            PruningPlan.load(path)


def edited(plan: PruningPlan) -> dict[str, Any]:
    """The JSON of a plan for a hand to change: its digest is out."""
    content: dict[str, Any] = json.loads(plan.to_json())
    del content["sha256"]
    return content


def test_another_format_says_which() -> None:
    content = {**edited(half()), "format": 7}
    with pytest.raises(PlanError, match="format 7, this version reads 2"):
        PruningPlan.from_json(json.dumps(content))


def test_a_plan_edited_by_hand_says_how_and_is_read_without_its_digest() -> None:
    content = json.loads(half().to_json())
    content["kept"]["b1.0"] = [0, 1]
    with pytest.raises(PlanError, match=r"a byte has changed.*take its \"sha256\" out"):
        PruningPlan.from_json(json.dumps(content))
    del content["sha256"]
    assert PruningPlan.from_json(json.dumps(content)).kept["b1.0"] == (0, 1)


def test_notes_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    plan = PruningPlan(half().groups, half().kept, {"model": object()})
    with pytest.raises(PlanError, match=r"notes must be JSON.*Leave that out"):
        plan.save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


GROUP, AXIS = ("groups", 0), ("groups", 0, "axes", 0)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((*AXIS, "sizes"), ["x"], r"groups\[0\].axes\[0\].sizes\[0\] is 'x' \(str\), not a whole"),
        ((*AXIS, "sizes"), [True], r"sizes\[0\] is True"),
        ((*AXIS, "sizes"), [7], r"axes\[0\].index does not fit 8 units along 7"),
        ((*AXIS, "index"), [[1, 1]], "index does not fit 8 units along 8"),
        ((*AXIS, "index"), [[-1, 1]], "index does not fit"),
        ((*AXIS, "index"), [[0, 0]], "index does not fit"),
        ((*AXIS, "index"), [{"rows": [[0]] * 8}], "index does not fit"),
        ((*AXIS, "index"), [{"rows": []}], "index does not fit"),
        ((*AXIS, "index"), [{"rows": [[n, 8] for n in range(8)]}], "index does not fit"),
        ((*AXIS, "index"), [[0, 1], [0, 1]], "another number of dims"),
        ((*AXIS, "dims"), [-1], r"dims are \[-1\]"),
        ((*AXIS, "role"), "side", "role is 'side'"),
        ((*AXIS, "tensor"), None, "tensor is None"),
        ((*AXIS, "more"), 1, "unknown field 'more'"),
        ((*GROUP, "grid"), [], "grid has no units"),
        ((*GROUP, "grid"), [0], "grid has no units"),
        ((*GROUP, "axes"), [], "lives in no tensor"),
        ((*GROUP, "min_keep"), -1, "bound below zero"),
        ((*GROUP, "multiple_of"), 0, "multiples of nothing"),
        ((*GROUP, "absent"), 8, "has no units"),
        ((*GROUP, "pattern"), {"kind": "Best"}, "pattern is unknown"),
        ((*GROUP, "pattern"), {"kind": []}, "pattern is unknown"),
        ((*GROUP, "pattern"), {"kind": "NM", "m": 0}, "pattern does not fit the grid"),
        ((*GROUP, "pattern"), {"kind": "NM", "m": -4}, "pattern has steps of"),
        ((*GROUP, "pattern"), {"kind": "Unstructured", "levels_per_group": 0}, "does not fit"),
        (("groups",), [], "kept and groups differ"),
        (("kept", "other"), [], r"kept and groups differ.*\['other'\]"),
        (("kept", "stem.0"), {"bits": "!"}, r"kept\['stem.0'\] is no base64"),
        (("kept", "stem.0"), {"bits": "AAAA"}, r"has 24 bits for 8"),
        (("kept", "stem.0"), [0, 8], "units of group 'stem.0' must be"),
        (("extra",), 1, "unknown field 'extra'"),
        (("summary",), 1, "summary is 1"),
    ],
)  # fmt: skip
def test_every_malformed_field_is_named(place: tuple[Any, ...], value: Any, said: str) -> None:
    content = node = edited(half())
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(PlanError, match=said):
        compact(toy("residual").model, PruningPlan.from_json(json.dumps(content)))


def test_sizes_of_a_file_cost_nothing_before_they_are_held_against_a_model() -> None:
    """A line of JSON that speaks of 10^13 units, or of a tensor so long: no memory has them."""
    size = 10**13
    axis = {"tensor": "stem.0.weight", "dims": [0], "index": [[0, 1]], "sizes": [size]}
    group = {"name": "g", "grid": [size], "axes": [axis], "pattern": {"kind": "TopK"}}
    content = {**edited(half()), "kept": {"g": [0]}, "groups": [group]}
    with pytest.raises(PlanError, match="10000000000000 units are written as bits"):
        PruningPlan.from_json(json.dumps(content))
    plan = PruningPlan.from_json(json.dumps({**content, "groups": [{**group, "grid": [8]}]}))
    for use in (compact, lambda m, p: masked(m, p).__enter__()):
        with pytest.raises(PlanError, match=r"does not fit"):
            use(toy("residual").model, plan)
    twice = {"format": 2, "notes": {}, "summary": {}}
    once = {**twice, "recipe": None, "kept": {"g": [0]}, "groups": [{**group, "grid": [8]}]}
    once.pop("format")
    with pytest.raises(PlanError, match="rounds do not fit each other"):
        PruningPlan.from_json(json.dumps({**twice, "rounds": [once, once]}))


@pytest.mark.parametrize("rounds", [[], [1], [{}], None, [[]]])
def test_malformed_rounds_are_refused(rounds: Any) -> None:
    content = {"format": 2, "notes": {}, "summary": {}, "rounds": rounds}
    with pytest.raises(PlanError, match="not a pruning plan"):
        PruningPlan.from_json(json.dumps(content))


@pytest.mark.parametrize(
    "path", ["", "forward", "stem.0.padding_mode", "no.where", "stem.0.groups"]
)
def test_what_counts_units_must_count_them(path: str) -> None:
    """A file cannot name an attribute to overwrite: only a number that is what the units are."""
    content = edited(half())
    axis = {"tensor": path, "dims": [0], "index": [[0, 1]], "sizes": [8], "role": "count"}
    content["groups"][0]["axes"].append(axis)
    plan = PruningPlan.from_json(json.dumps(content))
    with pytest.raises(PlanError, match=r"is counted by '.*', which is 8 in its network and"):
        compact(toy("residual").model, plan)


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_plan_is_refused_or_the_same(data: st.DataObject) -> None:
    plan = half("chain")
    broken = damaged(plan.to_json().encode(), data)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_bytes(broken)
        with contextlib.suppress(PlanError):
            assert PruningPlan.load(Path(folder) / "plan.json") == plan


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=300)
def test_edits_never_escape_the_family(data: st.DataObject) -> None:
    """Drop or replace any one value of a plan: it still loads, or says what is wrong."""
    content = edited(half("chain"))
    node: Any = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    if data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(st.sampled_from([None, -1, "x", [], {}, 1e400, [[]]]))
    try:
        plan = PruningPlan.from_json(json.dumps(content))
        compact(toy("chain").model, plan)
    except PruneEnvError:
        pass
