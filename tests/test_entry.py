"""Models at the border: what cannot be cut is refused everywhere, with its true cause."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from prune_env import (
    FinetuneSettings,
    PruningPlan,
    PruningTask,
    apply,
    compact,
    find_groups,
    finetune,
    save,
)
from prune_env.errors import GroupError, ModelError, PlanError
from prune_env.plan.cut import masked

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.arange(4))] * 4
SHORT = {"calibration_samples": 8, "reward_samples": 8, "repair_samples": 8}


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(network())  # type: ignore[no-any-return]


def partly_scripted() -> nn.Module:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[0] = torch.jit.script(model[0])
    return model  # type: ignore[no-any-return]


def still_masked() -> nn.Module:
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def old_norm(name: str) -> nn.Module:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(nn.utils, name)(model[0])
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return network()


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(5))


def sparse() -> nn.Module:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[3].weight = nn.Parameter(model[3].weight.detach().to_sparse_csr())
    return model


def locked() -> nn.Module:
    model = network()
    model.lock = threading.Lock()
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "script": (scripted, "the model .* is TorchScript.*give the nn.Module"),
    "part of it": (partly_scripted, "module '0' is TorchScript"),
    "masks": (still_masked, r"module '0' still carries masks.*prune.remove\(module, 'weight'\)"),
    "weight_norm": (lambda: old_norm("weight_norm"), r"module '0'.*remove_weight_norm\(module\)"),
    "spectral_norm": (lambda: old_norm("spectral_norm"), "remove_spectral_norm"),
    "lazy": (lazy, "'0.weight' has no shape yet"),
    "sparse": (sparse, "'3.weight' is stored sparse"),
    "state dict": (lambda: network().state_dict(), "OrderedDict.*load_state_dict"),
    "class": (lambda: nn.Linear, r"the class Linear is no network.*Linear\(\.\.\.\)"),
    "path": (lambda: "model.pt", "'str' is no network"),
    "nothing": (lambda: None, "'NoneType' is no network"),
}


@functools.cache
def plan() -> PruningPlan:
    model = network()
    return PruningPlan.uniform(model, find_groups(model, X), 0.5)


def masked_once(model: Any) -> None:
    with masked(model, plan()):
        pass


DOORS: dict[str, Callable[[Any], object]] = {
    "find_groups": lambda model: find_groups(model, X),
    "task": lambda model: PruningTask.from_model(model, DATA, **SHORT),
    "finetune": lambda model: finetune(model, DATA, DATA, settings=FinetuneSettings(epochs=0)),
    "apply": lambda model: apply(plan(), model, DATA),
    "save": lambda model: save("never-made", model, plan()),
    "compact": lambda model: compact(model, plan()),
    "masked": masked_once,
    "uniform": lambda model: PruningPlan.uniform(model, plan().groups, 0.5),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_cut_is_refused_at_every_door(kind: str, door: str) -> None:
    make, says = REFUSED[kind]
    with pytest.raises(ModelError, match=says):
        DOORS[door](make())


@pytest.mark.parametrize("door", ["task", "finetune", "uniform"])
def test_a_network_without_numbers_is_refused_where_they_are_needed(door: str) -> None:
    with pytest.raises(ModelError, match=r"'0.weight' is on the meta device"):
        DOORS[door](on_meta())


@pytest.mark.parametrize("door", ["find_groups", "task", "finetune"])
def test_what_cannot_be_copied_says_why(door: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be copied: cannot pickle .*lock.*__deepcopy__"):
        DOORS[door](locked())


@pytest.mark.parametrize("door", ["find_groups", "task", "finetune"])
def test_weights_and_inputs_of_two_types_are_named(door: str) -> None:
    with pytest.raises(ModelError, match=r"weights are float16, the inputs float32: call"):
        DOORS[door](network().half())


def test_half_precision_is_pruned_as_it_is() -> None:
    data = [(x.half(), y) for x, y in DATA]
    task = PruningTask.from_model(network().half(), data, **SHORT)
    small = task.network(task.decode([0.0] * task.length))
    assert {p.dtype for p in small.parameters()} == {torch.float16}


def test_parametrized_layers_stay_whole() -> None:
    model = network()
    parametrizations.weight_norm(model[0])
    assert not any("0.weight" in axis.tensor for g in find_groups(model, X) for axis in g.axes)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_plan_of_the_module_inside_says_so(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(network())
    assert [g for g in find_groups(wrapped, X) if not g.frozen]
    with pytest.raises(PlanError, match=r"give the module inside the wrapper"):
        compact(wrapped, plan())
    with pytest.raises(GroupError, match=r"Nearest: (module|_orig_mod)\.0"):
        PruningTask.from_model(wrapped, DATA, ignore=["0"], **SHORT)


def test_a_last_batch_of_one_names_drop_last() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)) for n in (4, 1)]
    with pytest.raises(ModelError, match="drop_last=True"):
        finetune(model, data, data, settings=FinetuneSettings(epochs=1))
