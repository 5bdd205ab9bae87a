"""Values that are handed in: options, actions, plans, batches, models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

from prune_env import PruneEnv, PruningTask
from prune_env.errors import ConfigError
from prune_env.experiments.benches.fuzz_inputs import (
    Attempt,
    Door,
    Random,
    damaged,
    near,
    odd,
    pick,
    require,
)
from prune_env.experiments.config.cli import parse
from prune_env.experiments.config.run import RunConfig
from prune_env.mdp.candidates import TaskOptions
from prune_env.mdp.env import PlanEnv
from prune_env.mdp.task import State
from prune_env.mdp.vector import LockstepVectorEnv
from prune_env.quality.batches import take_batches
from prune_env.quality.evaluators import Evaluator
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.testing import toy_task

SOUND: dict[str, Any] = {
    "budget": 0.5, "on": "params", "units": "structured", "criterion": "l2", "repair": "bias",
    "reward": "accuracy", "leftover": "leave", "calibration_samples": 12, "reward_samples": 20,
    "repair_samples": 8, "stages": [8, 16], "precision": "float32", "batch_size": 4,
    "ignore": ["0"], "min_sparsity": {"0": 0.1}, "max_sparsity": 0.8, "multiple_of": {"*": 2},
    "seed": 3,
}  # fmt: skip
"""An option of every kind, to begin from."""


def few(random: Random, values: dict[str, Any]) -> dict[str, Any]:
    """Some entries, up to two of them odd, and sometimes one that nobody knows."""
    names = list(values)
    taken = {n: values[n] for n in names if random.random() < 0.3}
    for _ in range(random.integers(3)):
        name = names[random.integers(len(names))]
        taken[name] = odd(random) if random.random() < 0.6 else near(random, values[name])
    if random.random() < 0.1:
        taken[near(random, names[random.integers(len(names))])] = odd(random)
    return taken


def _options(folder: Path) -> Attempt:
    def attempt(random: Random) -> str:
        given = few(random, SOUND)
        options = TaskOptions.of(given)
        for name, value in given.items():
            require(getattr(options, name) is value, f"{name} was changed")
        require(0 < options.budget <= 1 and options.calibration_samples >= 1, "out of range")
        return "valid"

    return attempt


def _settings(folder: Path) -> Attempt:
    sound = dataclasses.asdict(FinetuneSettings())

    def attempt(random: Random) -> str:
        given = few(random, sound)
        known = {name: value for name, value in given.items() if name in sound}
        settings = FinetuneSettings(**known)
        for entry in dataclasses.fields(settings):
            kind = type(sound[entry.name])
            value = getattr(settings, entry.name)
            right = isinstance(value, (float, int) if kind is float else kind)
            require(right and not isinstance(value, bool), f"{entry.name} is {value!r}")
        return "valid"

    return attempt


def network() -> nn.Module:
    """A small classifier, always the same."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


def samples(count: int = 8, size: int = 4) -> list[Any]:
    """Batches that `network` takes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, size, 6, generator=generator)
    return [(x, torch.arange(size) % 3) for x in inputs]


def _task(folder: Path) -> Attempt:
    """Whole tasks from odd options: what is accepted must give a plan within the budget."""
    model, data = network(), samples()

    def attempt(random: Random) -> str:
        options = {**SOUND, "budget": 0.7, "criterion": "l1", **few(random, SOUND)}
        task = PruningTask.from_model(model, data, **options)
        kept = task.decode([0.0] * task.length)
        require(task.within_budget(kept), "the plan exceeds the budget")
        require(np.isfinite(task.outcome(kept).reward), "the reward is no number")
        return "valid"

    return attempt


def vector(random: Random, count: int, high: float = 1.0) -> Any:
    """About `count` numbers in [0, high], some of them odd; or something else altogether."""
    if random.random() < 0.15:
        return odd(random)
    size = count if random.random() < 0.85 else int(random.integers(0, 2 * count))
    values: list[Any] = (random.random(size) * high).tolist()
    for _ in range(random.integers(0, 3) if size else 0):
        values[random.integers(size)] = odd(random)
    shapes: Sequence[Callable[[Any], Any]] = (list, tuple, _array, lambda v: [v])
    return shapes[int(random.integers(3 if random.random() < 0.9 else 4))](values)


def _array(values: Any) -> Any:
    try:
        return np.array(values)
    except ValueError:  # ragged
        return np.array(values, dtype=object)


def _plans(folder: Path) -> Attempt:
    task = toy_task(budget=0.6, length=5, width=12)
    levels = [group.levels for group in task.groups]

    def whole(kept: Any) -> str:
        fits = len(kept) == 5 and all(k in ks for k, ks in zip(kept, levels, strict=True))
        require(fits and task.costs.ratio(kept, "macs") <= 0.6 + 1e-9, f"not a plan: {kept}")
        return "valid"

    def kept_of(random: Random) -> Any:
        units = [ks[random.integers(len(ks))] for ks in levels]
        if random.random() < 0.5:
            units[random.integers(5)] = odd(random)
        return units if random.random() < 0.7 else vector(random, 5, 12)

    def state_of(random: Random) -> State:
        kept: Any = kept_of(random)
        return State(_some(random, kept), (0.5,))

    doors: tuple[Callable[[Random], str], ...] = (
        lambda r: whole(task.decode(vector(r, 5))),
        lambda r: whole(task.beside(vector(r, 5))),
        lambda r: whole(task.outcome(kept_of(r)).kept),
        lambda r: "valid" if task.probe(kept_of(r)).kept else "",
        lambda r: whole(task.fill(kept_of(r), vector(r, 5))),
        lambda r: whole(task.finish(kept_of(r), vector(r, 5))),
        lambda r: "valid" if task.plan(kept_of(r)).levels else "",
        lambda r: "valid" if task.within_budget(kept_of(r)) in (True, False) else "",
        lambda r: "valid" if task.advance(state_of(r), _one(r)).kept else "",
        lambda r: "valid" if 0 <= task.prior(state_of(r)) <= 1 else "",
        lambda r: _completed(task, state_of(r)),
        lambda r: "valid" if np.isfinite(task.observe(state_of(r))).all() else "",
        lambda r: "valid" if task.glimpse(task.decode([0.0] * 5), _one(r)) else "",
        lambda r: "valid" if task.at(_one(r)).budget > 0 else "",
    )

    def attempt(random: Random) -> str:
        verdict = pick(random, doors)(random)
        require(verdict, "what came out is out of range")
        return verdict

    return attempt


def _some(random: Random, kept: Any) -> Any:
    return tuple(kept[: random.integers(6)]) if isinstance(kept, list) else kept


def _completed(task: PruningTask, state: State) -> str:
    return "valid" if len(task.complete(state)) == task.length else ""


def _one(random: Random) -> Any:
    """One number, or something odd."""
    return float(random.random()) if random.random() < 0.4 else odd(random)


def _actions(folder: Path) -> Attempt:
    """Episodes of all three environments, with odd actions, seeds, budgets and options."""
    task = toy_task(budget=0.6, length=3, width=8)
    count = 2
    makers: tuple[Callable[..., Any], ...] = (
        PruneEnv, PlanEnv, lambda task, budgets: LockstepVectorEnv(task, count, budgets=budgets),
    )  # fmt: skip

    def attempt(random: Random) -> str:
        which = int(random.integers(3))
        budgets = None if random.random() < 0.7 else vector(random, 2)
        size = (1, 3, count)[which]
        try:
            env = makers[which](task, budgets=budgets)
            seed = None if random.random() < 0.7 else odd(random)
            options = None if random.random() < 0.7 else {"budget": _one(random)}
            env.reset(seed=seed, options=options)
            for _ in range(random.integers(1, 4)):
                step = env.step(vector(random, size))
                require(np.isfinite(np.asarray(step[1], float)).all(), "the reward is no number")
                require(env.observation_space.contains(step[0]), "the observation is outside")
                if np.all(step[2]):
                    break
        except gymnasium.error.Error as error:  # documented: Gymnasium's own, of seeds
            raise ConfigError(f"of Gymnasium: {error}") from error
        return "valid"

    return attempt


def _batches(folder: Path) -> Attempt:
    """Loaders whose items are odd: types, shapes, labels."""
    model = network()
    kinds = (torch.float32, torch.int64, torch.bool, torch.float64, torch.uint8, torch.complex64)

    def tensor(random: Random, shape: list[int]) -> Any:
        if random.random() < 0.1:
            return odd(random)
        if random.random() < 0.2:
            shape = [int(n) for n in random.integers(0, 5, random.integers(0, 4))]
        kind = kinds[0 if random.random() < 0.6 else random.integers(len(kinds))]
        return (torch.from_numpy(random.standard_normal(shape)) * 3).to(kind)

    def labels(random: Random) -> Any:
        values = torch.from_numpy(random.integers(0, 3, 4))
        if random.random() < 0.3:
            values[random.integers(4)] = (-100, -1, 3, 10**9, -(10**12))[random.integers(5)]
        return values if random.random() < 0.8 else tensor(random, [4])

    def item(random: Random) -> Any:
        x, y = tensor(random, [4, 6]), labels(random)
        shapes = ((x, y), [x, y], {"input": x, "labels": y}, (x, y, y), x, {"a": x}, ((x,), y))
        return shapes[0 if random.random() < 0.6 else random.integers(len(shapes))]

    def attempt(random: Random) -> str:
        data: Any = samples(6)
        for _ in range(random.integers(1, 3)):
            data[random.integers(len(data))] = item(random)
        if random.random() < 0.05:
            data = odd(random)
        batches = take_batches(data, 20)
        require(sum(map(len, batches)) <= 20, "more samples than asked")
        metrics = Evaluator.of(model, batches)(model)
        require(
            metrics.divergence < 1e-6 and np.isfinite(metrics.loss),
            "the dense network is not itself",
        )
        return "valid"

    return attempt


def _lines(folder: Path) -> Attempt:
    """Command lines and TOML files of `experiments.run`."""
    sound = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    file = folder / "run.toml"

    def attempt(random: Random) -> str:
        given = few(random, sound)
        names = {name: name.replace("_", "-") for name in given}
        if random.random() < 0.5:
            argv = [f"--{names[n]}={_word(v)}" for n, v in given.items()]
        else:
            text = "\n".join(f"{n} = {_toml(v)}" for n, v in given.items())
            data = text.encode("utf-8", "surrogatepass")
            file.write_bytes(data if random.random() < 0.8 else damaged(random, data))
            argv = ["--config", str(file)]
        config = parse(RunConfig, argv)
        require(0 < config.budget <= 1 and config.evaluations >= 1, "out of range")
        require(len(config.digest) == 10, "no digest")
        return "valid"

    return attempt


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"k{i} = {_toml(v)}" for i, v in enumerate(value.values())) + "}"
    return '"' + str(value).replace("\\", "/").replace('"', "'") + '"'


VALUES = (
    Door("options", "keywords of a task: types, ranges, unknown names", 16, _options),
    Door("settings", "`FinetuneSettings`", 6, _settings),
    Door("task", "whole tasks of odd options on a small network", 1, _task),
    Door("plans", "sparsities, offsets, levels, states and budgets given to a task", 14, _plans),
    Door("actions", "actions, seeds and options of the three environments", 8, _actions),
    Door("batches", "what a loader yields: shapes, types, labels", 6, _batches),
    Door("configs", "command lines and TOML files of `experiments.run`", 10, _lines),
)
