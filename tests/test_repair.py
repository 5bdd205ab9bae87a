"""BatchNorm re-estimation: the statistics of the data, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import identical, snapshot

from prune_env.errors import ConfigError, DataError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.quality.batches import Batch
from prune_env.repair.repairs import Repair, reestimate_batchnorm, repair_named
from prune_env.structure.discover import find_groups
from prune_env.testing import toy_inputs, toy_model


def batches(count: int = 3, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, size, 3, 8, 8, generator=generator)
    return [Batch(image, torch.zeros(size, dtype=torch.int64)) for image in images]


def first_features(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.get_submodule("stem.0")(batch.inputs).transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_the_plain_average_over_batches(count: int) -> None:
    model = toy_model("residual")
    norm = model.get_submodule("stem.1")
    reestimate_batchnorm(model, batches(count))
    features = [first_features(model, batch) for batch in batches(count)]
    mean = torch.stack([f.mean(1) for f in features]).mean(0)
    var = torch.stack([f.var(1) for f in features]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, var, atol=1e-5)  # type: ignore[arg-type]


def test_later_layers_see_batch_statistics_of_the_data() -> None:
    """Once repaired, a network normalises its own calibration batch to mean 0 and variance 1."""
    model = toy_model("residual")
    only = batches(1)
    reestimate_batchnorm(model, only)
    seen = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen[module] = (out.transpose(0, 1).flatten(1), module.weight, module.bias)

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(keep) for norm in norms]
    with torch.no_grad():
        model(only[0].inputs)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(norms) == 3
    for values, weight, bias in seen.values():
        assert torch.allclose(values.mean(1), bias, atol=5e-3)
        assert torch.allclose(values.std(1), weight.abs(), rtol=1e-2)


def test_only_statistics_change() -> None:
    model = toy_model("residual").train()
    model.get_submodule("b1").eval()
    momenta = [0.1, None, 0.3]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    modes = [module.training for module in model.modules()]
    before = {name: p.clone() for name, p in model.named_parameters()}
    reestimate_batchnorm(model, batches())
    assert [norm.momentum for norm in norms] == momenta
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_dropout_stays_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    reestimate_batchnorm(model, batches(1))
    features = model[1](batches(1)[0].inputs).transpose(0, 1).flatten(1)
    assert torch.allclose(model[2].running_mean, features.mean(1), atol=1e-6)  # type: ignore[arg-type]


def test_repeating_gives_the_same() -> None:
    model = compact_half()
    reestimate_batchnorm(model, batches())
    once = snapshot(model)
    reestimate_batchnorm(model, batches())
    assert identical(once, snapshot(model))


def compact_half() -> nn.Module:
    model = toy_model("residual")
    groups = find_groups(model, toy_inputs("residual"))
    return compact(model, PruningPlan.uniform(model, groups, 0.5))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(3, track_running_stats=False)])
def test_without_statistics_nothing_happens(norm: nn.Module) -> None:
    model = nn.Sequential(norm, nn.Conv2d(3, 4, 1)).train()
    before = snapshot(model)
    reestimate_batchnorm(model, batches())
    assert identical(before, snapshot(model))
    assert all(module.training for module in model.modules())


def test_a_failure_leaves_the_statistics_as_they_were() -> None:
    model = toy_model("residual")
    before = snapshot(model)
    wrong = Batch(torch.randn(2, 5, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, [*batches(), wrong])
    with pytest.raises(DataError, match="no batches"):
        reestimate_batchnorm(model, [])
    assert identical(before, snapshot(model))
    assert all(not module.training for module in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_repairs_by_name() -> None:
    assert repair_named("batchnorm") == Repair(finish=reestimate_batchnorm)
    model = toy_model("residual")
    before = snapshot(model)
    repair_named("none").finish(model, batches())
    assert repair_named("none") == Repair()
    assert identical(before, snapshot(model))
    with pytest.raises(ConfigError, match=r"no repair 'bn'\. Choose one of least_squares"):
        repair_named("bn")


def test_a_last_batch_of_one_is_left_out_where_it_has_no_spread() -> None:
    """BatchNorm1d cannot take one sample; the statistics are those of the other batches."""
    torch.manual_seed(0)
    found: list[Tensor] = []
    x = torch.randn(9, 4)
    for parts in ((x[:4], x[4:8], x[8:]), (x[:4], x[4:8])):
        model: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        model[0].weight.copy_(torch.arange(12.0).reshape(3, 4))
        model[0].bias.zero_()
        data = [Batch(part, torch.zeros(len(part), dtype=torch.int64)) for part in parts]
        reestimate_batchnorm(model, data)
        found.append(model[1].running_mean)
    assert torch.equal(*found)
    with pytest.raises(DataError, match="BatchNorm needs two"):
        reestimate_batchnorm(model, [Batch(x[:1], torch.zeros(1, dtype=torch.int64))])
