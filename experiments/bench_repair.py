"""What closed-form repair is worth: accuracy of uniformly pruned networks, nothing tuned.

    python -m experiments.bench_repair
    python -m experiments.bench_repair --model resnet20 --data ../shared/data/cifar10_jpeg \\
        --weights ../shared/models/resnet20_cifar10_jpeg/model.safetensors --threads 1 \\
        --out experiments/results/repair_resnet20

Without --weights the dense network is trained first, kept under runs/ and taken from there the
next time; a training that was killed goes on after its last epoch. Calibration images come from
train, accuracy and KL are of val; test is not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.benches.subjects import dense_weights, run_config, val_batches
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import note

KEEPS = (0.75, 0.5, 0.3)
"""Fractions of every group's units that stay."""
ORDERS = ("l1", "obs")
"""Criteria that order the units."""


@dataclass(frozen=True)
class RepairConfig(BenchFlags):
    """Prune uniformly to 75, 50 and 30 %, repair in every way, measure."""

    model: str = option("digits", "network, see experiments/networks/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")
    calibration_samples: int = option(1000, "training images for the statistics of the repair")
    val_samples: int = option(0, "val images measured on; 0: all")
    ignore: tuple[str, ...] = option((), "layers left alone: names or globs, comma separated")
    seed: int = option(0, "seed of everything random")
    dense_epochs: int = option(8, "epochs of dense training where no weights are given")
    dense_samples: int = option(0, "training images of it; 0: all")
    dense_learning_rate: float = option(0.1, "peak learning rate of it")
    runs: Path = option(Path("runs"), "where the dense network is trained and kept")  # noqa: RUF009


def measure(config: RepairConfig) -> dict[str, Any]:
    """Accuracy and KL of every keep, order and repair, and of the dense network, on val."""
    from prune_env import PruningTask
    from prune_env.experiments.stages.stages import open_project
    from prune_env.mdp.candidates import CandidateEvaluator
    from prune_env.quality.evaluators import Evaluator
    from prune_env.repair.repairs import REPAIRS, repair_named

    weights = dense_weights(config)
    # Any plan may be built: the budget only limits what the task itself would propose.
    run = replace(run_config(config, weights), budget=1.0)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for order in ORDERS:
        project = open_project(replace(run, criterion=order))
        assert not isinstance(project, PruningTask)
        task, evaluate = project.task, project.task.evaluator
        assert isinstance(evaluate, CandidateEvaluator)
        val = Evaluator.of(project.dense, val_batches(project, config.val_samples))
        if not figures:
            dense = val(project.dense)
            figures = {"dense_accuracy": dense.figure, "val_samples": dense.samples}
            figures["groups"] = {group.name: group.units for group in task.groups}
            note(f"dense {dense.figure:.2%}")
        for keep in KEEPS:
            kept = tuple(group.nearest_level(keep * group.units) for group in task.groups)
            macs = float(task.costs.ratio(kept, "macs"))
            for repair in sorted(REPAIRS, key=_strength):
                network = replace(evaluate, repair=repair_named(repair)).network(kept)
                metrics = val(network)
                row = {"order": order, "repair": repair, "keep": keep, "macs_ratio": macs}
                rows.append({**row, "accuracy": metrics.figure, "kl": metrics.divergence})
                note(f"{order} {repair} {keep:.0%}: {metrics.figure:.2%}")
    return {**figures, "rows": rows}


def _strength(repair: str) -> int:
    """Place of a repair in the table: the weakest first, unknown ones last."""
    known = ("none", "bias", "batchnorm", "least_squares", "least_squares+batchnorm")
    return known.index(repair) if repair in known else len(known)


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown: a line per order and repair, a column per keep."""
    rows, settings = figures["rows"], figures["settings"]
    table = pivoted(
        rows, {name: itemgetter(name) for name in ("order", "repair")},
        lambda row: f"{row['keep']:.0%} kept, {row['macs_ratio']:.1%} MACs",
        lambda own: f"{100 * own[0]['accuracy']:.1f} ({own[0]['kl']:.3f})",
    )  # fmt: skip
    return (
        f"# Repair of a uniformly pruned {settings['model']}, no fine-tuning\n\n"
        f"Accuracy in % (KL to the dense network, nats) on {figures['val_samples']:,} val images; "
        f"dense {100 * figures['dense_accuracy']:.1f}. All {len(figures['groups'])} groups keep "
        f"the same fraction of their units; statistics of {settings['calibration_samples']:,} "
        "training images.\n\n" + table
    )


main = bench("bench_repair", RepairConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
