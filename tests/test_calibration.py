"""Calibration: the moments are those of a direct computation, whatever the layer or the split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from calibrated import ALL, batch_of, case, columns, split, unfolded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import identical, snapshot
from zoo import Fn, StandardisedConv, TiedWeights, Wrapped, image, tokens

from prune_env.calibration import statistics as module_under_test
from prune_env.calibration.columns import columns_of, flattened, has_columns
from prune_env.calibration.statistics import Calibration, calibrate
from prune_env.errors import DataError, ModelError
from prune_env.fingerprint import digest, fingerprint
from prune_env.structure.discover import find_groups
from prune_env.testing import conv

# An even kernel with "same" pads more behind than in front; PyTorch warns that it copies for that.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "pointwise": (nn.Conv2d(4, 5, 1), (3, 4, 6, 5)),
    "padded": (nn.Conv2d(4, 5, 3, padding=1), (3, 4, 6, 5)),
    "strided": (nn.Conv2d(4, 5, 3, stride=2, padding=1), (3, 4, 7, 6)),
    "dilated": (nn.Conv2d(4, 5, 3, dilation=2, padding=2), (3, 4, 7, 6)),
    "oblong": (nn.Conv2d(4, 5, (1, 5), (1, 2), (0, 2), (2, 1)), (3, 4, 7, 6)),
    "same": (nn.Conv2d(4, 5, 4, padding="same"), (3, 4, 7, 6)),
    "valid": (nn.Conv2d(4, 5, 3, padding="valid"), (3, 4, 7, 6)),
    "reflected": (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), (3, 4, 7, 6)),
    "circular": (nn.Conv2d(4, 5, 3, padding=2, padding_mode="circular"), (3, 4, 7, 6)),
    "one_d": (nn.Conv1d(4, 5, 3, 2, 1), (3, 4, 9)),
    "three_d": (nn.Conv3d(2, 5, (1, 2, 3), (1, 2, 1), (0, 1, 1)), (3, 2, 4, 5, 4)),
    "linear": (nn.Linear(6, 5), (3, 6)),
    "channels_last": (nn.Linear(6, 5), (3, 4, 2, 6)),
}


def _drawn(name: str, positions: int | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Columns that were drawn, and all columns, of a layer on random input."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = columns_of(layer, x, positions, torch.Generator().manual_seed(seed))
    return found[:, flattened(layer)], unfolded(layer, x)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_columns_times_the_weight_are_the_output(name: str) -> None:
    found, wanted = _drawn(name, None)
    assert torch.equal(found, wanted)
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    columns_ND = columns_of(layer, x, None, torch.Generator())[:, flattened(layer)]
    output = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    again = columns_ND @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(again, output.reshape(again.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "channels_last"])
def test_every_token_of_a_linear_layer_counts(name: str) -> None:
    found, everything = _drawn(name, 1)
    assert torch.equal(found, everything)


CONVOLUTIONS = [n for n, (layer, _) in sorted(LAYERS.items()) if not isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_drawn_positions_are_distinct_and_counted(name: str) -> None:
    _, everything = _drawn(name, None)
    samples = LAYERS[name][1][0]
    for positions in (1, 3, len(everything)):
        found, _ = _drawn(name, positions)
        assert len(found) == samples * min(positions, len(everything) // samples)
        rows, available = (Counter(map(tuple, t.tolist())) for t in (found, everything))
        assert rows <= available


@pytest.mark.parametrize("name", ["padded", "strided"])
def test_the_draw_of_positions_is_unbiased(name: str) -> None:
    _, everything = _drawn(name, None)
    means = torch.stack([_drawn(name, 2, seed)[0].mean(0) for seed in range(600)])
    error = (means.mean(0) - everything.mean(0)) / (means.std(0) / 600**0.5 + 1e-12)
    assert float(error.abs().max()) < 4.5  # standard errors, over at most 36 columns


@pytest.mark.parametrize("name", ALL)
def test_moments_are_those_of_all_columns(name: str) -> None:
    toy = case(name)
    assert toy.calibration.samples == 24
    for tensor, moments in toy.calibration.moments.items():
        columns_ND = columns(toy, tensor)
        assert moments.tensor == tensor
        assert moments.count == len(columns_ND)
        second_DD = columns_ND.T @ columns_ND / len(columns_ND)
        torch.testing.assert_close(moments.mean_D, columns_ND.mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moments.second_DD, second_DD, rtol=1e-9, atol=1e-12)
        covariance_DD = torch.cov(columns_ND.T, correction=0).reshape(second_DD.shape)
        torch.testing.assert_close(moments.covariance_DD, covariance_DD, rtol=1e-9, atol=1e-11)


def test_every_kind_of_consumer_is_there() -> None:
    """What is followed on the toys: all `in` axes but grouped convolutions and their like."""
    left_out = set()
    for name in ALL:
        axes = {a.tensor for g in case(name).groups for a in g.axes if a.role == "in"}
        missing = axes - case(name).calibration.moments.keys()
        assert {t for t in axes if t not in missing} == case(name).calibration.moments.keys()
        left_out |= {(name, tensor) for tensor in missing}
    for name, tensor in left_out:
        assert case(name).model.get_submodule(tensor.removesuffix(".weight")).groups > 1


@given(first=st.integers(1, 12), second=st.integers(1, 12))
@settings(max_examples=8)
def test_the_split_into_batches_does_not_matter(first: int, second: int) -> None:
    toy = case("residual")
    again = calibrate(
        toy.model, split(toy.inputs, first, second), toy.groups, positions=None, seed=1
    )
    assert again.moments.keys() == toy.calibration.moments.keys()
    for name, moments in again.moments.items():
        other = toy.calibration.moments[name]
        assert (moments.count, moments.norm) == (other.count, other.norm)
        torch.testing.assert_close(moments.mean_D, other.mean_D)
        torch.testing.assert_close(moments.covariance_DD, other.covariance_DD)


def test_memory_is_reported_and_does_not_grow_with_samples() -> None:
    toy = case("chain")
    wanted = sum(
        8 * (m.mean_D.numel() ** 2 + m.mean_D.numel()) for m in toy.calibration.moments.values()
    )
    few = calibrate(toy.model, split(toy.inputs, 3)[:1], toy.groups)
    assert few.bytes == toy.calibration.bytes == wanted
    assert few.samples == 3


def test_the_model_is_left_alone_and_the_seed_is_all_that_counts() -> None:
    toy = case("residual")
    before, state = snapshot(toy.model), torch.get_rng_state()
    first, second, third = (
        calibrate(toy.model, split(toy.inputs, 10), toy.groups, positions=5, seed=seed)
        for seed in (3, 3, 4)
    )
    assert identical(before, snapshot(toy.model))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.model.modules())
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert first.model == fingerprint(toy.model)


@pytest.mark.long
def test_single_precision_keeps_a_small_variance_beside_a_large_mean() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) + 3000.0
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))
        model[0].bias.zero_()
    groups = find_groups(model, x[:2])
    moments = calibrate(model, split(x, 10), groups).moments["1.weight"]
    exact = torch.cov(x.double().T, correction=0)
    # With E[x xT] in float32 the error would be 3000^2 * 1e-7, as large as the variance.
    torch.testing.assert_close(moments.covariance_DD, exact, rtol=1e-3, atol=1e-3)


# ---- BatchNorm behind a consumer


class _Behind(nn.Module):
    """Two convolutions of one group's units and a norm used as `form` says."""

    def __init__(self, form: Callable[[nn.Module, Tensor], Tensor], **norm: bool) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.norm, self.head, self.form = nn.BatchNorm2d(6, **norm), nn.Linear(6, 5), form

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.form(self, self.stem(x)).mean((2, 3)))


FORMS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str | None]] = {
    "behind": (lambda m, x: m.norm(m.a(x)) + m.b(x), "norm"),
    "twice": (lambda m, x: m.norm(m.a(x)) + m.norm(m.a(2 * x)), "norm"),
    "read_elsewhere": (lambda m, x: (lambda y: m.norm(y) + y)(m.a(x)), None),
    "changed_in_place": (lambda m, x: m.norm(m.a(x).relu_()), None),
    "shared": (lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x)), None),
    "also_of_another_value": (lambda m, x: m.norm(m.a(x)) + m.norm(x[:, :6]), None),
    "once_without": (lambda m, x: m.norm(m.a(x)) + m.a(2 * x), None),
    "not_directly": (lambda m, x: m.norm(m.a(x) + m.b(x)), None),
}


def _norm_of_a(model: nn.Module) -> str | None:
    groups = [g for g in find_groups(model.eval(), image()) if g.name.startswith("stem")]
    return calibrate(model, [batch_of(image(8))], groups).moments["a.weight"].norm


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_norm_takes_the_shift_only_if_all_of_the_output_goes_through_it(name: str) -> None:
    form, norm = FORMS[name]
    assert _norm_of_a(_Behind(form)) == norm


def test_a_norm_without_statistics_takes_nothing() -> None:
    form, _ = FORMS["behind"]
    assert _norm_of_a(_Behind(form, track_running_stats=False)) is None


# ---- what is not followed, and bad input


def test_layers_that_do_more_than_multiply_are_not_followed() -> None:
    assert not has_columns(StandardisedConv(8, 8, 3))
    assert not has_columns(nn.Conv2d(8, 8, 3, groups=2))
    assert not has_columns(nn.ConvTranspose2d(8, 8, 3))
    assert not has_columns(nn.Bilinear(2, 2, 2))


def test_weights_of_two_layers_are_not_followed() -> None:
    """The embedding's matrix must not change because the output layer reads fewer units."""
    model = TiedWeights().eval()
    groups = find_groups(model, tokens())
    found = calibrate(model, [batch_of(tokens())], groups)
    assert "down.weight" in found.moments
    assert not any(model.get_parameter(name) is model.embed.weight for name in found.moments)


def test_a_consumer_too_wide_is_read_in_blocks_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = case("chain")
    monkeypatch.setattr(module_under_test, "MAX_COLUMNS", 90)
    with pytest.warns(RuntimeWarning, match="'hidden' has 96 input columns") as caught:
        found = calibrate(toy.model, [batch_of(toy.inputs)], toy.groups, positions=None)
    assert len(caught) == 1
    assert toy.calibration.moments.keys() == found.moments.keys()
    whole, cut = (c.moments["hidden.weight"] for c in (toy.calibration, found))
    assert len(whole.parts) == 1 < len(cut.parts)
    columns_D = torch.cat([part.columns_D for part in cut.parts])
    assert torch.equal(columns_D.sort().values, torch.arange(96))
    torch.testing.assert_close(cut.mean_D, whole.mean_D)
    for part in cut.parts:
        assert len(part.columns_D) <= 90
        wanted_DD = whole.covariance_DD[part.columns_D][:, part.columns_D]
        torch.testing.assert_close(part.covariance_DD, wanted_DD)


def test_no_batches() -> None:
    with pytest.raises(DataError, match="no batches"):
        calibrate(case("chain").model, [], case("chain").groups)


@pytest.mark.parametrize(
    ("what", "value"), [("bias", torch.nan), ("bias", torch.inf), ("weight", 1e30)]
)
def test_broken_activations_name_the_layer(what: str, value: float) -> None:
    model = Wrapped(Fn(lambda m, x: m.b(m.a(x)), a=conv(8, 6), b=nn.Conv2d(6, 8, 1))).eval()
    groups = find_groups(model, image())
    model.get_parameter(f"middle.a.1.{what}").data[3] = value
    with pytest.raises(ModelError, match=re.escape("'middle.b'")):
        calibrate(model, [batch_of(image(6))], groups, positions=2)


def test_a_single_broken_position_is_seen_even_if_it_is_not_drawn() -> None:
    def poison(m: nn.Module, x: Tensor) -> Tensor:
        x = x.clone()
        x[-1, 2, 5, 5] = torch.nan if len(x) == 6 else x[-1, 2, 5, 5]
        return m.b(x)

    model = Wrapped(Fn(poison, b=nn.Conv2d(8, 8, 1))).eval()
    groups = find_groups(model, image())
    with pytest.raises(ModelError, match=re.escape("'middle.b'")):
        calibrate(model, [batch_of(image(6))], groups, positions=1)


def test_constant_and_zero_inputs_have_no_covariance() -> None:
    model = Wrapped(nn.Conv2d(8, 8, 1)).eval()
    groups = find_groups(model, image())
    for value in (0.0, 5000.0):
        x = torch.full((6, 3, 8, 8), value)
        moments = calibrate(model, [batch_of(x)] * 2, groups).moments["head.weight"]
        assert float(moments.covariance_DD.abs().max()) <= 1e-9 * (1 + value) ** 2


# ---- fingerprints


def test_a_digest_sees_names_shapes_kinds_and_bits() -> None:
    plain = torch.tensor([1.0, 2.0, 3.0, 4.0])
    others = [
        {"b": plain},
        {"a": plain.reshape(2, 2)},
        {"a": plain.double()},
        {"a": torch.tensor([1.0, 2.0, 3.0, 4.0 + 5e-7])},
        {"a": plain, "c": torch.zeros(())},
        {"a": plain.bfloat16()},
    ]
    assert len({digest(one) for one in [{"a": plain}, *others]}) == 7
    assert digest({"a": plain, "b": plain}) == digest({"b": plain.clone(), "a": plain})


def test_a_count_of_calls_does_not_change_the_fingerprint() -> None:
    model = conv(3, 4)
    before = fingerprint(model)
    model[1].num_batches_tracked += 3
    assert fingerprint(model) == before
    model[1].running_mean += 1
    assert fingerprint(model) != before


def test_an_empty_calibration_has_no_bytes() -> None:
    assert Calibration({}, 0, "").bytes == 0
