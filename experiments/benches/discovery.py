"""Discovery on many networks, with the time it takes; a crash is a finding, not an end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from prune_env import CostModel, find_groups, format_groups
from prune_env.costs.table import prunable_share
from prune_env.errors import ConfigError
from prune_env.experiments.networks.models import MODELS, build_model
from prune_env.experiments.networks.presets import open_named
from prune_env.experiments.networks.zoo import ZOO, Example
from prune_env.pipeline.project import Project
from prune_env.structure.groups import PrunableGroup

SHAPES = {"digits": (1, 8, 8)}
"""Image shapes of networks that do not take (3, 32, 32)."""


class Choice(Protocol):
    """What to inspect; see `InspectConfig`."""

    @property
    def model(self) -> tuple[str, ...]: ...
    @property
    def task(self) -> str: ...
    @property
    def zoo(self) -> bool: ...
    @property
    def only(self) -> str: ...
    @property
    def classes(self) -> int: ...


@dataclass(frozen=True)
class Found:
    """What discovery found in one network.

    Attributes:
        name: of the network.
        table: its groups, to print.
        figures: live, groups, share, seconds, frozen reasons with their counts; or an error.
        crashed: discovery raised, which it never should.
    """

    name: str
    table: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    crashed: bool = False


def inspect_all(choice: Choice) -> Iterator[Found]:
    """Inspect what is chosen, one network after the other.

    Raises:
        ConfigError: an unknown network or task.
    """
    if choice.task:
        yield _of_task(choice.task)
    every = "all" in choice.model or not (choice.model or choice.task or choice.zoo)
    for name in MODELS if every else choice.model:
        if choice.only in name:
            yield inspect(name, partial(_built, name, choice.classes))
    for name, factory in ZOO.items() if choice.zoo else ():
        if choice.only in name:
            yield inspect(name, factory)


def inspect(name: str, factory: Callable[[], Example]) -> Found:
    """Build a network and find its groups; without its library, say so.

    Raises:
        ConfigError: the network is one of ours and unknown.
    """
    try:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)
            model, inputs = factory()
    except ConfigError as error:
        if name in ZOO:
            return Found(name, figures={"skipped": str(error)})
        raise
    start = time.perf_counter()
    try:
        groups = find_groups(model, inputs)
        seconds = time.perf_counter() - start
        costs = CostModel.of(model.eval(), inputs, [g for g in groups if not g.frozen])
    except Exception as error:  # whatever it is, the other networks are inspected too
        return Found(name, figures={"error": f"{type(error).__name__}: {error}"}, crashed=True)
    return Found(name, format_groups(groups, costs), _figures(groups, costs, seconds))


def _built(name: str, classes: int) -> Example:
    shape = SHAPES.get(name, (3, 32, 32))
    return build_model(name, classes), torch.randn(2, *shape)


def _of_task(name: str) -> Found:
    start = time.perf_counter()
    opened = open_named(name)
    task = opened.task if isinstance(opened, Project) else opened
    seconds = time.perf_counter() - start
    groups = (*task.groups, *task.frozen)
    table = format_groups(groups, task.costs)
    return Found(task.name, table, _figures(groups, task.costs, seconds))


def _figures(groups: tuple[PrunableGroup, ...], costs: CostModel, seconds: float) -> dict[str, Any]:
    return {
        "live": sum(not group.frozen for group in groups),
        "groups": len(groups),
        "prunable_share": round(prunable_share(costs), 4),
        "macs": float(costs.dense[0]),
        "seconds": round(seconds, 3),
        "frozen": dict(Counter(g.frozen.partition(" in '")[0] for g in groups if g.frozen)),
    }


def found_line(found: Found, width: int) -> str:
    """A network in one line."""
    facts = found.figures
    name = f"{found.name:<{width}}"
    if found.crashed:
        return f"{name}  CRASHED: {facts['error']}"
    if "skipped" in facts:
        return f"{name}  skipped: {facts['skipped']}"
    reasons = ", ".join(f"{count} x {reason}" for reason, count in facts["frozen"].items())
    return (
        f"{name}  {facts['live']:>3} of {facts['groups']:>3} groups, "
        f"{facts['prunable_share']:>6.1%} of MACs, {facts['seconds']:>5.1f} s"
        f"{f', frozen: {reasons}' if reasons else ''}"
    )
