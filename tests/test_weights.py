"""Single weights, N:M slots and blocks as groups: patterns, scores, levels, costs."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrated import Case, case, case_of, columns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import close, outputs

from prune_env import PruningTask
from prune_env.costs.model import CostModel
from prune_env.criteria import obs
from prune_env.criteria.elementwise import score_units
from prune_env.criteria.obs import obs_scores, obs_weight_scores
from prune_env.criteria.scorers import SCORERS, Evidence, score_groups
from prune_env.errors import ConfigError, GroupError, ModelError, PlanError
from prune_env.experiments.bench_weights import WeightsConfig, measure, page
from prune_env.experiments.report.publishing import settings_of
from prune_env.plan.cut import Candidates, compact, masked
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.repair import masked_squares
from prune_env.repair.ladder import Ladders
from prune_env.repair.masked_squares import column_sweep, exact_rows
from prune_env.repair.overlays import bias_only, least_squares, no_overlay
from prune_env.structure.groups import PrunableGroup, expand, pool
from prune_env.structure.options import constrain
from prune_env.structure.patterns import NM, PerRow, Unstructured
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.weights import weight_groups

KINDS = ("unstructured", "per_row", "2:4", "1:4", "block:2")


def _net() -> nn.Module:
    """A convolution before a BatchNorm, one with a bias, linear layers with and without one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 12, bias=False),
            nn.ReLU(),
            nn.Linear(12, 8),
            nn.Tanh(),
            nn.Linear(8, 6),
        )
        nn.init.constant_(net[1].bias, 0.1)
    return net.double().eval()


@cache
def weights(kind: str) -> Case:
    """The net with all its weights as groups of this kind; do not change it."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 4, 6, 6, generator=generator, dtype=torch.float64) + 0.5
    groups = tuple(g for g in weight_groups(_net(), kind) if not g.frozen)
    return case_of(_net(), groups, x)


def _orders(toy: Case) -> dict[str, Tensor]:
    scores = score_groups("obs", toy.model, toy.groups, Evidence(toy.calibration, dict))
    return {group.name: group.pattern.order(scores[group.name]) for group in toy.groups}


def _ladders(toy: Case, **options: Any) -> Ladders:
    return Ladders.of(toy.model, toy.groups, _orders(toy), toy.calibration, **options)


def _mask(group: PrunableGroup, order: Tensor, kept: int, shape: torch.Size) -> Tensor:
    units = torch.zeros(group.units)
    units[order[:kept]] = 1.0
    return expand(group.axes[0], units.reshape(group.grid), shape)


# ---- what is found


def _causal(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.MistralConfig(
        **sizes, intermediate_size=40, num_key_value_heads=2, tie_word_embeddings=kind == "tied"
    )
    return transformers.MistralForCausalLM(config).eval()


def test_a_language_model_has_a_group_per_matrix_and_a_frozen_head() -> None:
    *groups, head = weight_groups(_causal("untied"))
    assert len(groups) == 2 * 7
    assert not any(group.frozen for group in groups)
    assert {group.grid for group in groups} == {(32, 32), (16, 32), (40, 32), (32, 40)}
    assert all(len(group.levels) <= 66 and group.levels[-1] == group.units for group in groups)
    assert (head.name, head.frozen) == ("lm_head.weight", "output head")
    tied = weight_groups(_causal("tied"))[-1]
    assert tied.frozen == "tied to 'model.embed_tokens.weight'"


def test_a_weight_stored_inputs_first_is_turned() -> None:
    model = _causal("gpt2")
    groups = {g.name: g for g in weight_groups(model, "2:4")}
    wide = groups["transformer.h.0.mlp.c_fc.weight"]
    assert (wide.grid, wide.axes[0].dims) == ((128, 32), (1, 0))
    plan = PruningPlan.uniform(model, [wide], 0.5)
    kept = tensors_of(compact(model, plan))[wide.name] != 0
    assert (kept.reshape(8, 4, 128).sum(1) == 2).all()
    assert "embed" not in " ".join(groups)


def test_a_transposed_convolution_is_turned() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.Flatten(), nn.LazyLinear(5))
    (group,) = weight_groups(net, heads=())
    assert (group.grid, group.axes[0].dims) == ((6, 4, 3, 3), (1, 0, 2, 3))


def test_layers_are_chosen_by_name_or_glob() -> None:
    net = _net()
    assert [g.name for g in weight_groups(net, layers=("3", "6"))] == ["3.weight", "6.weight"]
    assert [g.name for g in weight_groups(net, ignore=("[0-6]",))] == ["8.weight", "10.weight"]
    assert weight_groups(net)[-1].frozen == "output head"
    assert [bool(g.frozen) for g in weight_groups(net, heads=("0",))] == [True, *[False] * 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "3:3"}, "no kind of weight group '3:3'"),
        ({"kind": "0:4"}, "no kind"),
        ({"kind": "block:0"}, "no kind"),
        ({"kind": "row"}, "'per_row'"),
        ({"kind": "2:5"}, "layer '0' has 4 inputs, not a multiple of 5.*ignore=\\('0',\\)"),
        ({"kind": "block:8"}, "layer '0' has 4 inputs, not a multiple of 8"),
        ({"kind": "block:3", "layers": ("6",)}, "layer '6' has 16 inputs"),
        ({"layers": ("63",)}, "'63' matches none of the 5 layers.*Nearest: "),
        ({"ignore": ("x",)}, "'x' matches none"),
        ({"heads": ("classifier",)}, "'classifier' matches none"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_computed(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(GroupError, match=words):
        weight_groups(_net(), **arguments)


def test_wishes_name_layers_as_they_do_for_channels() -> None:
    groups = constrain(
        weight_groups(_net(), "2:4"), ignore=("3", "6.weight"), max_sparsity={"0": 0.25, "*": 0.9}
    )
    assert [bool(g.frozen) for g in groups] == [False, True, True, False, True]
    assert [len(g.levels) for g in groups if not g.frozen] == [2, 3]


# ---- patterns


@given(data=st.data())
def test_every_level_of_n_of_m_is_n_of_every_m(data: st.DataObject) -> None:
    m = data.draw(st.sampled_from([2, 4, 8]))
    n = data.draw(st.integers(1, m - 1))
    rest = data.draw(st.lists(st.integers(1, 3), max_size=2))
    net = nn.Conv2d(2 * m, 3, rest) if len(rest) == 2 else nn.Linear(2 * m, 3)
    (group,) = weight_groups(net, f"{n}:{m}", heads=())
    assert isinstance(group.pattern, NM)
    scores = torch.rand(
        group.grid, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    order = group.pattern.order(scores)
    assert [level * m // group.units for level in group.levels] == list(range(n, m + 1))
    shape = tensors_of(net)["weight"].shape
    before = torch.zeros(shape)
    for kept in range(n, m + 1):
        mask = _mask(group, order, group.units * kept // m, shape)
        assert (mask.movedim(1, -1).reshape(-1, m).sum(1) == kept).all()
        assert (mask >= before).all()
        before = mask
        slots = scores.movedim(1, -1).reshape(-1, m)
        best = slots.topk(kept, 1).values.min(1).values
        assert (
            slots[mask.movedim(1, -1).reshape(-1, m) > 0].reshape(-1, kept).min(1).values == best
        ).all()


@given(rows=st.integers(1, 9), width=st.integers(1, 90), seed=st.integers(0, 99))
def test_rows_keep_their_best_and_equal_numbers(rows: int, width: int, seed: int) -> None:
    scores = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed))
    group = PrunableGroup("g", (rows, width), (), PerRow(), min_keep=0)
    order = PerRow().order(scores)
    assert sorted(order.tolist()) == list(range(rows * width))
    for level in group.levels:
        kept = torch.zeros(rows * width, dtype=torch.bool)
        kept[order[:level]] = True
        counts = kept.reshape(rows, width).sum(1)
        assert int(counts.max() - counts.min()) <= 1
        assert level // rows == int(counts.min())
        for row, count in enumerate(counts.tolist()):
            best = set(scores[row].topk(count).indices.tolist())
            assert best == set(kept.reshape(rows, width)[row].nonzero().squeeze(1).tolist())


@given(units=st.integers(1, 5000), levels=st.integers(1, 100))
def test_units_are_divided_into_about_as_many_levels_as_asked(units: int, levels: int) -> None:
    group = PrunableGroup("g", (units,), (), Unstructured(levels), min_keep=0)
    assert 2 <= len(group.levels) <= levels + 2
    assert (group.levels[0], group.levels[-1]) == (0, units)
    scores = torch.rand(units)
    assert (scores[Unstructured().order(scores)].diff() <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_expand_and_pool_are_transposes_on_every_kind(kind: str) -> None:
    turned = nn.Sequential(nn.ConvTranspose2d(4, 8, 3))
    for model in (weights(kind).model, turned):
        for group in weight_groups(model, kind, heads=()):
            (axis,) = group.axes
            shape = tensors_of(model)[axis.tensor].shape
            units, elements = torch.randn(group.grid).double(), torch.randn(shape).double()
            left = (expand(axis, units, shape) * elements).sum()
            torch.testing.assert_close(left, (units * pool(axis, elements, group.grid)).sum())
            assert (expand(axis, torch.ones(group.grid), shape) == 1).all()


# ---- plans


def test_many_units_are_written_as_bits() -> None:
    net = nn.Sequential(nn.Linear(80, 60), nn.Linear(60, 3))
    groups = list(weight_groups(net, heads=()))
    plan = PruningPlan.uniform(net, groups, 0.4)
    text = plan.to_json()
    assert PruningPlan.from_json(text) == plan
    written = json.loads(text)["kept"]
    assert len(written["0.weight"]["bits"]) == 800
    assert isinstance(written["1.weight"], list)
    for bits in ("AA==", "????", 3):
        content = json.loads(text)
        content["kept"]["0.weight"] = {"bits": bits}
        with pytest.raises(PlanError, match="not a pruning plan"):
            PruningPlan.from_json(json.dumps(content))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=5)
def test_removed_weights_are_zero_and_shapes_stay(kind: str, data: st.DataObject) -> None:
    toy = weights(kind)
    ladders = _ladders(toy)
    kept = {g.name: data.draw(st.sampled_from(g.levels)) for g in toy.groups}
    units = {name: order[: kept[name]] for name, order in ladders.orders.items()}
    plan = PruningPlan.of_levels(toy.groups, list(kept.values()), ladders.orders)
    candidates = Candidates(toy.model, toy.groups)
    for how in (no_overlay, bias_only, least_squares):
        built = candidates.build(units, how(ladders, kept))
        for group in toy.groups:
            tensor = tensors_of(built)[group.name]
            mask = _mask(group, ladders.orders[group.name], kept[group.name], tensor.shape)
            assert (tensor[mask == 0] == 0).all()
            assert (tensor[mask > 0] != 0).all()
    small = compact(toy.model, plan)
    with masked(toy.model, plan):
        zeroed = outputs(toy.model, toy.inputs)
    assert close(zeroed, outputs(small, toy.inputs), 0.0)


# ---- levels


@given(seed=st.integers(0, 999), columns=st.integers(1, 12), each=st.integers(1, 3))
@settings(max_examples=25)
def test_rows_are_solved_as_lstsq_solves_them(seed: int, columns: int, each: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(60, columns, generator=generator, dtype=torch.float64)
    weight_OD = torch.randn(4 * each, columns, generator=generator, dtype=torch.float64)
    keep_RD = torch.rand(4, columns, generator=generator) < 0.6
    found = exact_rows(weight_OD, x_ND.T @ x_ND / 60, keep_RD)
    for row in range(4 * each):
        keep = keep_RD[row // each]
        assert (found[row, ~keep] == 0).all()
        if keep.any():
            wanted = torch.linalg.lstsq(x_ND[:, keep], x_ND @ weight_OD[row]).solution
            torch.testing.assert_close(found[row, keep], wanted)
        if keep.all():
            assert torch.equal(found[row], weight_OD[row])


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(60, 9, generator=generator, dtype=torch.float64)
    weight_OD = torch.randn(7, 9, generator=generator, dtype=torch.float64)
    keep = torch.rand(7, 9, generator=generator) < 0.5
    whole = exact_rows(weight_OD, x_ND.T @ x_ND, keep)
    scores = obs_weight_scores(weight_OD, x_ND.T @ x_ND, (7, 9))
    monkeypatch.setattr(masked_squares, "CHUNK", 2 * 9 * 9 * 8)
    monkeypatch.setattr(obs, "CHUNK", 2 * 9 * 9 * 8)
    torch.testing.assert_close(exact_rows(weight_OD, x_ND.T @ x_ND, keep), whole)
    torch.testing.assert_close(obs_weight_scores(weight_OD, x_ND.T @ x_ND, (7, 9)), scores)


def test_the_sweep_is_algorithm_1_of_sparsegpt_and_no_better_than_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(300, 150, generator=generator).double() @ torch.randn(150, 150).double()
    matrix = x_ND.T @ x_ND / 300 + torch.eye(150)
    weight = torch.randn(6, 150, generator=generator).double()
    keep = torch.rand(6, 150, generator=generator) < 0.5
    swept = column_sweep(weight, matrix, keep)
    naive = weight.clone()
    for j in range(150):  # OBS on what is right of j, its inverse computed anew every time
        inverse = torch.linalg.inv(matrix[j:, j:])
        for row in (~keep[:, j]).nonzero().squeeze(1).tolist():
            naive[row, j:] -= naive[row, j] / inverse[0, 0] * inverse[0]
    torch.testing.assert_close(swept, naive * keep, rtol=1e-6, atol=1e-8)

    def loss(new: Tensor) -> float:
        return float((((new - weight) @ matrix) * (new - weight)).sum())

    exact = exact_rows(weight, matrix, keep)
    assert loss(exact) < loss(swept) < loss(weight * keep)


def _measured(toy: Case, ladders: Ladders, group: PrunableGroup, kept: int, how: Any) -> float:
    """Mean squared error of one layer's output on its dense inputs, slots for shifts included."""
    dense, tensor = tensors_of(toy.model), group.name
    overlay = how(ladders, {tensor: kept})
    x_ND, weight = columns(toy, tensor), dense[tensor].detach()
    mask = _mask(group, ladders.orders[tensor], kept, weight.shape)
    new = (overlay.get(tensor, weight) * mask).flatten(1)
    change_NO = x_ND @ (new - weight.flatten(1)).T
    bias, norm = tensor.removesuffix("weight") + "bias", toy.calibration.moments[tensor].norm
    if bias in overlay:
        change_NO = change_NO + overlay[bias] - dense[bias]
    if f"{norm}.running_mean" in overlay:
        change_NO = change_NO - (overlay[f"{norm}.running_mean"] - dense[f"{norm}.running_mean"])
    return float(change_NO.detach().square().mean(0).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_loss_is_the_measured_one_and_falls_along_the_ladder(kind: str) -> None:
    toy = weights(kind)
    ladders = _ladders(toy, ridge=1e-9)
    for group in toy.groups:
        (solver,) = ladders.solvers[group.name]
        losses = [solver.loss(kept) for kept in group.levels]
        assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
        assert losses[-1] == 0.0
        for kept, loss in list(zip(group.levels, losses, strict=True))[1:-1:7]:
            repaired, biased, cut = (
                _measured(toy, ladders, group, kept, how)
                for how in (least_squares, bias_only, no_overlay)
            )
            assert loss == pytest.approx(repaired, rel=1e-5, abs=1e-7 * solver.loss(0))
            assert repaired <= biased * (1 + 1e-6) + 1e-12
            assert biased <= cut * (1 + 1e-9) + 1e-12


def test_the_toy_holds_every_slot_and_whole_levels_are_the_dense_weights() -> None:
    toy = weights("unstructured")
    ladders = _ladders(toy)
    consumers = [c for (c,) in ladders.consumers.values()]
    assert [(c.bias, c.norm) for c in consumers] == [
        (None, "1"), ("3.bias", None), (None, None), ("8.bias", None),
    ]  # fmt: skip
    assert least_squares(ladders, {g.name: g.units for g in toy.groups}) == {}
    for group in toy.groups:
        level = ladders.level(group.name, 0, group.units)
        assert torch.equal(level.weight_OK, tensors_of(toy.model)[group.name].flatten(1))
        assert float(level.mean_O.abs().max()) == 0.0
    overlay = least_squares(ladders, {g.name: g.levels[len(g.levels) // 2] for g in toy.groups})
    assert {"1.running_mean", "1.running_var", "3.bias", "8.bias"} <= overlay.keys()


def test_solved_levels_stay_within_their_memory() -> None:
    toy = weights("unstructured")
    ladders = _ladders(toy, memory=20_000)
    for group in toy.groups:
        for kept in group.levels:
            ladders.level(group.name, 0, kept)
    assert 0 < ladders.bytes <= 20_000


def test_weights_stored_inputs_first_are_repaired_like_their_transpose() -> None:
    transformers = pytest.importorskip("transformers")
    plain = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    turned = nn.Sequential(
        transformers.pytorch_utils.Conv1D(8, 12), nn.Tanh(), transformers.pytorch_utils.Conv1D(6, 8)
    ).double()
    for layer in (0, 2):
        turned[layer].weight.data = plain[layer].weight.data.T.contiguous()
        turned[layer].bias.data = plain[layer].bias.data.clone()
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nets = [case_of(net, weight_groups(net, heads=()), x) for net in (plain, turned)]
    for criterion in ("wanda", "sparsegpt", "obs"):
        results = []
        for one in nets:
            scores = score_groups(criterion, one.model, one.groups, Evidence(one.calibration, dict))
            orders = {g.name: g.pattern.order(scores[g.name]) for g in one.groups}
            ladders = Ladders.of(one.model, one.groups, orders, one.calibration)
            results.append((scores, least_squares(ladders, {"0.weight": 40, "2.weight": 20})))
        (scores, overlay), (other_scores, other_overlay) = results
        for name in ("0.weight", "2.weight"):
            torch.testing.assert_close(scores[name], other_scores[name])
            torch.testing.assert_close(overlay[name], other_overlay[name].T)
        torch.testing.assert_close(overlay["0.bias"], other_overlay["0.bias"])


# ---- scores


def _inputs(seed: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x_ND = torch.randn(90, columns, generator=generator, dtype=torch.float64) @ mixing
    weight_OD = torch.randn(6, columns, generator=generator, dtype=torch.float64)
    return weight_OD, x_ND.T @ x_ND / 90


@given(seed=st.integers(0, 999))
@settings(max_examples=10)
def test_weights_go_in_the_order_of_exhaustive_elimination(seed: int) -> None:
    weight_OD, matrix_DD = _inputs(seed, 7)
    scores = obs_weight_scores(weight_OD, matrix_DD, (6, 7), ridge=1e-9)
    for row in range(6):
        alive, order = list(range(7)), scores[row].argsort().tolist()
        losses = []
        for unit in order:
            # Tried one by one: refit on the others, from scratch.
            trials = {}
            for other in alive:
                keep = torch.zeros(1, 7, dtype=torch.bool)
                keep[0, [a for a in alive if a != other]] = True
                change = exact_rows(weight_OD[row : row + 1], matrix_DD, keep) - weight_OD[row]
                trials[other] = float(((change @ matrix_DD) * change).sum())
            assert trials[unit] == pytest.approx(min(trials.values()), rel=1e-4)
            losses.append(trials[unit])
            alive.remove(unit)
        steps = np.maximum.accumulate(np.diff([0.0, *losses]))
        assert scores[row].sort().values.numpy() == pytest.approx(steps, rel=1e-3)


def test_blocks_go_in_the_order_of_group_obs_within_their_rows() -> None:
    weight_OD, matrix_DD = _inputs(0, 8)
    scores = obs_weight_scores(weight_OD, matrix_DD, (3, 4))
    for row in range(3):
        wanted = obs_scores([weight_OD[2 * row : 2 * row + 2]], [matrix_DD], 4)
        assert scores[row].argsort().tolist() == wanted.argsort().tolist()


@given(seed=st.integers(0, 999))
@settings(max_examples=10)
def test_slots_of_n_of_m_are_eliminated_in_turns(seed: int) -> None:
    weight_OD, matrix_DD = _inputs(seed, 8)
    scores = obs_weight_scores(weight_OD, matrix_DD, (6, 8), NM(4))
    for row in scores.argsort(1).tolist():
        for turn in range(0, 8, 2):
            assert {unit // 4 for unit in row[turn : turn + 2]} == {0, 1}
    free = obs_weight_scores(weight_OD, matrix_DD, (6, 8))
    assert torch.equal(scores.argmin(1), free.argmin(1))


def test_turns_of_a_convolution_are_blocks_of_its_inputs_at_one_place_of_the_kernel() -> None:
    grid = (3, 8, 2, 2)
    turns = NM(4).turns(grid).reshape(grid[1:])
    assert turns.flatten().bincount().tolist() == [4] * 8
    for block in range(8):
        channels, rows, columns = (turns == block).nonzero().unbind(1)
        assert len(set((channels // 4).tolist())) == 1
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == 1


def test_wide_matrices_are_scored_by_their_first_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_OD, matrix_DD = _inputs(1, 8)
    monkeypatch.setattr(obs, "ELIMINATED_COLUMNS", 7)
    scores = obs_weight_scores(weight_OD, matrix_DD, (6, 8), ridge=1e-9)
    torch.testing.assert_close(
        scores, weight_OD.square() / matrix_DD.inverse().diagonal(), rtol=1e-5, atol=0.0
    )


def test_wanda_and_sparsegpt_are_what_their_papers_say() -> None:
    toy = weights("unstructured")
    evidence = Evidence(toy.calibration, dict)
    wanda = score_groups("wanda", toy.model, toy.groups, evidence)
    sparsegpt = score_groups("sparsegpt", toy.model, toy.groups, evidence)
    for group in toy.groups:
        x_ND, weight = columns(toy, group.name), tensors_of(toy.model)[group.name].detach()
        norm_D = x_ND.square().mean(0).sqrt()
        torch.testing.assert_close(
            wanda[group.name], weight.abs() * norm_D.reshape(weight.shape[1:])
        )
        h_DD = x_ND.T @ x_ND / len(x_ND)
        h_DD += 0.01 * h_DD.diagonal().mean() * torch.eye(len(h_DD))
        first_D = torch.stack([h_DD[j:, j:].inverse()[0, 0] for j in range(len(h_DD))])
        wanted = weight.square() / first_D.reshape(weight.shape[1:])
        torch.testing.assert_close(sparsegpt[group.name], wanted)


@pytest.mark.parametrize("criterion", sorted({*SCORERS} - {"bn_scale"}))
def test_every_scorer_scores_channels_and_weights(criterion: str) -> None:
    for one in (case("residual"), weights("unstructured")):
        if criterion == "geometric_median" and one.groups[0].axes[0].role == "weight":
            with pytest.raises(GroupError, match="no tensor with role out"):
                score_units(one.model, one.groups, criterion)
            continue
        gradients = {name: torch.ones_like(t) for name, t in tensors_of(one.model).items()}
        evidence = Evidence(one.calibration, lambda gradients=gradients: gradients)
        scores = score_groups(criterion, one.model, one.groups, evidence)
        shapes = {name: tuple(values.shape) for name, values in scores.items()}
        assert shapes == {group.name: group.grid for group in one.groups}
        assert all(bool(torch.isfinite(values).all()) for values in scores.values())
        assert all(float(values.max()) > 0 for values in scores.values())


def test_scores_of_statistics_need_them_and_pass_over_layers_without() -> None:
    toy = weights("unstructured")
    with pytest.raises(ModelError, match="statistics=calibrate"):
        score_units(toy.model, toy.groups, "wanda")
    with pytest.raises(ConfigError, match=r"no criterion 'magnitude'.*obs"):
        score_groups("magnitude", toy.model, toy.groups, Evidence(toy.calibration, dict))
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 5)).double()
    bare = case_of(model, weight_groups(model)[:1], torch.randn(9, 4, 4, 4).double())
    for criterion in ("wanda", "obs"):
        scores = score_groups(criterion, model, bare.groups, Evidence(bare.calibration, dict))
        torch.testing.assert_close(scores["0.weight"], model[0].weight.detach().abs())
    ladders = _ladders(bare)
    assert ladders.predicted_loss("0.weight", 8) == 0.0
    assert least_squares(ladders, {"0.weight": 8}) == {}


# ---- above


@pytest.mark.parametrize("kind", KINDS)
def test_params_are_linear_in_the_kept_units_and_a_dense_kernel_saves_nothing(kind: str) -> None:
    toy = weights(kind)
    costs = CostModel.of(toy.model, toy.inputs, toy.groups)
    orders = rank_units(toy.model, toy.groups)
    for which in (0, -1):
        kept = [group.levels[which] for group in toy.groups]
        small = compact(toy.model, PruningPlan.of_levels(toy.groups, kept, orders))
        assert costs(kept)[1] == sum(int((p != 0).sum()) for p in small.parameters())
        assert costs.effective(kept).tolist() == costs.dense.tolist()
    for number, group in enumerate(toy.groups):
        plans = np.tile(costs.units, (3, 1))
        plans[:, number] = [0, group.units // 2, group.units]
        first, second = np.diff(costs(plans)[:, 1])
        assert first == second == pytest.approx(group.units * group.axes[0].width / 2)


def test_a_task_runs_on_weights_as_on_channels() -> None:
    toy = weights("per_row")
    x = toy.inputs
    assert isinstance(x, Tensor)
    data = [(x, torch.arange(len(x)) % 6)]
    task = PruningTask.from_model(
        toy.model, data, groups=toy.groups, on="params", calibration_samples=20, reward_samples=20
    )
    kept = [group.nearest_level(0.4 * group.units) for group in task.groups]
    assert (
        task.evaluator.measure(tuple(kept)).divergence
        > task.evaluator.measure(tuple(g.units for g in task.groups)).divergence
    )
    assert float(task.costs.ratio(kept, "params")) < 0.5
    plan = task.plan(kept)
    built = compact(toy.model, plan)
    assert sum(int((t == 0).sum()) for n, t in tensors_of(built).items() if "weight" in n) > 0
    assert PruningPlan.from_json(plan.to_json()).kept == plan.kept


@pytest.mark.long
def test_the_bench_measures_every_method_on_a_small_model(tmp_path: Path) -> None:
    _causal("untied").save_pretrained(tmp_path / "model")
    ids = torch.randint(64, (6, 12), generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "tokens.npz", calibration=ids, evaluation=ids[:3])
    config = WeightsConfig(
        str(tmp_path / "model"), str(tmp_path / "tokens.npz"), ("0.25", "0.5"), batch_size=4
    )
    figures = measure(config)
    assert (figures["matrices"], figures["predicted_tokens"]) == (14, 33)
    assert len(figures["rows"]) == 7 * 2 + 6
    by_name = {(r["name"], r["kind"], r["sparsity"]): r for r in figures["rows"]}
    for row in figures["rows"]:
        assert row["removed"] == pytest.approx(row["sparsity"], abs=0.002)
        assert row["perplexity"] != figures["dense_perplexity"]
    for sparsity in (0.25, 0.5):
        magnitude = by_name["magnitude", "unstructured", sparsity]
        assert by_name["OBS, least squares", "unstructured", sparsity]["kl"] < magnitude["kl"]
    text = page({**figures, "settings": settings_of(config)})
    assert "| Wanda | per_row |" in text
    assert "| SparseGPT | sweep |" in text
