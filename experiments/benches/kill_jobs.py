"""What `experiments.kills` kills: commands on a tiny project, and what each leaves behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune_env import PruningTask, finetune, load, save
from prune_env.deploy.bundle import WEIGHTS
from prune_env.fingerprint import digest
from prune_env.pipeline.project import Project
from prune_env.recovery.finetune import FinetuneSettings
from prune_env.structure.rewrite import tensors_of
from prune_env.testing import toy_inputs, toy_model

TASK = "prune_env.experiments.benches.kill_jobs:tiny"
MODEL = functools.partial(toy_model, "chain")
TIMED = {"seconds", "search_seconds", "latency_ms", "times", "date", "machine", "sha256", "command"}
"""What no two runs share."""


def tiny(**options: Any) -> Project:
    """A toy network and random data: every stage of a run takes a moment."""
    train, val, test = (_samples(seed) for seed in range(3))
    wanted = {"calibration_samples": 24, "reward_samples": 24}
    task = PruningTask.from_model(MODEL(), train, name="tiny", **{**options, **wanted})
    return Project("tiny", MODEL(), task, train, val, test, factory=MODEL)


def _samples(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Four batches of twelve."""
    inputs = toy_inputs("chain", seed, 48)
    assert isinstance(inputs, Tensor)
    labels = torch.randint(0, 5, (48,), generator=torch.Generator().manual_seed(seed))
    return list(zip(inputs.split(12), labels.split(12), strict=True))


def _command(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = import_module(f"prune_env.experiments.{name}").main
    return main


def _run(searcher: str, folder: Path) -> None:
    argv = (
        f"--task {TASK} --searcher {searcher} --baselines uniform --evaluations 8 --threads 1 "
        f"--finetune-epochs 2 --runs {folder} --no-tensorboard --no-progress"
    )
    if _command("run")(argv.split()):
        raise SystemExit(1)


def _compare(folder: Path) -> None:
    argv = (
        f"--task {TASK} --searchers evolution,ppo --seeds 1 --evaluations 8 --processes 2 "
        f"--calibration-samples 24 --reward-samples 24 --runs {folder}"
    )
    if _command("compare")(argv.split()):
        raise SystemExit(1)


def _finetune(folder: Path) -> None:
    settings = FinetuneSettings(epochs=4)
    folder.mkdir(parents=True, exist_ok=True)
    tuned = finetune(
        MODEL(), _samples(0), _samples(1), settings=settings, checkpoint=folder / "checkpoint.pt"
    )
    facts = {"tuned": digest(tensors_of(tuned.model)), "history": repr(tuned.history)}
    (folder / "facts.json").write_text(json.dumps(facts))


def _save(folder: Path) -> None:
    """Over an older one of another plan, which must be readable until the new one is."""
    task = tiny().task
    small, half = (task.at(budget).decode([0.0] * task.length) for budget in (0.5, 0.9))
    model = folder / "model"
    if (model / WEIGHTS).exists():
        load(model, MODEL)
    else:
        save(model, task.at(1.0).network(half), task.plan(half))
    save(model, task.at(1.0).network(small), task.plan(small))


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        work: does it, in a folder; again, it goes on.
        processes: whether it starts others.
    """

    work: Callable[[Path], None]
    processes: bool = False


JOBS: Mapping[str, Job] = {
    "run ppo": Job(functools.partial(_run, "ppo")),
    "run sac": Job(functools.partial(_run, "sac")),
    "run evolution": Job(functools.partial(_run, "evolution")),
    "compare --processes 2": Job(_compare, processes=True),
    "finetune": Job(_finetune),
    "save": Job(_save),
}
"""Name -> command. Add one here."""


def left_behind(folder: Path) -> dict[str, Any]:
    """The content of all files of results, journals, plans and networks, without times.

    compare.json is a page of the figures in each search's folder, and of their times.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json" and path.name not in ("latency.json", "compare.json"):
            found[name] = untimed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [untimed(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors" and path.parent.name == "model":
            found[name] = digest(tensors_of(load(path.parent, MODEL)))
    return found


def untimed(value: Any) -> Any:
    """JSON without what no two runs share."""
    if isinstance(value, dict):
        return {name: untimed(each) for name, each in value.items() if name not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value
