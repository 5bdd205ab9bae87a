"""Discovery: what is found in every toy, that nothing makes it crash, that it can say no."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace

import pytest
import torch
from hub import HUB
from torch import nn
from towers import TwoTowers
from toys import (
    NAMES,
    close,
    counted_macs,
    counted_size,
    identical,
    outputs,
    snapshot,
    toy,
    unaccounted,
)
from zoo import NASTY, Wrapped, image

from prune_env.costs.model import CostModel
from prune_env.costs.table import format_groups, prunable_share
from prune_env.errors import ModelError
from prune_env.plan.cut import compact, masked
from prune_env.plan.plan import PruningPlan
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup, Table
from prune_env.structure.inputs import Inputs
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.scenes import Scene
from prune_env.structure.verify import verify
from prune_env.testing import TOYS, toy_inputs, toy_model

OUTPUT = "tied to the output"
SHORTCUT = "zero-padded shortcut"
NORMALISED = "normalised across units (LayerNorm)"

FOUND: dict[str, dict[str, tuple[int, str]]] = {
    "chain": {"features.0.0": (8, ""), "features.2": (6, ""), "hidden": (12, "")},
    "residual": {"stem.0": (8, ""), "a1.0": (6, ""), "shortcut": (12, ""), "b1.0": (10, "")},
    "padded_shortcut": {"stem.0": (8, SHORTCUT), "a1.0": (12, ""), "a2": (16, SHORTCUT)},
    "depthwise_concat": {
        "stem.0": (8, ""), "pointwise.0": (6, ""), "plain.0": (4, ""), "mix.0": (10, ""),
    },
    "grouped": {"stem.0": (8, ""), "narrow.0": (6, "")},
    "squeeze_excite": {"stem.0": (8, ""), "expand.0": (16, ""), "squeeze": (4, "")},
    "channel_shuffle": {"stem.0": (8, ""), "branch.0.0": (12, ""), "mix.0": (10, "")},
    "grouped_shuffle": {"stem.0": (4, ""), "first.0": (4, "")},
    "pixel_shuffle": {"features.0": (8, ""), "widen": (6, "")},
    "last_channels": {"stem": (8, NORMALISED), "up": (20, "")},
    "two_inputs": {"extra": (8, ""), "mix.0": (6, "")},
}  # fmt: skip
"""Units and reason per group; the last layer, tied to the output, is in every toy."""

NASTY_FOUND: dict[str, dict[str, tuple[int, str]]] = {
    "tied_weights": {"up": (12, ""), "embed:0": (8, ""), "embed:1": (11, OUTPUT)},
    "shared_layer": {"stem.0": (8, ""), "after.0": (6, "")},
    "attention": {"stem.0": (8, ""), "middle.attend.in_proj": (2, ""), "middle.mlp": (8, "")},
    "recurrent": {"stem": (8, "unknown op")},
    "in_place": {"stem.0": (8, "")},
    "standardised": {"stem.0": (8, "weights computed on the fly")},
    "weight_norm": {"stem.0": (8, "weights computed on the fly")},
    "hard_coded_view": {"stem.0": (8, ""), "middle.a": (8, "compact network fails: shape '[2, 8,")},
    "tuple": {"stem.0": (8, ""), "mix.0": (6, OUTPUT)},
    "dict": {"stem.0": (8, ""), "mix.0": (6, OUTPUT)},
    "dataclass": {"stem.0": (8, ""), "mix.0": (6, OUTPUT)},
    "nested_dataclass": {"stem.0": (8, ""), "mix.0": (6, OUTPUT)},
    "one_d": {"0": (6, ""), "4": (8, "")},
    "three_d": {"0": (6, ""), "4": (8, "")},
    "transposed": {"0": (6, ""), "3": (8, ""), "6": (3, OUTPUT)},
    "grouped_transposed": {"stem.0": (8, "grouped transposed convolution"), "middle.1": (8, "")},
    "computed_kernel": {"stem.0": (8, "weights computed on the fly")},
    "checkpointed": {"stem.0": (8, ""), "middle.a.0.0": (6, ""), "middle.a.1": (8, "")},
    "buffers": {"stem.0": (8, "")},
    "group_norm": {"middle.0": (8, "normalised across units (GroupNorm)")},
    "instance_norm": {"middle.0": (6, "")},
    "instance_norm_stats": {"middle.0": (6, "")},
    "prelu": {"middle.0": (6, "")},
    "depth_multiplier": {"stem.0": (8, "")},
    "depth_divider": {"stem.0": (4, "")},
    "channel_attention": {"middle.mlp.0": (4, "")},
    "non_local": {"stem.0": (8, ""), "middle.v": (6, "positions mixed within units")},
    "token_mixer": {"stem.0": (8, "positions mixed within units"), "middle.channels": (8, "")},
    "extra_state": {"stem.0": (8, ""), "middle.conv": (8, "")},
    "multi_scale": {"middle.down": (12, ""), "middle.up": (6, ""), "middle.same": (6, "")},
    "space_to_depth": {"middle.b.0": (6, "")},
    "maxout": {"middle.a": (8, "")},
    "gated": {"middle.a": (6, "")},
    "gather": {"stem.0": (8, "taken by a fixed number")},
    "l2_normalised": {"stem.0": (8, "reduced across units")},
    "output_is_input": {},
    "no_parameters": {},
    "single_conv": {"model": (4, OUTPUT)},
    "inference_mode": {"stem.0": (8, ""), "middle.a.0": (8, "")},
    "blur_pool": {"stem.0": (8, "")},
}


def live_of(groups: tuple[PrunableGroup, ...]) -> tuple[PrunableGroup, ...]:
    return tuple(group for group in groups if not group.frozen)


def random_plan(groups: tuple[PrunableGroup, ...], seed: int) -> PruningPlan:
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        count = int(torch.randint(max(1, group.units // 4), group.units, (), generator=generator))
        kept[group.name] = tuple(
            sorted(torch.randperm(group.units, generator=generator)[:count].tolist())
        )
    return PruningPlan(groups, kept)  # fmt: skip


def obeys_the_laws(model: nn.Module, inputs: Inputs, groups: tuple[PrunableGroup, ...]) -> None:
    """Laws 1 and 4 for one random plan, in the model's own precision."""
    plan = random_plan(groups, seed=1)
    small = compact(model, plan)
    with masked(model, plan):
        zeroed = outputs(model, inputs)
    assert close(zeroed, outputs(small, inputs), 1e-4)
    costs = CostModel.of(model, inputs, groups)
    macs, params, size = costs([plan.levels[name] for name in costs.names])
    assert macs == counted_macs(small, inputs)
    assert (params, size) == counted_size(small)


@pytest.mark.parametrize("name", NAMES)
def test_every_toy_has_the_groups_it_should(name: str) -> None:
    groups = toy(name).groups
    found = {group.name: (group.units, group.frozen) for group in groups}
    head = next(iter(set(found) - set(FOUND[name])))
    assert found.pop(head)[1] == OUTPUT
    assert found == FOUND[name]
    assert all(group.verified == (not group.frozen) for group in groups)


def test_every_toy_is_covered() -> None:
    assert set(FOUND) == set(TOYS)


def test_the_coupling_of_a_residual_stream_is_complete() -> None:
    stem = toy("residual").groups[0]
    places = {(axis.tensor, axis.dims, axis.role) for axis in stem.axes}
    assert places == {
        ("stem.0.weight", (0,), "out"), ("stem.1.weight", (0,), "scale"),
        ("stem.1.bias", (0,), "shift"), ("stem.1.running_mean", (0,), "stat"),
        ("stem.1.running_var", (0,), "stat"), ("a1.0.weight", (1,), "in"),
        ("a2.weight", (0,), "out"), ("a2.bias", (0,), "shift"),
        ("b1.0.weight", (1,), "in"), ("shortcut.weight", (1,), "in"),
    }  # fmt: skip


def test_a_flattened_channel_owns_its_pixels() -> None:
    group = next(group for group in toy("chain").groups if group.name == "features.2")
    widths = {axis.tensor: axis.width for axis in group.axes}
    assert widths == {"features.2.weight": 1, "features.2.bias": 1, "hidden.weight": 16}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", sorted(NASTY))
def test_discovery_survives_and_leaves_the_model_alone(name: str, training: bool) -> None:
    torch.manual_seed(0)
    factory, inputs_of = NASTY[name]
    model, inputs = factory().train(training), inputs_of()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, held = snapshot_of(model), [id(t) for t in tensors_of(model).values()]
    groups = find_groups(model, inputs)
    assert identical(before, snapshot_of(model))
    assert held == [id(t) for t in tensors_of(model).values()]
    assert all(module.training == training for module in model.modules())
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    found = {group.name: group for group in groups}
    for layer, (units, reason) in NASTY_FOUND.get(name, {}).items():
        assert found[layer].units == units
        assert found[layer].frozen.startswith(reason)
        assert bool(found[layer].frozen) == bool(reason)
    assert all(group.verified == (not group.frozen) for group in groups)
    if not training and live_of(groups):
        obeys_the_laws(model, inputs, live_of(groups))
    text = format_groups(groups, CostModel.of(model, inputs, live_of(groups)))
    assert f"{len(live_of(groups))} of {len(groups)} groups prunable" in text


def snapshot_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def test_every_expectation_names_a_network() -> None:
    assert set(NASTY_FOUND) <= set(NASTY)


@pytest.mark.parametrize("name", NAMES)
def test_verification_refuses_a_shifted_axis(name: str) -> None:
    """A group whose reader is off by one unit is frozen, with what was seen."""
    case = toy(name)
    for group in case.live:
        number = next(n for n, axis in enumerate(group.axes) if axis.role == "in")
        axis = group.axes[number]
        owners = axis.owners(group.grid)[0]
        rows = [tuple((owners == u).nonzero()[:, 0].tolist()) for u in range(group.units)]
        wrong = replace(axis, index=(Table((*rows[1:], rows[0])),))
        axes = (*group.axes[:number], wrong, *group.axes[number + 1 :])
        (judged,) = verify(
            case.model, [Scene(case.inputs)], [replace(group, axes=axes, verified=False)]
        )
        assert not judged.verified
        assert judged.frozen.startswith("masked and compact differ by")


def test_verification_blames_the_wrong_group_and_not_its_neighbours() -> None:
    case = toy("residual")
    groups = list(case.groups)
    number = next(n for n, group in enumerate(groups) if group.name == "b1.0")
    norm = {"b1.1.weight", "b1.1.bias"}
    fewer = tuple(axis for axis in groups[number].axes if axis.tensor not in norm)
    groups[number] = replace(groups[number], axes=fewer)
    judged = verify(
        case.model, [Scene(case.inputs)], [replace(group, verified=False) for group in groups]
    )
    assert {group.name for group in judged if group.frozen} == {"b1.0", "head"}
    assert judged[number].frozen.startswith("compact network fails")


def test_a_fresh_layer_scale_cannot_hide_a_mistake() -> None:
    """Outputs of a 1e-6 branch differ by nothing; the disturbed copy shows it."""
    case = toy("last_channels")
    group = case.live[0]
    number = next(n for n, axis in enumerate(group.axes) if axis.role == "in")
    rows = tuple(((u + 1) % 20,) for u in range(20))
    wrong = replace(group.axes[number], index=(Table(rows),))
    axes = (*group.axes[:number], wrong, *group.axes[number + 1 :])
    assert verify(case.model, [Scene(case.inputs)], [replace(group, axes=axes)])[0].frozen


def test_a_dead_channel_is_no_reason_to_freeze() -> None:
    """A trained network may have a running variance of exactly 0."""
    model = toy_model("residual")
    norm = model.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_var[:3] = 0.0  # type: ignore[index]
    groups = find_groups(model, toy_inputs("residual"))
    assert [group.name for group in groups if group.frozen] == ["head"]


@pytest.mark.long
def test_seeds_and_batch_sizes_do_not_matter() -> None:
    for name in NAMES:
        again = find_groups(toy_model(name, seed=5), toy_inputs(name, batch=1), seed=9)
        assert again == toy(name).groups


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    find_groups(toy("residual").model, toy("residual").inputs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_discovery_works_where_gradients_are_off() -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = find_groups(toy_model("grouped"), toy_inputs("grouped"))
        assert found == toy("grouped").groups


def test_a_model_that_does_not_run_says_so() -> None:
    with pytest.raises(ModelError, match=r"does not run on the example inputs.*Give one batch"):
        find_groups(toy_model("chain"), torch.randn(2, 5, 8, 8))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's own, of the old weight_norm
def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = Wrapped(nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1)))
    model(image())
    with pytest.raises(ModelError, match=r"old weight_norm.*remove_weight_norm"):
        find_groups(model, image())


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
@pytest.mark.parametrize("name", sorted(HUB))
def test_model_zoo(name: str) -> None:
    """Networks that nobody here wrote: nearly everything is found, verified, and compact runs."""
    hub = HUB[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        model = hub.make()
    inputs = torch.randn(2, 3, hub.size, hub.size, generator=torch.Generator().manual_seed(0))
    before = snapshot(model)
    groups = find_groups(model, inputs)
    assert identical(before, snapshot(model))
    live = live_of(groups)
    assert all(group.verified for group in live)
    assert prunable_share(CostModel.of(model, inputs, live)) >= hub.share
    if live:
        obeys_the_laws(model, inputs, live)


def test_a_single_number_that_is_returned_is_no_unit() -> None:
    """As CLIP returns the scale of its products."""
    model = TwoTowers().eval()
    groups = find_groups(model, (torch.randn(4, 12), torch.randn(4, 6)))
    assert [(g.name, g.units) for g in groups if not g.frozen] == [("image.0", 32), ("text.0", 32)]
    assert not unaccounted(model, groups)
