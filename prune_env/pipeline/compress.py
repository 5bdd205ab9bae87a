"""The whole path in one call: discover, search, cut, tune, measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from prune_env.checks import whole
from prune_env.errors import ConfigError
from prune_env.mdp.candidates import TaskKeywords, TaskOptions
from prune_env.mdp.task import PruningTask
from prune_env.pipeline.project import Project
from prune_env.pipeline.result import Result
from prune_env.pipeline.stages import Hunt
from prune_env.pipeline.whole import best_on_val, finished, keep_results, searched
from prune_env.progress import on_terminal, showing
from prune_env.quality.batches import loader_of, take_batches
from prune_env.recovery.epoch import OwnLoss
from prune_env.recovery.schedule import FinetuneSettings
from prune_env.recovery.training import Tuning
from prune_env.search.searchers import Searcher, searcher_named
from prune_env.search.workers import Workers
from prune_env.structure.entry import copy_of
from prune_env.structure.inputs import device_of

_log = logging.getLogger(__name__)

ON_VAL = (
    "There was no test data: figures are of val, which also chose the epoch and the plan, so they "
    "are too good by a little. Give test= for figures of data that nobody chose on."
)


def compress(
    model: nn.Module,
    train: Any,
    val: Any,
    test: Any = None,
    *,
    searcher: str | Searcher | Sequence[str | Searcher] = "ppo",
    evaluations: int = 200,
    epochs: int = 10,
    settings: FinetuneSettings | None = None,
    loss: OwnLoss | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    workers: int | Workers = 1,
    name: str = "",
    folder: str | Path | None = None,
    progress: bool = True,
    **options: Unpack[TaskKeywords],
) -> Result:
    """A smaller network from a trained one: searched on train, chosen on val, measured on test.

    The plan of the best searcher is applied and repaired, tuned with the dense network as its
    teacher (but by a `loss` of your own alone), and measured beside it. Works for every objective,
    without labels too.

    Args:
        model: the trained dense network; it stays as it is.
        train, val, test: loaders, a `Dataset` or arrays; see `finetune`. The search sees samples of
            train only. Without test the figures are of val, which the table says.
        searcher: a name in `SEARCHERS`, a function `search(ledger, seed)`, or several; of several
            plans the one is tuned that is best on val before tuning.
        evaluations: plans that each searcher may measure.
        epochs: of tuning; 0: none.
        settings: of tuning, in place of `epochs` and the defaults.
        loss, optimizer, scheduler: of tuning, see `finetune`.
        workers: processes that measure plans side by side; the plans found are the same.
        name: for titles; the class of the network if not said.
        folder: keeps every stage, so that the same call goes on where it was killed; None keeps
            nothing.
        progress: bars on a terminal; elsewhere nothing is printed.
        options: of the task, such as `budget=0.3`, `on="params"`, `units="2:4"`: `TaskOptions`.

    Raises:
        ConfigError, GroupError, BudgetError: an argument is wrong; before anything is done.
        DataError, ModelError: see `PruningTask.from_model` and `finetune`.
        RunError: the folder holds another run, is damaged, or cannot be written.
    """
    chosen = TaskOptions.of(options)
    hunts = _hunts(searcher, evaluations, chosen.seed)
    settings = settings or FinetuneSettings(epochs=epochs, seed=chosen.seed)
    tuning, place = Tuning(settings, loss, optimizer, scheduler), Path(folder) if folder else None
    with showing(on_terminal() if progress else None):
        with _seeded(chosen.seed):  # a loader that shuffles gives the same samples to every call
            task = PruningTask.from_model(
                model, train, name=name or type(model).__name__, **options
            ).tuned_by(tuning)
        project = _project(model, task, (train, val, test), chosen.batch)
        found = searched(task, hunts, place, workers=workers)
        best = best_on_val(project, found, place)
        whole_path = finished(project, hunts, found, [best], tuning, place)
    results = {
        **whole_path.results,
        "command": f"prune_env.compress(...) of {task.name}",
        "config": _said(options, hunts, settings),
        "measured_on": "val" if test is None else "test",
    }
    if place:
        keep_results(results, place)
    example = take_batches(project.val, 2)[0].to(device_of(model)).inputs
    return Result(whole_path.tuned[best].model, found[best].plan, results, best, example)


def _hunts(
    searcher: str | Searcher | Sequence[str | Searcher], evaluations: int, seed: int
) -> list[Hunt]:
    """The searches; names are looked up now, before anything is measured.

    Raises:
        ConfigError: no such searcher, one twice, none, or no evaluations.
    """
    whole(1)("evaluations", evaluations)
    several = [searcher] if isinstance(searcher, str) or callable(searcher) else list(searcher)
    hunts = []
    for one in several:
        if isinstance(one, str):
            searcher_named(one)
            hunts.append(Hunt(one, evaluations, seed))
        else:
            hunts.append(Hunt(getattr(one, "__name__", "own"), evaluations, seed, one))
    names = [hunt.name for hunt in hunts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"searcher is {names}; give at least one, each once.")
    return hunts


def _project(
    model: nn.Module,
    task: PruningTask,
    data: tuple[Any, Any, Any],
    batch: Callable[[Any], Any] | None,
) -> Project:
    train, val, test = data
    if test is None:
        _log.warning("%s", ON_VAL)
    val = loader_of(val, batch)
    return Project(
        name=task.name,
        dense=model,
        task=task,
        train=loader_of(train, batch, shuffle=True),
        val=val,
        test=val if test is None else loader_of(test, batch),
        factory=partial(copy_of, model),
        note=ON_VAL if test is None else "",
    )


def _said(
    options: TaskKeywords, hunts: Sequence[Hunt], settings: FinetuneSettings
) -> dict[str, Any]:
    """The settings as plain values, for the report."""
    plain = (str, int, bool, type(None))
    found = {
        **options,
        "searcher": ", ".join(hunt.name for hunt in hunts),
        "evaluations": hunts[0].evaluations,
        **{f"tuning {name}": value for name, value in vars(settings).items()},
    }
    return {
        name: v if isinstance(v, plain) or (isinstance(v, float) and isfinite(v)) else str(v)
        for name, v in found.items()
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's generator seeded inside, and as it was afterwards."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        yield
