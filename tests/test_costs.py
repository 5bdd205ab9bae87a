"""Prices: arithmetic that agrees with itself (law 4 compares it with PyTorch's counter)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import NAMES, counted_macs, toy

from prune_env.costs.model import METRICS, CostModel
from prune_env.costs.table import format_groups, prunable_share
from prune_env.errors import BudgetError, GroupError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.structure.patterns import Unstructured
from prune_env.testing import toy_inputs, toy_model


def priced(name: str) -> CostModel:
    return CostModel.of(toy(name).model, toy(name).inputs, toy(name).live)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 1000))
def test_a_batch_of_plans_costs_what_each_costs(name: str, seed: int) -> None:
    costs = priced(name)
    rows = np.random.default_rng(seed).integers(0, costs.units + 1, (2, 3, len(costs.units)))
    together = costs(rows)
    assert together.shape == (2, 3, len(METRICS))
    for place in np.ndindex(2, 3):
        assert together[place].tolist() == costs(tuple(rows[place])).tolist()
    for column, on in enumerate(METRICS):
        ratio = together[..., column] / costs.dense[column]
        assert costs.ratio(rows, on).tolist() == ratio.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_a_group_is_what_goes_with_it(name: str) -> None:
    case, costs = toy(name), priced(name)
    for number, group in enumerate(case.live):
        kept = {g.name: tuple(range(g.units)) for g in case.live} | {group.name: (0,)}
        left = counted_macs(compact(case.model, PruningPlan(case.live, kept)), case.inputs)
        missing = 1 - left / counted_macs(case.model, case.inputs)
        assert 0 < missing <= costs.share(number) <= 1
    assert all(0 < costs.share(g, on) <= 1 for g in range(len(case.live)) for on in METRICS)


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_size_of_the_example_does_not_matter(name: str) -> None:
    sizes = {
        tuple(CostModel.of(toy_model(name), toy_inputs(name, batch=n), ()).dense) for n in (1, 2, 5)
    }
    assert len(sizes) == 1


def test_pricing_leaves_modes_gradients_and_switches_alone() -> None:
    model = toy_model("residual").train()
    model.get_submodule("stem.1").eval()
    modes = [module.training for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    CostModel.of(model, toy_inputs("residual"), ())
    assert modes == [module.training for module in model.modules()]
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert model.training


def test_shared_weights_are_stored_once_and_applied_as_often_as_used() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    macs, params, size = CostModel.of(model, torch.randn(3, 6), ()).dense
    assert (macs, params, size) == (72, 42, 168)


def test_without_groups_or_macs_nothing_is_prunable() -> None:
    costs = CostModel.of(nn.Flatten(), torch.randn(2, 3), ())
    assert costs.dense.tolist() == [0, 0, 0]
    assert prunable_share(costs) == 0.0
    assert prunable_share(CostModel.of(toy("chain").model, toy("chain").inputs, ())) == 0.0
    assert "0 of 0 groups prunable" in format_groups((), costs)


def test_the_table_shows_every_group_and_its_state() -> None:
    case = toy("padded_shortcut")
    lines = format_groups(case.groups, priced("padded_shortcut")).splitlines()
    assert len(lines) == 2 + len(case.groups)
    assert lines[1].split()[:2] == ["stem.0", "8"]
    assert lines[1].endswith("frozen: zero-padded shortcut")
    assert lines[2].endswith("verified")
    assert "85.6%" in lines[2]
    assert format_groups(case.groups).count("%") == 0


def test_attention_is_priced_with_its_scores() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    tokens = torch.randn(2, 5, 8)
    costs = CostModel.of(attention, (tokens, tokens, tokens), ())
    projections = 5 * 8 * 8 * 4
    scores = 2 * (5 * 5 * 8)
    assert costs.dense[0] == projections + scores


def test_unknown_metrics_and_foreign_groups_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"no cost 'flops'\. Choose one of macs, params, bytes"):
        priced("chain").ratio([1, 1, 1], "flops")  # type: ignore[arg-type]
    with pytest.raises(GroupError, match=r"Were the groups found on another model\?"):
        CostModel.of(toy("chain").model, toy("chain").inputs, toy("residual").live)


class Pairs(nn.Module):
    """Similarities of rows with rows, where a mask allows them; it says what a pair costs."""

    def __init__(self, rows: int = 5, width: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        self.allowed: Tensor
        self.register_buffer("allowed", torch.ones(rows, rows, dtype=torch.bool))
        self.mask_macs = {"allowed": lambda x: float(x.shape[0] * x.shape[-1])}

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) @ self.right(x).mT).where(self.allowed, 0.0)


@pytest.mark.parametrize("absent", [0, 10])
@pytest.mark.parametrize("prefix", ["", "1."])
def test_masks_price_the_products_of_their_module(prefix: str, absent: int) -> None:
    model = nn.Sequential(nn.Identity(), Pairs()) if prefix else Pairs()
    axis = Axis(f"{prefix}allowed", (0, 1), (Span(0, 1), Span(0, 1)), (5, 5))
    group = PrunableGroup("pairs", (5, 5), (axis,), Unstructured(25), absent=absent)
    inputs = torch.randn(3, 5, 4)
    costs = CostModel.of(model, inputs, [group])
    linear = 2 * 5 * 4 * 4
    assert costs.units.tolist() == [25 - absent] == [group.units]
    assert costs.dense[0] == linear + 4 * (25 - absent)
    assert [costs([kept])[0] for kept in (0, 1, 7)] == [linear, linear + 4, linear + 28]
    assert costs.effective([7])[0] == costs([7])[0]
    assert CostModel.of(model, inputs, []).dense[0] == counted_macs(model, inputs)
    model.get_buffer(f"{prefix}allowed").tril_()
    assert CostModel.of(model, inputs, []).dense[0] == linear + 4 * 15
