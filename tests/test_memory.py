"""Statistics in portions and in blocks: less memory, and still the same ladders."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from calibrated import Case, batch_of, case, split
from torch import Tensor, nn
from toys import identical
from zoo import Fn

from prune_env.calibration import statistics as calibration_module
from prune_env.calibration.portions import LEAST, default_memory
from prune_env.calibration.statistics import Calibration, calibrate, calibrations
from prune_env.calibration.sums import WIDE_COLUMNS
from prune_env.criteria.scorers import Evidence, score_groups
from prune_env.plan.ladder_file import load_ladders, save_ladders
from prune_env.repair.build import Built, build_ladders
from prune_env.repair.ladder import Ladders
from prune_env.repair.least_squares import Solver
from prune_env.repair.masked_squares import MaskedSolver
from prune_env.repair.overlays import bias_only, least_squares, no_overlay
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import call_model
from prune_env.structure.weights import weight_groups

TOYS = ("chain", "residual", "depthwise_concat", "grouped_shuffle")
BLOCKED = {"chain": 40, "residual": 40, "depthwise_concat": 9, "gated_mlp": 5}


def _score(
    model: nn.Module, criterion: str, groups: Sequence[PrunableGroup], found: Calibration
) -> dict[str, Tensor]:
    return score_groups(criterion, model, groups, Evidence(found, dict))


def _built(toy: Case, criterion: str = "obs", **options: Any) -> Built:
    batches = split(toy.inputs, 7)
    score = partial(_score, toy.model, criterion)
    return build_ladders(toy.model, batches, toy.groups, score, **options)


def _half(groups: Sequence[PrunableGroup]) -> dict[str, int]:
    return {group.name: max(1, group.units // 2) for group in groups}


# ---- portions


@pytest.mark.parametrize("name", TOYS)
def test_portions_together_are_one_calibration_to_the_bit(name: str) -> None:
    toy, batches = case(name), split(case(name).inputs, 7)
    whole = calibrate(toy.model, batches, toy.groups, positions=3)
    portions = list(calibrations(toy.model, batches, toy.groups, memory=1, positions=3))
    assert len(portions) > 1
    assert [g for portion, _ in portions for g in portion] == list(toy.groups)
    digests = {name: d for _, found in portions for name, d in found.digests().items()}
    assert digests == whole.digests()
    assert {found.model for _, found in portions} == {whole.model}


def test_the_memory_is_kept_to() -> None:
    toy, batches = case("chain"), split(case("chain").inputs, 7)
    whole = calibrate(toy.model, batches, toy.groups).bytes
    single = [calibrate(toy.model, batches, [group]).bytes for group in toy.groups]
    for limit in (max(single), (max(single) + whole) // 2, whole):
        found = [c.bytes for _, c in calibrations(toy.model, batches, toy.groups, memory=limit)]
        means = 8 * 200  # the limit is about covariances
        assert all(size <= limit + means for size in found)
    assert len(found) == 1


@pytest.mark.parametrize("criterion", ["obs", "wanda", "l1"])
@pytest.mark.parametrize("name", TOYS)
def test_ladders_do_not_depend_on_the_memory(name: str, criterion: str) -> None:
    toy = case(name)
    one, many = (_built(toy, criterion, statistics=limit) for limit in (None, 1))
    assert identical(dict(one.scores), dict(many.scores))
    assert one.ladders.made_of == many.ladders.made_of
    kept = _half(toy.groups)
    assert identical(least_squares(one.ladders, kept), least_squares(many.ladders, kept))


def test_ladders_are_those_made_of_one_calibration() -> None:
    toy = case("residual")
    built = _built(toy, positions=None, statistics=1)
    found = calibrate(toy.model, split(toy.inputs, 7), toy.groups, positions=None)
    again = Ladders.of(toy.model, toy.groups, built.ladders.orders, found)
    assert again.made_of == built.ladders.made_of
    kept = _half(toy.groups)
    assert identical(least_squares(again, kept), least_squares(built.ladders, kept))


class _Counted(nn.Module):
    """Three layers in a row, the calls of each counted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.calls = {"a": 0, "b": 0, "c": 0}

    def forward(self, x: Tensor) -> Tensor:
        for name in self.calls:
            x = self.get_submodule(name)(x)
            self.calls[name] += 1
        return x

    def __deepcopy__(self, memo: dict[int, Any]) -> _Counted:
        other = _Counted()
        other.load_state_dict(self.state_dict())
        other.calls = self.calls
        return other


def test_a_pass_ends_behind_the_last_layer_it_is_about() -> None:
    model = _Counted().eval()
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    groups = [g for g in find_groups(model, x[:2]) if not g.frozen]
    first = [g for g in groups if any(a.tensor == "b.weight" and a.role == "in" for a in g.axes)]
    before = dict(model.calls)
    calibrate(model, split(x, 5), first)
    ran = {name: calls - before[name] for name, calls in model.calls.items()}
    tries = ran["c"]
    assert ran == {"a": tries + 2, "b": tries, "c": tries}


def test_the_default_memory_follows_the_weights() -> None:
    assert default_memory(nn.Linear(4, 4)) == LEAST
    with torch.device("meta"):
        assert default_memory(nn.Linear(20_000, 20_000, bias=False)) == 4 * 20_000**2 // 2


# ---- what several layers read


def _shared(form: Any) -> tuple[nn.Module, Tensor, list[PrunableGroup]]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parts = {name: nn.Linear(6, 5) for name in ("q", "k", "v")}
        parts["z"] = nn.Linear(5, 2)  # the last matrix is an output head, hence frozen
        model = Fn(lambda m, x: m.z(form(m, x)), **parts).double().eval()
        x = torch.randn(12, 6, dtype=torch.float64)
    groups = weight_groups(model, "unstructured")
    return model, x, [group for group in groups if not group.frozen]


def test_layers_that_read_the_same_tensor_share_its_statistics() -> None:
    model, x, groups = _shared(lambda m, x: m.q(x) + m.k(x) * m.v(2 * x))
    found = calibrate(model, split(x, 5), groups)
    q, k, v = (found.moments[f"{name}.weight"].parts[0] for name in "qkv")
    assert q is k is not v
    torch.testing.assert_close(4 * q.covariance_DD, v.covariance_DD)
    held = [found.moments[name].covariance_DD for name in ("q.weight", "v.weight")]
    assert found.bytes == sum(8 * (t.numel() + len(t)) for t in held)
    orders = {g.name: torch.arange(g.units) for g in groups}
    ladders = Ladders.of(model, groups, orders, found)
    solvers = [solver for (solver,) in ladders.solvers.values()]
    assert all(isinstance(solver, MaskedSolver) for solver in solvers)
    assert len({id(solver.covariance_DD) for solver in solvers}) == 2  # type: ignore[attr-defined]


def test_layers_that_share_only_at_times_are_summed_apart() -> None:
    def form(m: nn.Module, x: Tensor) -> Tensor:
        return m.q(x) + m.k(x if len(x) == 2 else 3 * x) + m.v(x)

    model, x, groups = _shared(form)
    found = calibrate(model, split(x, 5), groups).moments
    torch.testing.assert_close(found["k.weight"].covariance_DD, 9 * found["q.weight"].covariance_DD)


def test_a_tensor_changed_in_between_is_not_shared() -> None:
    model, x, groups = _shared(lambda m, x: m.q(x) + m.k(x.mul_(2)) + m.v(x))
    found = calibrate(model, [batch_of(x.clone())], groups).moments
    q, k, v = (found[f"{name}.weight"] for name in "qkv")
    assert q.parts[0] is not k.parts[0] is v.parts[0]


# ---- blocks


def _blocked(
    toy: Case, monkeypatch: pytest.MonkeyPatch, limit: int, groups: Any = None
) -> tuple[Calibration, Ladders]:
    monkeypatch.setattr(calibration_module, "MAX_COLUMNS", limit)
    groups = toy.groups if groups is None else groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = calibrate(toy.model, [batch_of(toy.inputs)], groups, positions=None)
    scores = score_groups("obs", toy.model, groups, Evidence(found, dict))
    orders = {group.name: group.pattern.order(scores[group.name]) for group in groups}
    return found, Ladders.of(toy.model, groups, orders, found)


def _solved_error(solver: Any, part: Any, columns_D: Tensor, kept: int, weight_KO: Tensor) -> float:
    """Squared error of the outputs of a block with these weights, mean given back, by its S."""
    change_DO = solver.weight_DO.clone()
    change_DO[: len(weight_KO)] -= weight_KO
    places = [part.columns_D.tolist().index(column) for column in columns_D.tolist()]
    matrix_DD = part.covariance_DD[places][:, places]
    if not bool(solver.mean_D.any()):
        matrix_DD = matrix_DD + torch.outer(part.mean_D[places], part.mean_D[places])
    return float(((matrix_DD @ change_DO) * change_DO).sum())


@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_a_block_repaired_is_never_worse_than_cut(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = case(name)
    found, ladders = _blocked(toy, monkeypatch, BLOCKED[name])
    blocks = 0
    for group in toy.groups:
        pairs = list(zip(ladders.consumers[group.name], ladders.solvers[group.name], strict=True))
        for consumer, solver in pairs:
            parts = found.moments[consumer.tensor].parts
            blocks += len(parts) > 1
            (part,) = (p for p in parts if consumer.columns_D[0] in p.columns_D)
            for kept in range(1, group.units):
                weight_KO = solver.weight(kept)
                units = solver.ranks_U[: len(weight_KO) // consumer.block]  # type: ignore[attr-defined]
                assert bool((units < kept).all())
                repaired, cut = (
                    _solved_error(solver, part, consumer.columns_D, kept, w)
                    for w in (weight_KO, solver.cut(kept))
                )
                assert repaired <= cut * (1 + 1e-9) + 1e-12
        losses = [ladders.predicted_loss(group.name, k) for k in range(1, group.units + 1)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == 0.0
    assert blocks > 1


@pytest.mark.parametrize("name", ["chain", "residual"])
def test_in_blocks_the_repair_lies_between_the_whole_one_and_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed over groups and levels, by the whole covariance of what the consumers read."""
    toy = case(name)
    whole = toy.calibration
    _, blocked = _blocked(toy, monkeypatch, 40)
    full = Ladders.of(toy.model, toy.groups, blocked.orders, whole)
    total = dict.fromkeys(("full", "blocked", "biased", "cut"), 0.0)
    cases = {
        "full": (full, least_squares),
        "blocked": (blocked, least_squares),
        "biased": (blocked, bias_only),
        "cut": (blocked, no_overlay),
    }
    for group in toy.groups:
        tensors = {c.tensor for c in blocked.consumers[group.name]}
        for kept in range(1, group.units):
            for key, (ladders, how) in cases.items():
                overlay = how(ladders, {group.name: kept})
                total[key] += sum(
                    _measured(whole, ladders, group, kept, t, overlay) for t in tensors
                )
    assert total["full"] <= total["blocked"] < total["biased"] <= total["cut"]


def _measured(
    found: Calibration,
    ladders: Ladders,
    group: PrunableGroup,
    kept: int,
    tensor: str,
    overlay: dict[str, Tensor],
) -> float:
    dense = ladders.dense[tensor].flatten(1)
    new_OD = overlay.get(tensor, ladders.dense[tensor]).flatten(1).clone()
    for consumer, solver in zip(
        ladders.consumers[group.name], ladders.solvers[group.name], strict=True
    ):
        if consumer.tensor == tensor:
            new_OD[:, consumer.columns_D[len(solver.cut(kept)) :]] = 0.0
    change_OD, moments = dense - new_OD, found.moments[tensor]
    spread = float(((change_OD @ moments.covariance_DD) * change_OD).sum())
    shift_O = change_OD @ moments.mean_D
    bias, norm = tensor.removesuffix("weight") + "bias", f"{moments.norm}.running_mean"
    if bias in overlay:
        shift_O = shift_O - (overlay[bias] - ladders.dense[bias])
    elif norm in overlay:
        shift_O = shift_O + (overlay[norm] - ladders.dense[norm])
    return spread + float(shift_O.square().sum())


def test_single_weights_in_blocks_are_repaired_too(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = case("chain")
    groups = weight_groups(toy.model, "unstructured")
    groups = tuple(g for g in groups if not g.frozen)
    found, ladders = _blocked(toy, monkeypatch, 40, groups)
    name = next(g.name for g in groups if len(ladders.solvers[g.name]) > 1)
    (tensor,) = {consumer.tensor for consumer in ladders.consumers[name]}
    assert len(found.moments[tensor].parts) == len(ladders.solvers[name])
    units = ladders.groups[name].units
    for solver in ladders.solvers[name]:
        assert torch.equal(solver.weight(units), solver.cut(units))
        assert solver.loss(units) == 0.0
        for kept in (units // 4, units // 2):
            assert solver.loss(kept) < solver.loss(0)
            gone = (solver.cut(kept) == 0) & (solver.cut(units) != 0)
            assert bool(gone.any())
            assert bool((solver.weight(kept)[gone] == 0).all())


def test_ladders_of_blocks_come_back_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    toy = case("chain")
    weights = weight_groups(toy.model, "unstructured")
    for groups in (toy.groups, tuple(g for g in weights if not g.frozen)):
        found, ladders = _blocked(toy, monkeypatch, 40, groups)
        path = save_ladders(ladders, tmp_path / "ladders.safetensors")
        again = load_ladders(path, toy.model, found)
        kept = _half(groups)
        assert identical(least_squares(again, kept), least_squares(ladders, kept))


# ---- precision


def test_wide_factors_are_kept_in_single_precision() -> None:
    width, generator = WIDE_COLUMNS + 8, torch.Generator().manual_seed(0)
    x_ND = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    weight_OD = torch.randn(3, width, generator=generator, dtype=torch.float64)
    matrix_DD = x_ND.T @ x_ND / len(x_ND)
    solver = Solver.of(weight_OD, matrix_DD, torch.zeros(width), 1)
    assert solver.lower_DD.dtype == torch.float32
    kept = width // 2
    found_KO = solver.weight(kept)
    ridged_DD = matrix_DD + solver.ridge * torch.eye(width, dtype=torch.float64)
    wanted_KO = torch.linalg.solve(ridged_DD[:kept, :kept], ridged_DD[:kept] @ weight_OD.T)
    torch.testing.assert_close(found_KO, wanted_KO, rtol=1e-3, atol=1e-4)
    assert torch.equal(solver.weight(width), weight_OD.T)


# ---- attention of PyTorch itself


def test_the_output_layer_of_multihead_attention_is_read() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
        x = torch.randn(12, 5, 16)
    groups = [g for g in find_groups(model, x[:2]) if not g.frozen]
    state = {path: type(module) for path, module in model.named_modules()}
    found = calibrate(model, split(x, 5), groups)
    names = [f"0.layers.{i}.self_attn.out_proj.weight" for i in range(2)]
    assert set(names) <= found.moments.keys()
    assert {path: type(module) for path, module in model.named_modules()} == state
    # What the first one reads, by hand.
    attention = model[0].layers[0].self_attn
    q, k, v = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    heads = [t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (q, k, v)]
    mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    mean_D = mixed.detach().double().reshape(-1, 16).mean(0)
    torch.testing.assert_close(found.moments[names[0]].mean_D, mean_D, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert call_model(model, x).shape == x.shape
