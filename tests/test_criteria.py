"""Each criterion against a computation of its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from toys import NAMES, toy

from prune_env.calibration.gradients import loss_gradients
from prune_env.criteria.elementwise import (
    CRITERIA,
    Context,
    Criterion,
    geometric_median,
    score_units,
)
from prune_env.errors import ConfigError, GroupError, ModelError
from prune_env.quality.batches import Batch
from prune_env.structure.groups import Axis, PrunableGroup, Span


class Plain(nn.Module):
    """One tied pair of convolutions, so that a unit lives in two makers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        nn.init.normal_(self.norm.weight)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x) + self.b(x)).relu().mean((2, 3)))


def axis(tensor: str, role: str, size: int = 6, dim: int = 0) -> Axis:
    return Axis(tensor, (dim,), (Span(0, 1),), (size,), role)  # type: ignore[arg-type]


GROUP = PrunableGroup(
    "a",
    (6,),
    (
        axis("a.weight", "out"), axis("b.weight", "out"), axis("a.bias", "shift"),
        axis("norm.weight", "scale"), axis("norm.bias", "shift"), axis("norm.running_var", "stat"),
        axis("head.weight", "in", dim=1),
    ),
)  # fmt: skip


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 4, 3, 8, 8, generator=generator)
    return [Batch(x, torch.arange(4)) for x in images]


def unit_sums(model: Plain, power: float) -> list[float]:
    rows = zip(model.a.weight.detach(), model.b.weight.detach(), strict=True)
    return [
        math.fsum(abs(float(v)) ** power for row in pair for v in row.flatten()) for pair in rows
    ]


def test_norms_sum_over_every_layer_that_makes_the_unit() -> None:
    model = Plain()
    assert score_units(model, [GROUP], "l1")["a"].tolist() == pytest.approx(unit_sums(model, 1))
    assert score_units(model, [GROUP], "l2")["a"].tolist() == pytest.approx(unit_sums(model, 2))
    expected = model.norm.weight.abs().tolist()
    assert score_units(model, [GROUP], "bn_scale")["a"].tolist() == pytest.approx(expected)


def test_gradients_are_the_mean_over_batches() -> None:
    model = Plain().eval()
    everything = [F.cross_entropy(model(b.inputs), b.targets) for b in batches()]  # type: ignore[operator]
    expected = torch.autograd.grad(sum(everything) / 3, list(model.parameters()))  # type: ignore[operator, type-var]
    found = loss_gradients(model, batches())
    assert all(p.grad is None for p in model.parameters())
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert torch.allclose(found[name], gradient, atol=1e-7)
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_taylor_is_the_squared_change_of_the_loss() -> None:
    model = Plain()
    gradients = loss_gradients(model, batches())
    total = torch.zeros(6, dtype=torch.float64)
    for name in ("a.weight", "b.weight", "a.bias", "norm.weight", "norm.bias"):
        product = (model.get_parameter(name) * gradients[name]).detach().double() ** 2
        total += product.reshape(6, -1).sum(1)
    scores = score_units(model, [GROUP], "taylor", gradients=gradients)["a"]
    assert torch.allclose(scores, total, rtol=1e-5)


@pytest.mark.parametrize("gradients", [None, {}])
def test_taylor_without_gradients_says_what_to_pass(gradients: dict[str, Tensor] | None) -> None:
    with pytest.raises(ModelError, match=r"'a.weight'.*loss_gradients\(model, batches\)"):
        score_units(Plain(), [GROUP], "taylor", gradients=gradients)


def test_random_is_repeatable_and_depends_on_the_seed() -> None:
    model = Plain()
    state = torch.random.get_rng_state()
    one, same, other = (score_units(model, [GROUP], "random", seed=s)["a"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


@given(
    seed=st.integers(0, 1000), units=st.integers(3, 9), width=st.integers(1, 5), dim=st.booleans()
)
def test_the_geometric_median_is_the_point_of_least_distance(
    seed: int, units: int, width: int, dim: bool
) -> None:
    """The unit that sits at the median scores lowest, and no step away from m is shorter."""
    generator = torch.Generator().manual_seed(seed)
    # Pairs on opposite sides of one point: that point is the geometric median.
    center = torch.randn(width, generator=generator, dtype=torch.float64)
    away = torch.randn(units, width, generator=generator, dtype=torch.float64) + 0.1
    rows = torch.cat([center + away, center[None], center - 2 * away])
    place = Axis("t", (int(dim),), (Span(0, 1),), (len(rows),))
    context = Context(place, None, torch.Generator())
    scores = geometric_median(rows.T if dim else rows, context)
    assert scores.shape == (rows.T if dim else rows).shape
    per_unit = scores.sum(0) if dim else scores.sum(1)
    assert int(per_unit.argmin()) == units
    assert torch.allclose(per_unit, (rows - center).square().sum(1), atol=1e-3)


def test_the_geometric_median_of_a_vector() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 10.0, 40.0])
    context = Context(Axis("t", (0,), (Span(0, 1),), (5,)), None, torch.Generator())
    assert int(geometric_median(values, context).argmin()) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "geometric_median"])
def test_every_toy_has_finite_scores_in_the_shape_of_the_grid(name: str, criterion: str) -> None:
    case = toy(name)
    scores = score_units(case.model, case.live, criterion)
    assert {g.name: g.grid for g in case.live} == {n: tuple(s.shape) for n, s in scores.items()}
    assert all(s.dtype == torch.float64 and bool((s >= 0).all()) for s in scores.values())


def test_a_criterion_of_ones_own() -> None:
    biggest = Criterion(lambda tensor, context: tensor.clamp(min=0), roles=("in",))
    model = Plain()
    scores = score_units(model, [GROUP], biggest)["a"]
    assert torch.allclose(scores, model.head.weight.detach().double().clamp(min=0).sum(0))


def test_a_group_without_normalisation_has_no_scale() -> None:
    with pytest.raises(GroupError, match=r"'features.2' has no tensor with role scale.*'l1'"):
        score_units(toy("chain").model, toy("chain").live, "bn_scale")


def test_groups_of_another_model_are_refused() -> None:
    with pytest.raises(GroupError, match=r"does not have\. Were the groups found on another model"):
        score_units(toy("chain").model, toy("residual").live)


def test_an_unknown_criterion_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=f"no criterion 'L1'.*{', '.join(CRITERIA)}"):
        score_units(Plain(), [GROUP], "L1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["b.weight", "norm.running_var"])
def test_weights_that_are_not_finite_are_named(tensor: str, value: float) -> None:
    model = Plain()
    model.state_dict()[tensor].view(-1)[1] = value
    with pytest.raises(ModelError, match=f"'{tensor}' holds 1 NaN or infinite"):
        score_units(model, [GROUP])
