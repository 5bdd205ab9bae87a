"""What a user may ask of groups: ignore, bound, round; and what is said when it cannot be."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import NAMES, toy

from prune_env.errors import GroupError
from prune_env.mdp.candidates import TaskKeywords, TaskOptions
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.options import constrain, layers_of
from prune_env.structure.rewrite import tensors_of


def group(units: int = 10, name: str = "g") -> PrunableGroup:
    return PrunableGroup(name, (units,), ())


def frozen(groups: tuple[PrunableGroup, ...]) -> dict[str, str]:
    return {g.name: g.frozen for g in groups if g.frozen and "output" not in g.frozen}


@pytest.mark.parametrize("ignore", [["stem*"], "stem*", ("stem.0",), iter(["stem.*"])])
def test_ignored_layers_are_frozen_with_the_pattern(ignore: object) -> None:
    found = frozen(constrain(toy("residual").groups, ignore=ignore))  # type: ignore[arg-type]
    assert list(found) == ["stem.0"]
    assert found["stem.0"].startswith("ignored by 'stem")


def test_a_group_is_ignored_by_any_layer_that_makes_or_reads_its_units() -> None:
    """a2 adds to the stream that stem.0 names, and reads what a1.0 makes."""
    groups = toy("residual").groups
    assert layers_of(groups[0]) == ("stem.0", "a2")
    assert frozen(constrain(groups, ignore=["a2"])) == dict.fromkeys(
        ("stem.0", "a1.0"), "ignored by 'a2'"
    )
    assert len(frozen(constrain(groups, ignore=["*"]))) == 4


def test_no_wish_changes_nothing() -> None:
    assert constrain(toy("grouped").groups, max_sparsity=1.0) == toy("grouped").groups


@pytest.mark.parametrize("wish", ["ignore", "min_sparsity", "max_sparsity", "multiple_of"])
def test_a_pattern_that_matches_nothing_names_the_nearest(wish: str) -> None:
    value = ["stm.0"] if wish == "ignore" else {"stm.0": 1}
    with pytest.raises(
        GroupError, match=r"'stm.0' matches none of the \d+ layers.*Nearest: stem.0"
    ):
        constrain(toy("residual").groups, **{wish: value})  # type: ignore[arg-type]


@given(
    units=st.integers(1, 60),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    multiple=st.integers(1, 16),
)
def test_levels_respect_every_wish(units: int, low: float, high: float, multiple: int) -> None:
    low, high = min(low, high), max(low, high)
    wanted = {
        kept
        for kept in range(1, units + 1)
        if (kept % multiple == 0 or kept == units) and low - 1e-9 <= 1 - kept / units <= high + 1e-9
    }
    wish = {"min_sparsity": low, "max_sparsity": high, "multiple_of": multiple}
    if multiple <= units and not wanted:
        with pytest.raises(GroupError, match="no level"):
            constrain([group(units)], **wish)  # type: ignore[arg-type]
        return
    (bounded,) = constrain([group(units)], **wish)  # type: ignore[arg-type]
    if multiple > units:
        assert bounded.frozen == f"{units} units, fewer than multiple_of={multiple}"
    else:
        assert set(bounded.levels) == wanted


def test_ten_units_at_most_thirty_percent_keep_seven() -> None:
    assert constrain([group(10)], max_sparsity=0.3)[0].levels[0] == 7
    assert constrain([group(10)], min_sparsity=0.3)[0].levels[-1] == 7


def test_values_by_layer_the_first_match_wins() -> None:
    values = {"stem.0": 0.25, "*": 0.5}
    groups = {g.name: g for g in constrain(toy("residual").groups, max_sparsity=values)}
    assert groups["stem.0"].min_keep == 6
    assert groups["b1.0"].min_keep == 5
    alone = {g.name: g for g in constrain(toy("residual").groups, multiple_of={"a1.*": 2})}
    assert alone["a1.0"].levels == (2, 4, 6)
    assert alone["b1.0"].levels == tuple(range(1, 11))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"min_sparsity": 0.8, "max_sparsity": 0.2}, r"\[0.8, 0.2\].*0 <= min_sparsity"),
        ({"max_sparsity": 1.5}, r"\[0.0, 1.5\]"),
        ({"max_sparsity": float("nan")}, r"nan"),
        ({"multiple_of": 0}, r"multiple_of is 0"),
        ({"min_sparsity": 0.41, "max_sparsity": 0.49}, r"no level"),
    ],
)
def test_bounds_out_of_range_are_refused(wish: dict[str, float], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        constrain([group(10)], **wish)  # type: ignore[arg-type]


def test_frozen_groups_keep_their_first_reason() -> None:
    (kept,) = constrain([PrunableGroup("g", (4,), (), frozen="why")], ignore=["g"], multiple_of=64)
    assert kept.frozen == "why"


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_layer_keeps_its_shape(name: str) -> None:
    """Whatever else is cut to the bone: its own tensors stay as they are."""
    model, groups = toy(name).model, toy(name).groups
    layers = {n.rpartition(".")[0] for g in groups for n in (a.tensor for a in g.axes)}
    for layer in sorted(layers):
        live = [g for g in constrain(groups, ignore=[layer]) if not g.frozen]
        small = compact(model, PruningPlan.uniform(model, live, 0.9))
        whole, cut = tensors_of(model), tensors_of(small)
        own = [n for n in whole if n.rpartition(".")[0] == layer]
        assert all(whole[n].shape == cut[n].shape for n in own)


def test_keywords_are_the_fields_of_the_options() -> None:
    """Types too, so that an editor completes what is there and mypy sees `bugdet=`."""
    assert get_type_hints(TaskKeywords) == get_type_hints(TaskOptions)
