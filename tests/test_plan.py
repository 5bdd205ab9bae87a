"""The plan: the same after JSON, and refused where it does not belong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import NAMES, plans, toy

from prune_env.errors import PlanError, PruneEnvError
from prune_env.surgery.apply import compact, masked
from prune_env.surgery.plan import PruningPlan, rank_units
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


def test_another_format_says_which() -> None:
    content = json.loads(half().to_json())
    content["format"] = 7
    with pytest.raises(PlanError, match="format 7, this version reads 2"):
        PruningPlan.from_json(json.dumps(content))


@given(data=st.data())
@settings(max_examples=300)
def test_damage_never_escapes_the_family(data: st.DataObject) -> None:
    """Drop or replace any one value of a plan: it still loads, or says what is wrong."""
    content = json.loads(half("chain").to_json())
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
