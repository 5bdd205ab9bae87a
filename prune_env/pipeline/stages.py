"""The stages between a dense network and a report; each leaves files where it is given a folder.

dense -> search (every searcher) -> tune (a plan) -> rows of the report. A stage whose files are
there is not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from prune_env.costs.latency import measure_latency
from prune_env.costs.model import CostModel
from prune_env.deploy.bundle import WEIGHTS, distinct, load_weights_into, save, size_on_disk
from prune_env.fingerprint import Identity, identity_of
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.pipeline.once import once
from prune_env.pipeline.project import Project
from prune_env.pipeline.yardstick import Yardstick
from prune_env.plan.plan import PruningPlan
from prune_env.progress import Progress, progress
from prune_env.quality.batches import Batch, take_batches
from prune_env.quality.evaluators import Metrics
from prune_env.recovery.checkpoint import EpochRecord
from prune_env.recovery.epoch import evaluate
from prune_env.recovery.finetune import finetune
from prune_env.recovery.masks import KeepMasks
from prune_env.recovery.training import Tuning
from prune_env.search.ledger import Ledger
from prune_env.search.searchers import Listener, Searcher, SearchResult, run_search
from prune_env.search.workers import Workers
from prune_env.storage import save_tensors
from prune_env.structure.inputs import device_of

LATENCY_BATCH = 64
TUNE, MODEL = "tune", "model"
"""Folder of what was tuned, by the name of its searcher, and in each the network itself."""


@dataclass(frozen=True)
class Hunt:
    """One search.

    Attributes:
        name: of the searcher.
        evaluations: plans that it may measure.
        seed: of the searcher.
        searcher: what searches, where the name does not say it.
    """

    name: str
    evaluations: int
    seed: int = 0
    searcher: Searcher | None = None


@dataclass(frozen=True, eq=False)
class Tuned:
    """A pruned network after fine-tuning, and what was measured of it."""

    model: nn.Module
    facts: Mapping[str, Any]


def search(
    task: PruningTask,
    hunt: Hunt,
    folder: Path | None,
    listener: Listener | None = None,
    workers: int | Workers = 1,
) -> SearchResult:
    """Let one searcher spend its evaluations; one-shot allocators spend one."""
    with progress(f"search {hunt.name}", hunt.evaluations, "evaluations") as bar:
        show = shown_on(bar)

        def tell(ledger: Ledger, outcome: Outcome) -> None:
            show(ledger, outcome)
            if listener is not None:
                listener(ledger, outcome)

        return run_search(
            task, hunt.name, hunt.evaluations, hunt.seed, folder, tell, searcher=hunt.searcher,
            workers=workers,
        )  # fmt: skip


def shown_on(bar: Progress) -> Listener:
    """Counts what a search has spent, and shows the best that it has found."""

    def tell(ledger: Ledger, outcome: Outcome) -> None:
        best = ledger.best
        remark = f"best reward {best.reward:.4f}" if best.eligible else "looking"
        bar.step(remark, outcome.metrics.share)

    return tell


def tune(project: Project, result: SearchResult, tuning: Tuning, folder: Path | None) -> Tuned:
    """Apply a plan for good, measure it, fine-tune, measure again; with a folder, save it there."""
    small, yardstick = project.task.network(result.best.kept), project.yardstick
    made: list[nn.Module] = []

    def measure() -> dict[str, Any]:
        facts = figures(project, small, "before")
        label = f"tune {result.plan.notes.get('searcher', '')}"
        made.append(_tuned(label, small, project, tuning, folder))
        facts |= {yardstick.key("after"): None}
        if tuning.settings.epochs:
            facts |= figures(project, made[0], "after")
        if folder is not None:
            save(
                folder / MODEL,
                made[0],
                result.plan,
                {yardstick.key("test"): ended(facts, yardstick)},
            )
        return facts

    settings: Any = tuning.settings
    if tuning.loss or tuning.optimizer or tuning.scheduler:
        settings = [tuning.settings, tuning.loss, tuning.optimizer, tuning.scheduler]
    made_of = partial(_made_of, project, plan=result.best.kept, tuning=settings)
    facts = once(folder and folder / "result.json", made_of, measure)
    if folder is not None and (folder / MODEL / WEIGHTS).exists():
        load_weights_into(small, folder / MODEL)
        facts = {**facts, "file_bytes": size_on_disk(folder / MODEL)}
    elif made:
        small = made[0]
    return Tuned(small.eval(), {**facts, **left(small, result.plan, project.task)})


def ended(facts: Mapping[str, Any], yardstick: Yardstick) -> float | None:
    """The figure of quality of what was delivered: after tuning, if there was any."""
    after: float | None = facts[yardstick.key("after")]
    before: float | None = facts[yardstick.key("before")]
    return before if after is None else after


def _tuned(
    label: str, model: nn.Module, project: Project, tuning: Tuning, folder: Path | None
) -> nn.Module:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    shown = project.yardstick
    # A loss of one's own may be of outputs that only train mode gives, which no teacher has.
    teacher = project.dense if tuning.loss is None else None
    with progress(label, tuning.settings.epochs, "epochs") as bar:

        def tell(record: EpochRecord) -> None:
            if record.epoch:
                value = shown.show(record.val_figure)
                bar.step(f"val {shown.name} {value}, loss {record.val_loss:.4f}")

        return finetune(
            model, project.train, project.val, settings=tuning.settings, teacher=teacher,
            checkpoint=folder and folder / "checkpoint.pt", on_epoch=tell,
            objective=project.task.objective, loss=tuning.loss, optimizer=tuning.optimizer,
            scheduler=tuning.scheduler,
        ).model  # fmt: skip


def left(network: nn.Module, plan: PruningPlan, task: PruningTask) -> dict[str, float]:
    """Parameters counted on the network itself; what is zero in a thinned matrix is none."""
    thinned = KeepMasks.of_plan(plan, network).keep
    zeros = sum(int((network.get_parameter(name) == 0).sum()) for name in thinned)
    params = float(sum(p.numel() for p in network.parameters()) - zeros)
    return {"params": params, "params_ratio": params / float(task.costs.dense[1])}


def measured(project: Project, model: nn.Module, data: Any, apart: bool = False) -> Metrics:
    """A network on some data.

    Beside the dense one where how far `apart` they are is asked, or is all there is to measure.
    """
    objective = project.task.objective
    reference = project.dense if objective.needs_dense or apart else None
    return evaluate(model, data, objective=objective, reference=reference)


def quality(project: Project, model: nn.Module) -> float:
    """The project's figure of quality on test: the one use of the test split."""
    return project.yardstick.of(measured(project, model, project.test))


def figures(project: Project, model: nn.Module, stage: str) -> dict[str, Any]:
    """The figure of quality on test and its standard error, by the keys of a stage.

    Before tuning also the divergence: what the search was paid for, where nothing was chosen.
    """
    apart = stage == "before" and project.task.objective.evaluate is None
    metrics = measured(project, model, project.test, apart)
    yardstick = project.yardstick
    value, spread = yardstick.of(metrics), yardstick.spread(metrics)
    error = yardstick.error(value, metrics.samples, spread)
    facts = {yardstick.key(stage): value, yardstick.key(f"{stage}_error"): error}
    if apart:
        if project.task.tunes:
            paid_for = project.task.as_measured(model)
            metrics = measured(project, paid_for, project.test, apart)
        facts |= {"kl_held_out": metrics.divergence, "kl_held_out_error": metrics.divergence_error}
    return facts


def latencies(
    project: Project, models: Mapping[str, nn.Module], plans: Mapping[str, Any], path: Path | None
) -> dict[str, dict[str, float]]:
    """Milliseconds per batch of test samples, all networks in turns; kept in `path`."""
    inputs = latency_batch(project).inputs

    def measure() -> dict[str, Any]:
        return {name: vars(t) for name, t in measure_latency(models, inputs).items()}

    return once(path, partial(_made_of, project, plans=plans), measure)


def latency_batch(project: Project) -> Batch:
    """What latency is measured on: at most `LATENCY_BATCH` test samples, beside the network."""
    first = take_batches(project.test, LATENCY_BATCH, LATENCY_BATCH)[0]
    return first.to(device_of(project.dense))


def _made_of(project: Project, **parts: Any) -> Identity:
    return {**project.fingerprint, **identity_of(**parts)}


OF_DENSE = ("network", "dense weights", "threads", "torch", "val data", "test data", "quality")
"""Parts of a project that the figures of its dense network depend on."""


def dense_facts(project: Project, folder: Path | None) -> dict[str, Any]:
    """The dense network's row."""
    example = take_batches(project.test, 2, 2)[0].to(device_of(project.dense)).inputs
    costs = CostModel.of(project.dense, example, ()).fixed_M
    path = folder and folder / "model.safetensors"
    if path and not path.exists():
        save_tensors(path, distinct(project.dense))

    def measure() -> dict[str, Any]:
        yardstick = project.yardstick
        test = measured(project, project.dense, project.test)
        val = measured(project, project.dense, project.val)
        spread = yardstick.spread(test)
        return {
            yardstick.key("test"): yardstick.of(test),
            yardstick.key("test_error"): yardstick.error(yardstick.of(test), test.samples, spread),
            yardstick.key("val"): yardstick.of(val),
            "test_samples": test.samples,
            "test_loss_std": spread,
            "macs": float(costs[0]),
            "params": float(costs[1]),
            "file_bytes": path.stat().st_size if path else None,
        }

    def made_of() -> Identity:
        return {name: value for name, value in project.fingerprint.items() if name in OF_DENSE}

    return once(folder and folder / "result.json", made_of, measure)
