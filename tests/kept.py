"""Every kind of file we write, as (write it, read it back) pairs, and networks with their plans."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hand import HAND, by_hand
from torch import nn
from toys import NAMES, snapshot, toy

from prune_env.criteria.elementwise import score_units
from prune_env.deploy.bundle import WEIGHTS, load, save
from prune_env.errors import GroupError, PruneEnvError
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.stages.directory import open_run
from prune_env.pipeline.once import once
from prune_env.plan.cut import compact
from prune_env.plan.ladder_file import load_ladders, save_ladders
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.quality.batches import Batch
from prune_env.recovery.finetune import FinetuneSettings, finetune
from prune_env.repair.build import build_ladders
from prune_env.search.searchers import run_search
from prune_env.structure.weights import weight_groups
from prune_env.tasks.cache import cached_tensors
from prune_env.testing import toy_task

KINDS = ("structured", "unstructured", "per_row", "2:4", "block:2")
CASES = [*((name, kind) for name in NAMES for kind in KINDS), *((name, "hand") for name in HAND)]
"""A network and the kind of its units."""

Read = Callable[[], Any]
"""What a file says, as something to compare."""


def planned(name: str, kind: str, sparsity: float = 0.5) -> tuple[nn.Module, PruningPlan] | None:
    """A dense network and a plan of these units; None where it has none."""
    case = by_hand(name) if kind == "hand" else toy(name)
    groups = tuple(g for g in case.groups if not g.frozen)
    if kind in KINDS[1:]:
        try:
            groups = tuple(g for g in weight_groups(case.model, kind) if not g.frozen)
        except GroupError:  # too few inputs for these neighbours
            return None
    levels = [group.nearest_level((1 - sparsity) * group.units) for group in groups]
    plan = PruningPlan.of_levels(groups, levels, rank_units(case.model, groups))
    return (case.model, plan) if groups else None


def other_values(model: nn.Module) -> nn.Module:
    """The architecture alone: what a factory makes has weights of its own."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def bits(model: nn.Module) -> dict[str, Any]:
    """A network as something to compare: NaN is itself, -0 is not 0."""
    return {
        name: (tuple(t.shape), str(t.dtype), t.contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, t in snapshot(model).items()
    }


def _plan(folder: Path) -> tuple[Path, Read]:
    plan = PruningPlan.uniform(toy("chain").model, toy("chain").groups, 0.5)
    path = dataclasses.replace(plan, notes={"why": "law 9"}).save(folder / "plan.json")
    return path, lambda: PruningPlan.load(path)


def _bundle(folder: Path) -> tuple[Path, Read]:
    found = planned("chain", "unstructured")
    assert found is not None
    model, plan = found
    save(folder, compact(model, plan), plan)
    return folder / WEIGHTS, lambda: bits(load(folder, lambda: other_values(model)))


def _batches() -> list[Batch]:
    case = toy("chain")
    inputs = case.inputs if isinstance(case.inputs, torch.Tensor) else case.inputs[0]
    return [Batch(inputs, torch.zeros(len(inputs), dtype=torch.int64))]


def _checkpoint(folder: Path) -> tuple[Path, Read]:
    path, data = folder / "tune.pt", [(b.inputs, b.targets) for b in _batches()]

    def read() -> Any:
        settings = FinetuneSettings(epochs=1)
        model = copy.deepcopy(toy("chain").model)
        result = finetune(model, data, data, settings=settings, checkpoint=path)
        return bits(result.model), result.history

    read()
    return path, read


def _ladders(folder: Path) -> tuple[Path, Read]:
    path, case = folder / "ladders.safetensors", toy("chain")

    def score(groups: Any, statistics: Any) -> Any:
        return score_units(case.model, groups, "l1")

    save_ladders(build_ladders(case.model, _batches(), case.live, score).ladders, path)

    def read() -> Any:
        ladders = load_ladders(path, case.model)
        orders = {name: order.tolist() for name, order in ladders.orders.items()}
        return orders, [ladders.predicted_loss(g.name, 2) for g in case.live]

    return path, read


def _cache(folder: Path) -> tuple[Path, Read]:
    path, made = folder / "cache.safetensors", {"x": torch.arange(12.0), "y": torch.ones(2)}

    def read() -> Any:
        found = cached_tensors(path, lambda: made, lambda tensors: True)
        return {name: tensor.tolist() for name, tensor in found.items()}

    read()
    return path, read


def _searched(name: str) -> Callable[[Path], tuple[Path, Read]]:
    def write(folder: Path) -> tuple[Path, Read]:
        def read() -> Any:
            task = toy_task(target=[0.2, 0.5, 0.6, 0.3], budget=0.6)
            result = run_search(task, "random", 6, 3, folder)
            return result.plan.kept, [(o.kept, o.reward) for o in result.history]

        read()
        (path,) = folder.rglob(name)
        return path, read

    return write


def _config(folder: Path) -> tuple[Path, Read]:
    config = RunConfig(runs=folder, name="run")
    path = open_run(config) / "config.json"
    return path, lambda: open_run(config)


def _stage(folder: Path) -> tuple[Path, Read]:
    path = folder / "result.json"
    facts = {"accuracy": 0.5, "rows": [1, 2, 3], "name": "stage"}

    def read() -> Any:
        return once(path, {"data": "abc"}, lambda: facts)

    read()
    return path, read


FILES: dict[str, Callable[[Path], tuple[Path, Read]]] = {
    "plan": _plan,
    "bundle": _bundle,
    "checkpoint": _checkpoint,
    "ladders": _ladders,
    "cache": _cache,
    "journal": _searched("journal.jsonl"),
    "search": _searched("search.json"),
    "config": _config,
    "stage": _stage,
}


@cache
def nothing() -> object:
    """What reading a refused file gives."""
    return object()


def read_or_refused(read: Read) -> Any:
    """What the file says; `nothing()` where one of our errors refuses it."""
    try:
        return read()
    except PruneEnvError:
        return nothing()
