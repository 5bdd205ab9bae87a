"""The stages of a run. Each leaves files in the run directory and is skipped when they are there.

dense -> search (every searcher) -> tune (every plan) -> report
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prune_env import KeepMasks, PruningPlan, PruningTask, finetune, save
from prune_env.costs.latency import measure_latency
from prune_env.costs.model import CostModel
from prune_env.deploy.bundle import WEIGHTS, distinct, load_weights_into, size_on_disk
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.data.splits import CropFlip, load_splits, loader
from prune_env.experiments.networks.dense import trained
from prune_env.experiments.networks.models import build_model, load_weights
from prune_env.experiments.networks.presets import open_named
from prune_env.experiments.networks.pretrained import is_pretrained, pretrained_project
from prune_env.experiments.stages.policies import continuing
from prune_env.fingerprint import identity_of
from prune_env.mdp.rewards import Outcome
from prune_env.pipeline.once import once
from prune_env.pipeline.project import Project
from prune_env.pipeline.yardstick import ACCURACY, Yardstick, yardstick_for
from prune_env.progress import progress
from prune_env.quality.batches import Batch, take_batches
from prune_env.quality.evaluators import Metrics
from prune_env.recovery.epoch import evaluate
from prune_env.recovery.finetune import EpochRecord, FinetuneSettings
from prune_env.search.ledger import Ledger
from prune_env.search.searchers import SearchResult, run_search
from prune_env.storage import save_tensors

EVALUATION_BATCH = 250
LATENCY_BATCH = 64
DENSE = "dense"
"""Folder among the runs, of dense networks that were trained for them."""


def open_project(config: RunConfig) -> Project | PruningTask:
    """The network, data and task that the config names; trains the dense network if need be."""
    if config.task:
        return open_named(config.task, **config.task_options)
    if is_pretrained(config.model):
        return pretrained_project(config.model, config.data, **config.task_options)
    return _image_project(config)


def _image_project(config: RunConfig) -> Project:
    splits = load_splits(config.data, seed=config.seed)
    factory = partial(build_model, config.model, len(splits.classes))
    batches = partial(loader, mean=splits.mean, std=splits.std)
    augment = CropFlip(4) if splits.train.images.shape[-1] >= 24 else None
    train = batches(splits.train, batch_size=config.batch_size, augment=augment, shuffle=True)
    val = batches(splits.val, batch_size=EVALUATION_BATCH)
    dense = _dense(config, factory, (train, val))
    # The task's samples: a random but fixed part of the training images, without augmentation.
    plain = batches(splits.train, batch_size=125, shuffle=True, seed=config.seed)
    task = PruningTask.from_model(
        dense, plain, name=f"{config.model} on {Path(config.data).name}", **config.task_options
    )
    return Project(
        name=task.name,
        dense=dense,
        task=task,
        train=train,
        val=val,
        test=batches(splits.test, batch_size=EVALUATION_BATCH),
        factory=factory,
    )


def _dense(config: RunConfig, factory: partial[nn.Module], loaders: tuple[Any, Any]) -> nn.Module:
    """From a file, or trained: once for all runs that ask for the same training."""
    if config.weights:
        return load_weights(factory(), config.weights).eval()
    settings = FinetuneSettings(
        epochs=config.dense_epochs,
        learning_rate=config.dense_learning_rate,
        weight_decay=config.weight_decay,
        label_smoothing=0.05,
        seed=config.seed,
    )
    return trained(
        config.model, factory, loaders, settings, config.task_options, config.runs / DENSE,
        config.progress,
    )  # fmt: skip


def _tuned(
    label: str, config: RunConfig, model: nn.Module, project: Project, folder: Path
) -> nn.Module:
    settings = tuning_settings(config, project)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    with progress(label, settings.epochs, "epochs", config.progress) as bar:

        def tell(record: EpochRecord) -> None:
            if record.epoch:
                shown = yardstick_for(project.task.objective)
                value = shown.show(record.val_figure)
                bar.step(f"val {shown.name} {value}, loss {record.val_loss:.4f}")

        result = finetune(
            model, project.train, project.val, settings=settings, teacher=project.dense,
            checkpoint=checkpoint, on_epoch=tell, objective=project.task.objective,
        )  # fmt: skip
    return result.model


def search(
    config: RunConfig,
    task: PruningTask,
    name: str,
    folder: Path,
    listener: Any = None,
) -> SearchResult:
    """Let one searcher spend its evaluations; one-shot allocators spend one."""
    label, policy = f"search {name}", config.init_policy if name == config.searcher else ""
    with progress(label, config.evaluations, "episodes", config.progress) as bar:

        def tell(ledger: Ledger, outcome: Outcome) -> None:
            bar.step(f"best reward {ledger.best.reward:.4f}")
            if listener is not None:
                listener(ledger, outcome)

        return run_search(
            task, name, config.evaluations, config.seed, folder / "search" / name, tell,
            searcher=continuing(name, policy),
        )  # fmt: skip


def tuning_settings(config: RunConfig, project: Project) -> FinetuneSettings:
    """The config's settings; what it leaves at the default is the project's to say."""
    chosen = {
        "epochs": config.finetune_epochs,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "distill_weight": config.distill_weight,
        "seed": config.seed,
    }
    suited = {k: v for k, v in project.recipe.items() if k not in config.differences}
    return FinetuneSettings(**{**chosen, **suited})


@dataclass(frozen=True, eq=False)
class Tuned:
    """A pruned network before and after fine-tuning, and what was measured of it."""

    model: nn.Module
    facts: Mapping[str, Any]


def tune(config: RunConfig, project: Project, result: SearchResult, folder: Path) -> Tuned:
    """Apply a plan for good, fine-tune, save the small network, measure it on test."""
    small = project.task.network(result.best.kept)
    settings, yardstick = tuning_settings(config, project), project.yardstick

    def measure() -> dict[str, Any]:
        before = quality(project, small)
        label = f"tune {result.plan.notes.get('searcher', '')}"
        tuned = _tuned(label, config, small, project, folder)
        after = quality(project, tuned) if config.finetune_epochs else None
        save(folder / "model", tuned, result.plan, {yardstick.key("test"): after or before})
        return {yardstick.key("before"): before, yardstick.key("after"): after}

    made_of = {**project.fingerprint, **identity_of(plan=result.best.kept, tuning=settings)}
    facts = once(folder / "result.json", made_of, measure)
    if (folder / "model" / WEIGHTS).exists():
        load_weights_into(small, folder / "model")
    sizes = {"file_bytes": size_on_disk(folder / "model"), **left(small, result.plan, project.task)}
    return Tuned(small.eval(), {**facts, **sizes})


def left(network: nn.Module, plan: PruningPlan, task: PruningTask) -> dict[str, float]:
    """Parameters counted on the network itself; what is zero in a thinned matrix is none."""
    thinned = KeepMasks.of_plan(plan, network).keep
    zeros = sum(int((network.get_parameter(name) == 0).sum()) for name in thinned)
    params = float(sum(p.numel() for p in network.parameters()) - zeros)
    return {"params": params, "params_ratio": params / float(task.costs.dense[1])}


def quality(project: Project, model: nn.Module) -> float:
    """The project's figure of quality on test: the one use of the test split."""
    return project.yardstick.of(measured(project, model, project.test))


def measured(project: Project, model: nn.Module, data: Any) -> Metrics:
    """A network on some data, beside the dense one where that is what everything is compared to."""
    objective = project.task.objective
    reference = project.dense if objective.needs_dense else None
    return evaluate(model, data, objective=objective, reference=reference)


def row_of(
    task: PruningTask, result: SearchResult, kind: str, yardstick: Yardstick = ACCURACY
) -> dict[str, Any]:
    """What the report says of one search."""
    best, costs = result.best, task.costs(result.best.kept)
    return {
        "name": str(result.plan.notes.get("searcher", "")),
        "kind": kind,
        "seed": result.plan.notes.get("seed", 0),
        "evaluations": len(result.history),
        "search_seconds": result.seconds,
        "reward": best.reward,
        "kl": best.metrics.divergence,
        yardstick.key("reward"): yardstick.of(best.metrics),
        yardstick.key("before"): None,
        yardstick.key("after"): None,
        "macs": float(costs[0]),
        "params": float(costs[1]),
        "macs_ratio": best.flops_ratio,
        "params_ratio": best.params_ratio,
        "file_bytes": None,
        "latency_ms": None,
        "sparsity": result.plan.sparsity,
        "kept": {g.name: [k, g.units] for g, k in zip(task.groups, best.kept, strict=True)},
        "history": [
            {
                "reward": outcome.reward,
                yardstick.name: yardstick.of(outcome.metrics),
                "kl": outcome.metrics.divergence,
                "flops_ratio": outcome.flops_ratio,
            }
            for outcome in result.history
        ],
    }


def latencies(
    project: Project, models: Mapping[str, nn.Module], plans: Mapping[str, Any], path: Path
) -> dict[str, dict[str, float]]:
    """Milliseconds per batch of test samples, all networks in turns; kept in `path`."""
    inputs = latency_batch(project).inputs

    def measure() -> dict[str, Any]:
        return {name: vars(t) for name, t in measure_latency(models, inputs).items()}

    return once(path, {**project.fingerprint, **identity_of(plans=plans)}, measure)


def latency_batch(project: Project) -> Batch:
    """What latency is measured on: at most `LATENCY_BATCH` test samples."""
    return take_batches(project.test, LATENCY_BATCH, LATENCY_BATCH)[0]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


OF_DENSE = ("network", "dense weights", "threads", "torch", "val data", "test data", "quality")
"""Parts of a project that the figures of its dense network depend on."""


def dense_facts(project: Project, folder: Path) -> dict[str, Any]:
    """The dense network's row."""
    example = take_batches(project.test, 2, 2)[0].inputs
    costs = CostModel.of(project.dense, example, ()).fixed_M
    path = folder / "dense" / "model.safetensors"
    if not path.exists():
        save_tensors(path, distinct(project.dense))

    def measure() -> dict[str, Any]:
        test = measured(project, project.dense, project.test)
        val = measured(project, project.dense, project.val)
        return {
            project.yardstick.key("test"): project.yardstick.of(test),
            project.yardstick.key("val"): project.yardstick.of(val),
            "test_samples": test.samples,
            "test_loss_std": project.yardstick.spread(test),
            "macs": float(costs[0]),
            "params": float(costs[1]),
            "file_bytes": path.stat().st_size,
        }

    made_of = {name: value for name, value in project.fingerprint.items() if name in OF_DENSE}
    return once(folder / "dense" / "result.json", made_of, measure)
