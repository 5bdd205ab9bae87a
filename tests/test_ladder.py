"""Ladders: stitched levels are the repair from scratch, measured on what consumers really read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import ALL, Case, batch_of, case, case_of, columns, read_by
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import NAMES, close, identical, outputs, snapshot
from zoo import Fn, Wrapped, image

from prune_env.calibration.statistics import calibrate
from prune_env.criteria.obs import score_by_obs
from prune_env.errors import DataError, GroupError, ModelError, PlanError, RunError
from prune_env.plan.cut import Candidates, compact
from prune_env.plan.ladder_file import load_ladders, save_ladders
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.repair.ladder import Ladders
from prune_env.repair.least_squares import RIDGE, Solver
from prune_env.repair.overlays import VARIANCE_FLOOR, bias_only, least_squares, no_overlay
from prune_env.repair.repairs import REPAIRS
from prune_env.storage import load_tensors, save_tensors
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup, Table
from prune_env.structure.rewrite import tensors_of
from prune_env.testing import conv


def _levels(group: PrunableGroup) -> list[int]:
    return [level for level in group.levels if 0 < level < group.units]


def _half(toy: Case) -> dict[str, int]:
    return {group.name: max(1, group.units // 2) for group in toy.groups}


def _removed(group: PrunableGroup, order: Tensor, kept: int, tensor: str, kernel: int) -> Tensor:
    """Columns of a flattened weight that go with the units beyond `kept`, from the definition."""
    gone = set(order[kept:].tolist())
    found = []
    for axis in group.axes:
        if axis.tensor == tensor and axis.role == "in":
            (owners_S,) = axis.owners(group.grid)
            found += [i for i, unit in enumerate(owners_S.tolist()) if unit in gone]
    return torch.tensor([i * kernel + k for i in sorted(found) for k in range(kernel)])


def _error(toy: Case, ladders: Ladders, tensor: str, kept: Mapping[str, int], how: Any) -> float:
    """Mean squared error, over samples and positions, of what one consumer hands on, measured.

    Its input is the dense one with the removed units zero; a shift of the BatchNorm behind counts.
    """
    overlay, dense = how(ladders, kept), tensors_of(toy.model)
    x_ND = columns(toy, tensor)
    cut_ND, kernel = x_ND.clone(), dense[tensor][0, 0].numel()
    for group in toy.groups:
        if group.name in kept:
            order = ladders.orders[group.name]
            cut_ND[:, _removed(group, order, kept[group.name], tensor, kernel)] = 0.0
    weight_OD = overlay.get(tensor, dense[tensor]).flatten(1)
    difference_NO = cut_ND @ weight_OD.T - x_ND @ dense[tensor].flatten(1).T
    bias, norm = tensor.removesuffix("weight") + "bias", toy.calibration.moments[tensor].norm
    if bias in overlay:
        difference_NO = difference_NO + overlay[bias] - dense[bias]
    if norm is not None and f"{norm}.running_mean" in overlay:
        mean = f"{norm}.running_mean"
        difference_NO = difference_NO - (overlay[mean] - dense[mean])
    return float(difference_NO.detach().square().mean(0).sum())


# ---- the laws, on every toy


def test_the_toys_hold_what_is_hard() -> None:
    """Several consumers, shared consumers, none at all, each slot for a shift, full rank."""
    found = {name: case(name).ladders().consumers for name in ALL}
    assert any(len(consumers) > 1 for one in found.values() for consumers in one.values())
    assert any(not consumers for consumers in found["grouped_shuffle"].values())
    tensors = [c.tensor for consumers in found["depthwise_concat"].values() for c in consumers]
    assert len(set(tensors)) < len(tensors)
    every = [c for one in found.values() for consumers in one.values() for c in consumers]
    assert {(c.bias is None, c.norm is None) for c in every} >= {(True, False), (False, True)}
    for name in ("residual", "chain"):
        solvers = case(name).ladders(ridge=0.0).solvers.values()
        assert any(solver.ridge == 0.0 for found in solvers for solver in found)


@pytest.mark.parametrize("name", ALL)
def test_repair_of_a_group_never_harms_its_consumers(name: str) -> None:
    toy = case(name)
    ladders = toy.ladders()
    for group in toy.groups:
        for consumer in ladders.consumers[group.name]:
            for kept in _levels(group)[::3]:
                repaired, biased, cut = (
                    _error(toy, ladders, consumer.tensor, {group.name: kept}, how)
                    for how in (least_squares, bias_only, no_overlay)
                )
                assert repaired <= biased * (1 + 1e-9) + 1e-15
                assert biased <= cut * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("ridge", [0.0, RIDGE])
@pytest.mark.parametrize("name", ALL)
def test_predicted_loss_is_the_measured_one_and_falls_along_the_ladder(
    name: str, ridge: float
) -> None:
    toy = case(name)
    ladders = toy.ladders(ridge=ridge)
    for group in toy.groups:
        pairs = list(zip(ladders.consumers[group.name], ladders.solvers[group.name], strict=True))
        for consumer, solver in pairs:
            for kept in _levels(group)[::3]:
                measured = _error(toy, ladders, consumer.tensor, {group.name: kept}, least_squares)
                measured += solver.ridge * _change(solver, kept)
                floor = 1e-9 * solver.loss(0)
                assert solver.loss(kept) == pytest.approx(measured, rel=1e-6, abs=floor)
        predicted = [ladders.predicted_loss(group.name, k) for k in range(1, group.units + 1)]
        assert all(after <= before for before, after in pairwise(predicted))
        assert predicted[-1] == 0.0
        assert predicted[0] <= len(pairs)


def _change(solver: Solver, kept: int) -> float:
    """Squared change of the weights, removed ones included; the ridge adds its part of it."""
    weight_KO = solver.weight(kept)
    k = len(weight_KO)
    changed = (solver.weight_DO[:k] - weight_KO).square().sum()
    return float(changed + solver.weight_DO[k:].square().sum())


@pytest.mark.parametrize("name", ALL)
def test_keeping_everything_changes_nothing(name: str) -> None:
    toy = case(name)
    ladders = toy.ladders()
    whole = {group.name: group.units for group in toy.groups}
    for repair in REPAIRS.values():
        assert repair.overlay(ladders, whole) == {}
        assert repair.overlay(ladders, {}) == {}
    for group, consumers in ladders.consumers.items():
        for number, consumer in enumerate(consumers):
            level, weight = (
                ladders.level(group, number, whole[group]),
                ladders.dense[consumer.tensor],
            )
            assert torch.equal(level.weight_OK, weight.flatten(1)[:, consumer.columns_D])
            assert float(level.mean_O.abs().max()) == 0.0
    candidates = Candidates(toy.model, toy.groups)
    candidates.build(*_built(ladders, _half(toy)))
    assert identical(snapshot(candidates.build(*_built(ladders, whole))), snapshot(toy.model))


def _built(
    ladders: Ladders, kept: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    units = {name: ladders.orders[name][:k] for name, k in kept.items()}
    return units, least_squares(ladders, kept)


def _from_scratch(toy: Case, ladders: Ladders, kept: Mapping[str, int]) -> nn.Module:
    """Repair each consumer by lstsq on its unfolded columns, then compact; no ladder involved."""
    tensors = {name: t.detach().clone() for name, t in tensors_of(toy.model).items()}
    dense = {name: t.clone() for name, t in tensors.items()}
    for group in toy.groups:
        for tensor in {axis.tensor for axis in group.axes if axis.role == "in"}:
            moments = toy.calibration.moments.get(tensor)
            if moments is not None and kept[group.name] < group.units:
                _repair_one(tensors, dense, _Problem(toy, ladders, group, tensor), kept[group.name])
    model = _with(toy, tensors)
    units = {name: tuple(sorted(ladders.orders[name][:k].tolist())) for name, k in kept.items()}
    return compact(model, PruningPlan(toy.groups, units))


def _with(toy: Case, tensors: Mapping[str, Tensor]) -> nn.Module:
    model = compact(toy.model, PruningPlan.uniform(toy.model, toy.groups, 0.0))
    for name, tensor in tensors_of(model).items():
        tensor.data.copy_(tensors[name])
    return model


class _Problem:
    """Columns of one consumer that a group owns, kept and removed at some level."""

    def __init__(self, toy: Case, ladders: Ladders, group: PrunableGroup, tensor: str) -> None:
        self.tensor, self.norm = tensor, toy.calibration.moments[tensor].norm
        self.x_ND = columns(toy, tensor)
        self._of = lambda kept: _removed(
            group,
            ladders.orders[group.name],
            kept,
            tensor,
            toy.model.get_parameter(tensor)[0, 0].numel(),
        )

    def owned(self) -> Tensor:
        return self._of(0)

    def kept(self, kept: int) -> Tensor:
        gone = set(self._of(kept).tolist())
        return torch.tensor([c for c in self.owned().tolist() if c not in gone])


def _repair_one(
    tensors: dict[str, Tensor], dense: dict[str, Tensor], problem: _Problem, kept: int
) -> None:
    bias, norm = problem.tensor.removesuffix("weight") + "bias", problem.norm
    shifts = bias in dense or norm is not None
    owned, places = problem.owned(), problem.kept(kept)
    x_ND, weight_OD = problem.x_ND, dense[problem.tensor].flatten(1)
    mean_D = x_ND.mean(0) * shifts
    centred_ND = (x_ND - mean_D) / len(x_ND) ** 0.5
    ridge = RIDGE * float(centred_ND[:, owned].square().sum(0).mean())
    pull = ridge**0.5 * torch.eye(len(places), dtype=torch.float64)
    rows = torch.cat([centred_ND[:, places], pull])
    wanted = torch.cat(
        [centred_ND[:, owned] @ weight_OD[:, owned].T, pull @ weight_OD[:, places].T]
    )
    new_KO = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
    tensors[problem.tensor].view(len(weight_OD), -1)[:, places] = new_KO.T
    missing_NO = x_ND[:, owned] @ weight_OD[:, owned].T - x_ND[:, places] @ new_KO
    if bias in dense:
        tensors[bias] += missing_NO.mean(0)
    elif norm is not None:
        tensors[f"{norm}.running_mean"] -= missing_NO.mean(0)
    if norm is not None:
        before_O = (x_ND[:, owned] @ weight_OD[:, owned].T).var(0, correction=0)
        lost_O = before_O - (x_ND[:, places] @ new_KO).var(0, correction=0)
        variance = f"{norm}.running_var"
        floor = VARIANCE_FLOOR * dense[variance]
        tensors[variance] = torch.maximum(tensors[variance] - lost_O, floor)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=4)
def test_any_stitching_is_the_repair_from_scratch(name: str, data: st.DataObject) -> None:
    toy = case(name)
    ladders = toy.ladders()
    candidates = Candidates(toy.model, toy.groups)
    for _ in range(2):
        kept = {g.name: data.draw(st.sampled_from([*_levels(g), g.units])) for g in toy.groups}
        built = candidates.build(*_built(ladders, kept))
        scratch = _from_scratch(toy, ladders, kept)
        for key, tensor in snapshot(scratch).items():
            torch.testing.assert_close(snapshot(built)[key], tensor, rtol=1e-6, atol=1e-7)
        assert close(outputs(built, toy.inputs), outputs(scratch, toy.inputs), 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_switching_a_group_touches_its_own_tensors_only(name: str) -> None:
    toy = case(name)
    ladders = toy.ladders()
    kept = _half(toy)
    before = least_squares(ladders, kept)
    for group in toy.groups:
        own = set(least_squares(ladders, {group.name: 1}))
        places = {c.tensor for c in ladders.consumers[group.name]}
        slots = {c.bias for c in ladders.consumers[group.name]}
        norms = [c.norm for c in ladders.consumers[group.name]]
        slots |= {f"{norm}.running_{what}" for norm in norms for what in ("mean", "var")}
        assert places <= own <= places | slots
        after = least_squares(ladders, kept | {group.name: 1})
        assert after.keys() == before.keys()
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed <= own
        for consumer in ladders.consumers[group.name]:
            others = torch.ones(before[consumer.tensor][0].numel(), dtype=torch.bool)
            others[consumer.columns_D] = False
            first, second = (o[consumer.tensor].flatten(1)[:, others] for o in (before, after))
            assert torch.equal(first, second)


def test_overlays_share_nothing_with_each_other_or_the_dense_network() -> None:
    toy = case("residual")
    ladders, state = toy.ladders(), snapshot(toy.model)
    first = least_squares(ladders, _half(toy))
    wanted = {key: tensor.clone() for key, tensor in first.items()}
    for tensor in least_squares(ladders, _half(toy)).values():
        tensor.zero_()
    assert identical(first, wanted)
    assert identical(snapshot(toy.model), state)
    assert identical(least_squares(ladders, _half(toy)), wanted)


# ---- BatchNorm


@pytest.mark.parametrize("name", NAMES)
def test_batchnorm_gets_what_its_consumer_really_gives(name: str) -> None:
    toy = case(name)
    ladders, dense = toy.ladders(), tensors_of(toy.model)
    for group in toy.groups:
        for consumer in ladders.consumers[group.name]:
            if consumer.norm is None:
                continue
            mean, variance = (f"{consumer.norm}.running_{what}" for what in ("mean", "var"))
            x_ND, weight = columns(toy, consumer.tensor), dense[consumer.tensor].detach()
            rest = torch.ones(x_ND.shape[1], dtype=torch.bool)
            rest[consumer.columns_D] = False
            for kept in _levels(group)[::4]:
                overlay = least_squares(ladders, {group.name: kept})
                columns_K = consumer.columns_D[: kept * consumer.block]
                y_NO = x_ND[:, consumer.columns_D] @ weight.flatten(1)[:, consumer.columns_D].T
                new_NO = x_ND[:, columns_K] @ overlay[consumer.tensor].flatten(1)[:, columns_K].T
                if consumer.bias is None:
                    lost = y_NO.mean(0) - new_NO.mean(0)
                    torch.testing.assert_close(dense[mean] - overlay[mean], lost)
                if not rest.any():
                    lost = y_NO.var(0, correction=0) - new_NO.var(0, correction=0)
                    floor = VARIANCE_FLOOR * dense[variance]
                    wanted = torch.maximum(dense[variance] - lost, floor)
                    torch.testing.assert_close(overlay[variance], wanted)


def _normed(bias: bool) -> Case:
    """Two convolutions whose second BatchNorm has the statistics of the data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = nn.Conv2d(10, 6, 3, padding=1, bias=bias)
        head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
        model = nn.Sequential(conv(3, 10), second, nn.BatchNorm2d(6), head).double().eval()
    x = image(24).double()
    ((_, y),) = read_by(model, x)["2"]
    model[2].running_mean.copy_(y.mean((0, 2, 3)))
    model[2].running_var.copy_(y.var((0, 2, 3), correction=0))
    groups = tuple(g for g in find_groups(model, x[:2]) if g.name.startswith("0"))
    return case_of(model, groups, x)


@pytest.mark.parametrize("bias", [False, True])
def test_a_repaired_network_normalises_its_calibration_data(bias: bool) -> None:
    toy = _normed(bias)
    ladders = toy.ladders()
    assert [c.norm for c in ladders.consumers[toy.groups[0].name]] == ["2"]
    for kept in range(3, 10):
        model = Candidates(toy.model, toy.groups).build(
            *_built(ladders, {toy.groups[0].name: kept})
        )
        ((norm, y),) = read_by(model, toy.inputs)["2"]
        torch.testing.assert_close(y.mean((0, 2, 3)), norm.running_mean)
        variance = y.var((0, 2, 3), correction=0)
        floored = norm.running_var <= VARIANCE_FLOOR * toy.model[2].running_var * (1 + 1e-9)
        torch.testing.assert_close(norm.running_var[~floored], variance[~floored])
        assert bool((variance <= norm.running_var * (1 + 1e-9)).all())
        assert not floored.all()


# ---- kinds of groups


def test_a_consumer_without_a_slot_fits_without_a_shift() -> None:
    model = Wrapped(
        Fn(lambda m, x: m.b(m.a(x)), a=conv(8, 6), b=nn.Conv2d(6, 8, 3, padding=1, bias=False))
    )
    model = model.double().eval()
    toy = case_of(model, _live(model), image(24).double())
    ladders = toy.ladders(ridge=0.0)
    (group,) = (g for g in toy.groups if g.name.startswith("middle.a"))
    (consumer,) = ladders.consumers[group.name]
    assert (consumer.bias, consumer.norm) == (None, None)
    overlay = least_squares(ladders, {group.name: 3})
    assert overlay.keys() == {"middle.b.weight"}
    assert bias_only(ladders, {group.name: 3}) == {}
    places = _Problem(toy, ladders, group, consumer.tensor).kept(3)
    x_ND = columns(toy, consumer.tensor)
    weight_OD = model.get_parameter(consumer.tensor).detach().flatten(1)
    wanted = torch.linalg.lstsq(x_ND[:, places], x_ND @ weight_OD.T).solution
    torch.testing.assert_close(overlay[consumer.tensor].flatten(1)[:, places], wanted.T)


def _live(model: nn.Module) -> tuple[PrunableGroup, ...]:
    dtype = next(model.parameters()).dtype
    return tuple(g for g in find_groups(model, image().to(dtype)) if not g.frozen)


def test_units_in_an_irregular_order_are_repaired_too() -> None:
    shuffled = [4, 0, 5, 1, 3, 2]
    parts = {"a": conv(8, 6), "b": nn.Conv2d(6, 8, 3, padding=1)}
    model = Wrapped(Fn(lambda m, x: m.b(m.a(x)[:, shuffled]), **parts)).double().eval()
    plain = Wrapped(Fn(lambda m, x: m.b(m.a(x)), **parts)).double().eval()
    (group,) = (g for g in _live(plain) if g.name.startswith("middle.a"))
    table = Table(tuple((shuffled.index(unit),) for unit in range(6)))
    axes = [replace(a, index=(table,)) if a.role == "in" else a for a in group.axes]
    group = replace(group, axes=tuple(axes))
    toy = case_of(model, (group,), image(24).double())
    ladders = toy.ladders()
    for kept in (1, 3, 5):
        level = {group.name: kept}
        built = snapshot(Candidates(model, toy.groups).build(*_built(ladders, level)))
        for key, tensor in snapshot(_from_scratch(toy, ladders, level)).items():
            torch.testing.assert_close(built[key], tensor, rtol=1e-6, atol=1e-7)
        repaired, cut = (
            _error(toy, ladders, "middle.b.weight", level, how)
            for how in (least_squares, no_overlay)
        )
        assert repaired < cut


def test_units_read_twice_by_one_consumer_are_solved_together() -> None:
    model = Wrapped(
        Fn(
            lambda m, x: m.b(torch.cat([m.a(x), m.a(x).square()], 1)),
            a=conv(8, 6),
            b=nn.Conv2d(12, 8, 1),
        )
    )
    model = model.double().eval()
    toy = case_of(model, _live(model), image(24).double())
    ladders = toy.ladders(ridge=0.0)
    (group,) = (g for g in toy.groups if g.name.startswith("middle.a"))
    (consumer,) = ladders.consumers[group.name]
    assert consumer.block == 2
    assert len(consumer.columns_D) == 12
    (solver,) = ladders.solvers[group.name]
    for kept in (1, 3, 5):
        measured = _error(toy, ladders, consumer.tensor, {group.name: kept}, least_squares)
        assert solver.loss(kept) == pytest.approx(measured, rel=1e-6)


def test_single_precision_networks_get_single_precision_levels() -> None:
    model = _normed(False).model.float()
    toy = case_of(model, _live(model), image(24))
    overlay = least_squares(toy.ladders(), _half(toy))
    assert overlay
    assert {tensor.dtype for tensor in overlay.values()} == {torch.float32}
    _normed(False).model.double()


def test_obs_orders_nest_and_cut_less_than_l1() -> None:
    """Predicted loss, averaged over toys, groups and levels; every order is a permutation."""
    totals = {"obs": 0.0, "l1": 0.0}
    for name in NAMES:
        toy = case(name)
        scores = score_by_obs(toy.model, toy.groups, toy.calibration)
        orders = {
            "obs": {g.name: g.pattern.order(scores[g.name]) for g in toy.groups},
            "l1": rank_units(toy.model, toy.groups),
        }
        for which, order in orders.items():
            ladders = Ladders.of(toy.model, toy.groups, order, toy.calibration)
            for group in toy.groups:
                assert sorted(order[group.name].tolist()) == list(range(group.units))
                losses = [ladders.predicted_loss(group.name, k) for k in _levels(group)]
                totals[which] += sum(losses)
    assert totals["obs"] < 0.95 * totals["l1"]


def test_groups_without_statistics_are_scored_by_l1() -> None:
    toy = case("grouped_shuffle")
    bare = [g for g in toy.groups if not toy.ladders().consumers[g.name]]
    scores = score_by_obs(toy.model, toy.groups, toy.calibration)
    by_l1 = rank_units(toy.model, toy.groups)
    assert bare
    for group in bare:
        assert torch.equal(group.pattern.order(scores[group.name]), by_l1[group.name])
        assert toy.ladders().predicted_loss(group.name, 1) == 0.0


# ---- memory


def test_levels_beyond_the_memory_are_solved_on_demand() -> None:
    toy = case("residual")
    rich, poor, some = toy.ladders(), toy.ladders(memory=0), toy.ladders(memory=3000)
    for ladders in (rich, poor, some):
        for group in toy.groups:
            for kept in _levels(group):
                least_squares(ladders, {group.name: kept})
    assert poor.bytes == 0 < some.bytes <= 3000 < rich.bytes
    kept = _half(toy)
    for ladders in (poor, some):
        assert identical(least_squares(ladders, kept), least_squares(rich, kept))
    name = next(name for name, consumers in rich.consumers.items() if consumers)
    assert rich.level(name, 0, 2) is rich.level(name, 0, 2)


# ---- bad input


def test_statistics_with_too_few_samples_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    toy = case("residual")
    few = calibrate(toy.model, [batch_of(toy.inputs[:1])], toy.groups, positions=2)
    orders = rank_units(toy.model, toy.groups)
    with caplog.at_level(logging.INFO):
        ladders = Ladders.of(toy.model, toy.groups, orders, few, ridge=0.0)
        overlay = least_squares(ladders, _half(toy))
    assert len(caplog.records) == 1
    assert "singular" in caplog.text
    assert all(bool(torch.isfinite(tensor).all()) for tensor in overlay.values())
    caplog.clear()
    Ladders.of(toy.model, toy.groups, orders, few)
    assert not caplog.records


@pytest.mark.parametrize("kept", [{"nowhere": 1}, {"stem.0": 0}, {"stem.0": 99}, {"stem.0": -1}])
def test_a_level_that_is_not_in_the_ladder(kept: dict[str, int]) -> None:
    ladders = case("chain").ladders()
    kept = {name.replace("stem.0", case("chain").groups[0].name): k for name, k in kept.items()}
    ((name, units),) = kept.items()
    for call in (
        lambda: ladders.level(name, 0, units),
        lambda: ladders.predicted_loss(name, units),
        *(lambda how=r.overlay: how(ladders, kept) for r in REPAIRS.values()),
    ):
        with pytest.raises(PlanError, match=f"'{name}'"):
            call()


def test_a_group_that_may_go_wholly_leaves_its_mean() -> None:
    toy = case("gated_mlp")
    toy = replace(toy, groups=tuple(replace(g, min_keep=0) for g in toy.groups))
    overlay = least_squares(toy.ladders(), {toy.groups[0].name: 0})
    mean_O = columns(toy, "down.weight").mean(0) @ toy.model.get_parameter("down.weight").T
    bias = toy.model.get_parameter("down.bias")
    torch.testing.assert_close(overlay["down.bias"], (bias + mean_O).detach())


def test_statistics_of_another_network_are_refused() -> None:
    toy, other = case("residual"), case("residual")
    changed = compact(other.model, PruningPlan.uniform(other.model, other.groups, 0.0))
    changed.stem[1].running_var[0] += 1e-9
    with pytest.raises(ModelError, match="another Residual"):
        Ladders.of(changed, toy.groups, rank_units(toy.model, toy.groups), toy.calibration)
    with pytest.raises(GroupError):
        Ladders.of(case("chain").model, toy.groups, {}, toy.calibration)


# ---- files


@pytest.mark.parametrize("name", ALL)
def test_ladders_come_back_from_a_file_to_the_bit(name: str, tmp_path: Path) -> None:
    toy = case(name)
    ladders = toy.ladders(ridge=1e-3)
    path = save_ladders(ladders, tmp_path / "deep" / "ladders.safetensors")
    again = load_ladders(path, toy.model, toy.calibration)
    assert again.groups == ladders.groups
    assert identical(dict(again.orders), dict(ladders.orders))
    assert identical(least_squares(again, _half(toy)), least_squares(ladders, _half(toy)))
    assert again.ridge == ladders.ridge
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert again.made_of == ladders.made_of
    assert again.made_of.calibration == toy.calibration.fingerprint


def test_ladders_of_another_network_or_calibration_are_refused(tmp_path: Path) -> None:
    toy = case("residual")
    path = save_ladders(toy.ladders(), tmp_path / "ladders.safetensors")
    changed = compact(toy.model, PruningPlan.uniform(toy.model, toy.groups, 0.0))
    with torch.no_grad():
        changed.head.weight[0, 0] += 1e-6
    with pytest.raises(ModelError, match="another Residual"):
        load_ladders(path, changed)
    with pytest.raises(GroupError):
        load_ladders(path, case("chain").model)
    other = calibrate(toy.model, [batch_of(toy.inputs[:5])], toy.groups)
    with pytest.raises(DataError, match="another calibration"):
        load_ladders(path, toy.model, other)
    assert load_ladders(path, toy.model, memory=0).memory == 0


def test_files_that_hold_no_ladders(tmp_path: Path) -> None:
    toy, path = case("chain"), tmp_path / "ladders.safetensors"
    with pytest.raises(RunError):
        load_ladders(path, toy.model)
    path.write_bytes(b"not safetensors")
    with pytest.raises(RunError):
        load_ladders(path, toy.model)
    save_ladders(toy.ladders(), path)
    good = load_tensors(path)
    factor = next(key for key in good if key.startswith("lower_DD/"))
    header = bytes(good["header"].tolist())
    for broken in (
        {key: tensor for key, tensor in good.items() if key != "header"},
        {key: tensor for key, tensor in good.items() if key != factor},
        good | {"header": torch.tensor(list(b"[]"), dtype=torch.uint8)},
        good | {"header": torch.tensor(list(header[:-9]), dtype=torch.uint8)},
        good | {"header": _bytes(header.replace(b'"format": 3', b'"format": 1', 1))},
    ):
        save_tensors(path, broken)
        with pytest.raises(RunError, match="holds no ladders"):
            load_ladders(path, toy.model)
    data = bytearray(save_ladders(toy.ladders(), path).read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="a byte has changed"):
        load_ladders(path, toy.model)


def _bytes(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)
