"""A classifier pruned alike everywhere, then distilled from the dense network: points lost.

    python -m experiments.bench_classifiers --out experiments/results/bert_sst2
    python -m experiments.bench_classifiers --task vit_cifar10 \\
        --keep '*.mlp.fc1=0.6,*.q_proj=0.75'

Statistics of criterion and repair come from training data. Of every tuning two networks are
measured: at the epoch that val chose, 0 being the untuned one, and after the last epoch. A killed
tuning goes on after its last epoch.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.run import digest_of, option
from prune_env.experiments.report.publishing import markdown, note
from prune_env.pipeline.formats import percent, points

if TYPE_CHECKING:
    from torch import nn

    from prune_env.pipeline.project import Project
    from prune_env.quality.evaluators import Metrics
    from prune_env.recovery.finetune import FinetuneResult
    from prune_env.structure.groups import PrunableGroup

REWARD_SAMPLES = 100
"""A task wants some; nothing here is decided by them."""


@dataclass(frozen=True)
class ClassifierConfig(BenchFlags):
    """Prune by hand-given fractions, tune for a few epochs with the dense teacher, measure."""

    task: str = option("bert_sst2", "project by name, or package.module:make_project")
    keep: tuple[str, ...] = option(
        ("*.intermediate.dense=0.6", "*.self.query=0.75"),
        "glob=fraction of units kept; groups that no glob names stay whole",
    )
    criterion: str = option("obs", "what makes a unit worth keeping")
    repair: str = option("least_squares", "what is done to the pruned network before tuning")
    calibration_samples: int = option(500, "training samples for the statistics of the repair")
    seed: int = option(0, "seed of the calibration samples")
    epochs: int = option(1, "epochs of tuning")
    learning_rate: float = option(0.0, "peak learning rate of it; 0: the project's own")
    distill_weight: float = option(0.5, "share of the dense teacher in its loss")
    tune_seeds: tuple[int, ...] = option((0,), "seeds of tuning, each a row of the table")
    runs: Path = option(  # noqa: RUF009 (it makes a field)
        Path("runs"), "where checkpoints of the tuning are kept", identity=False
    )


def measure(config: ClassifierConfig) -> dict[str, Any]:
    """Quality on val and test of the dense, the pruned and every tuned network.

    Raises:
        ConfigError: the project is a bare task, or `keep` is malformed or names no group.
    """
    rules, project = rules_of(config.keep), _open(config)
    task = project.task
    kept = kept_units(task.groups, rules)
    costs = {on: float(task.costs.ratio(kept, on)) for on in ("macs", "params")}
    small = task.network(kept)
    least = [g.levels[0] if k < g.units else k for g, k in zip(task.groups, kept, strict=True)]
    rows = [
        _row("dense", project.dense, project),
        _row("smallest levels", task.network(least), project),
        _row("pruned", small, project),
    ]
    for seed in config.tune_seeds:
        tuned = _tuned(config, project, small, seed)
        notes = {"epoch": tuned.best_epoch, "epochs_val": _accuracies(tuned)}
        for name, model in {"chosen": tuned.model, "last": _last(tuned)}.items():
            rows.append({**_row(f"seed {seed}, {name} epoch", model, project), **notes})
    for row in rows:
        row |= {f"{part}_lost": rows[0][part] - row[part] for part in ("val", "test")}
    groups = {g.name: [k, g.units] for g, k in zip(task.groups, kept, strict=True)}
    return {"project": project.name, "rows": rows, "left": costs, "groups": groups}


def _open(config: ClassifierConfig) -> Project:
    from prune_env import PruningTask
    from prune_env.errors import ConfigError
    from prune_env.experiments.networks.presets import open_named

    # Any plan may be built: the budget only limits what the task itself would propose.
    names = ("criterion", "repair", "calibration_samples", "seed")
    options = {name: getattr(config, name) for name in names}
    options["reward_samples"] = REWARD_SAMPLES
    project = open_named(config.task, budget=1.0, **options)
    if isinstance(project, PruningTask):
        raise ConfigError(
            f"'{config.task}' is a bare task, without data to tune on. Name a project, or a "
            "function that returns one."
        )
    return project


def rules_of(keep: Sequence[str]) -> dict[str, float]:
    """Fraction kept by glob, of texts such as "*.dense=0.6".

    Raises:
        ConfigError: a text of another form, or a fraction outside (0, 1].
    """
    from prune_env.errors import ConfigError

    rules = {}
    for text in keep:
        glob, _, fraction = text.rpartition("=")
        try:
            rules[glob] = float(fraction)
            fits = bool(glob) and 0 < rules[glob] <= 1
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(f"--keep holds '{text}'; give glob=fraction, the fraction in (0, 1].")
    return rules


def kept_units(groups: Sequence[PrunableGroup], rules: Mapping[str, float]) -> list[int]:
    """Units left in each group: the largest level that is not above the fraction asked for.

    Raises:
        ConfigError: a glob that names no group, or a fraction below a group's smallest level.
    """
    from prune_env.errors import ConfigError

    for glob in rules:
        if not any(fnmatchcase(group.name, glob) for group in groups):
            names = ", ".join(f"'{group.name}'" for group in groups[:6])
            raise ConfigError(f"'{glob}' of --keep names none of {len(groups)} groups: {names}...")
    kept = []
    for group in groups:
        share = min((v for glob, v in rules.items() if fnmatchcase(group.name, glob)), default=1.0)
        levels = [level for level in group.levels if level <= share * group.units + 1e-9]
        if not levels:
            raise ConfigError(
                f"--keep leaves {share:.3f} of the {group.units} units of '{group.name}', whose "
                f"smallest level is {group.levels[0]}. Keep more."
            )
        kept.append(levels[-1])
    return kept


def _last(tuned: FinetuneResult) -> nn.Module:
    """The network after its last epoch, whatever val thought of it."""
    model = copy.deepcopy(tuned.model)
    model.load_state_dict(tuned.last)
    return model


def _accuracies(tuned: FinetuneResult) -> list[float]:
    return [record.val_figure for record in tuned.history]


def _tuned(
    config: ClassifierConfig, project: Project, small: nn.Module, seed: int
) -> FinetuneResult:
    from prune_env import FinetuneSettings, finetune

    chosen: dict[str, Any] = {**project.recipe, "distill_weight": config.distill_weight}
    chosen |= {"learning_rate": config.learning_rate} if config.learning_rate else {}
    settings = FinetuneSettings(**{**chosen, "epochs": config.epochs, "seed": seed})
    folder = config.runs / f"bench-{project.name}-{digest_of(config)}"
    folder.mkdir(parents=True, exist_ok=True)
    return finetune(
        small,
        project.train,
        project.val,
        settings=settings,
        teacher=project.dense,
        objective=project.task.objective,
        checkpoint=folder / f"seed{seed}.pt",
        on_epoch=lambda record: note(f"epoch {record.epoch}: val {record.val_figure:.2%}"),
    )


def _row(name: str, model: nn.Module, project: Project) -> dict[str, Any]:
    from prune_env.recovery.epoch import evaluate

    row, read = dict[str, Any](name=name), project.task.objective
    for part in ("val", "test"):
        found: Metrics = evaluate(model, getattr(project, part), objective=read)
        row |= {part: found.figure, f"{part}_loss": found.loss}
        row[f"{part}_samples"] = found.samples
    note(f"{name}: val {row['val']:.2%}, test {row['test']:.2%}")
    return row


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown: a line per network."""
    from prune_env.pipeline.yardstick import binomial_error

    rows, left, settings = figures["rows"], figures["left"], figures["settings"]
    dense = rows[0]
    errors = [points(binomial_error(dense[p], dense[f"{p}_samples"]), False) for p in _PARTS]
    cells = [
        [
            _label(row),
            *(text for p in _PARTS for text in (percent(row[p]), _gap(row, dense, p))),
        ]
        for row in rows
    ]
    head = ["network", *(text for p in _PARTS for text in (f"{p} accuracy", "against dense"))]
    return (
        f"# {figures['project']} pruned alike everywhere and distilled\n\n"
        f"Kept: {', '.join(f'`{rule}`' for rule in settings['keep'])}; "
        f"{percent(left['macs'], 1)} of the MACs and {percent(left['params'], 1)} of the "
        f"parameters are left. Criterion {settings['criterion']}, repair {settings['repair']}, "
        f"then {settings['epochs']} epoch(s) of tuning with the dense network as teacher. "
        f"Standard error of one accuracy: val ({dense['val_samples']:,} samples) {errors[0]}, "
        f"test ({dense['test_samples']:,}) {errors[1]}. "
        "Smallest levels: the same groups cut as far as they go, repaired, not tuned; where "
        "they do as well, this task does not tell good pruning from bad.\n\n"
        + markdown(head, cells)
    )


def _label(row: Mapping[str, Any]) -> str:
    """The chosen one of a tuning's two networks is told with the number of its epoch."""
    chosen = "chosen" in row["name"]
    return f"{row['name']}: {row['epoch']}" if chosen else str(row["name"])


def _gap(row: Mapping[str, Any], dense: Mapping[str, Any], part: str) -> str:
    return points(None if row is dense else row[part] - dense[part])


_PARTS = ("val", "test")

main = bench("bench_classifiers", ClassifierConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
