"""Toys as the law tests use them: float64, discovered once, with random plans over their groups."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prune_env.costs.model import METRICS, CostModel
from prune_env.criteria.elementwise import score_units
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.task import PruningTask
from prune_env.plan.plan import PruningPlan
from prune_env.quality.evaluators import Metrics
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, call_model, map_tensors
from prune_env.structure.options import constrain
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.trace import tensors_in
from prune_env.testing import TOYS, toy_inputs, toy_model

NAMES = sorted(TOYS)


@dataclass(frozen=True)
class Toy:
    model: nn.Module
    inputs: Inputs
    groups: tuple[PrunableGroup, ...]

    @property
    def live(self) -> tuple[PrunableGroup, ...]:
        return tuple(group for group in self.groups if not group.frozen)


@cache
def toy(name: str) -> Toy:
    """A toy in float64 with all its groups; do not change it."""
    model = toy_model(name).double()
    inputs = map_tensors(Tensor.double, toy_inputs(name))
    return Toy(model, inputs, find_groups(model, inputs))


def units_of(group: PrunableGroup) -> st.SearchStrategy[tuple[int, ...]]:
    """A random set of at least `min_keep` units."""
    numbers = st.sets(st.integers(0, group.units - 1), min_size=max(1, group.min_keep))
    return numbers.map(lambda found: tuple(sorted(found)))


def plans(groups: tuple[PrunableGroup, ...]) -> st.SearchStrategy[PruningPlan]:
    """Random keep sets for every group."""
    kept = st.fixed_dictionaries({group.name: units_of(group) for group in groups})
    return kept.map(lambda units: PruningPlan(groups, units))


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(call_model(model, inputs))


def close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-9) -> bool:
    """Same shapes, and values that differ by rounding alone."""
    pairs = list(zip(first, second, strict=True))
    return all(
        a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs().max())).all())
        for a, b in pairs
    )


def identical(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Two state_dicts with the same bits."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def counted_macs(model: nn.Module, inputs: Inputs) -> float:
    """MACs per sample as PyTorch counts them (its attention kernels count as nothing but MATH)."""
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            call_model(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    samples = next(t.shape[0] for t in tensors_in(inputs))
    return counter.get_total_flops() / 2 / samples


def counted_size(model: nn.Module) -> tuple[int, int]:
    """Parameters, and bytes of everything in the state_dict; shared tensors once."""
    parameters = sum(p.numel() for p in model.parameters())
    stored = model.state_dict(keep_vars=True).values()
    tensors = {id(t): t for t in stored if isinstance(t, Tensor)}
    return parameters, sum(t.numel() * t.element_size() for t in tensors.values())


def channels_last(value: Any) -> Any:
    """Inputs, or a copy of a model, with images in the other order in memory."""
    if isinstance(value, nn.Module):
        model = copy.deepcopy(value)
        for tensor in tensors_of(model).values():
            tensor.data = channels_last(tensor.data)
        return model
    last = torch.channels_last
    return map_tensors(lambda t: t.contiguous(memory_format=last) if t.ndim == 4 else t, value)


def unaccounted(model: nn.Module, groups: Sequence[PrunableGroup]) -> set[str]:
    """Parameters that live in no group, frozen or not."""
    tensors = tensors_of(model)
    held = {id(tensors[a.tensor]) for g in groups for a in g.axes if a.tensor in tensors}
    return {name for name, parameter in model.named_parameters() if id(parameter) not in held}


# ---- tasks


def figures(metrics: Metrics) -> dict[str, float]:
    """All numbers of a measurement by name."""
    return {**{k: v for k, v in vars(metrics).items() if k != "more"}, **metrics.more}


def measured(kept: tuple[int, ...]) -> Metrics:
    return Metrics(figure=0.5, loss=1.0, divergence=1 / (1 + sum(kept)), samples=8)


@cache
def dense_task(name: str, multiple: int = 1, on: str = "macs") -> PruningTask:
    """A task over a toy with true costs and scores, at no budget; measuring costs nothing."""
    case = toy(name)
    groups = constrain(case.live, multiple_of=multiple) if multiple > 1 else case.live
    live = tuple(group for group in groups if not group.frozen) or case.live
    costs = CostModel.of(case.model, case.inputs, live)
    scores = score_units(case.model, live)
    return PruningTask(live, costs, OfFunction(measured), scores, budget=1.0, on=on)  # type: ignore[arg-type]


def idle(task: PruningTask) -> PruningTask:
    """The same task, by its fingerprint, which must not be asked to measure anything."""

    @functools.wraps(task.evaluator.function)
    def never(kept: tuple[int, ...]) -> Metrics:
        raise AssertionError("measured, although everything is in the journal")

    return replace(task, evaluator=OfFunction(never))


@st.composite
def tasks(draw: st.DrawFn, names: list[str] = NAMES) -> PruningTask:
    """A toy's task with any metric, any reachable budget, and steps of 1 to 3 units."""
    name = draw(st.sampled_from(names))
    task = dense_task(name, draw(st.integers(1, 3)), draw(st.sampled_from(METRICS)))
    return replace(task, budget=draw(reachable(task)))


def reachable(task: PruningTask) -> st.SearchStrategy[float]:
    """Budgets of a task, the least and the whole cost more often than others."""
    least = float(task.costs.ratio([g.levels[0] for g in task.groups], task.on))
    return st.one_of(st.just(least), st.just(1.0), st.floats(least, 1.0))


def asked_of(task: PruningTask) -> st.SearchStrategy[list[float]]:
    numbers = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    return st.lists(numbers, min_size=task.length, max_size=task.length)
