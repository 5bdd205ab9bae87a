"""Quality of a language model that lost experts, the same number in every layer, nothing tuned.

    python -m experiments.bench_experts --out experiments/results/experts_mixtral

The first use of a preset trains its dense network. Criteria watch training rows; cross-entropy and
KL to the dense network are of the val rows, the mean over all predicted tokens.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import note

if TYPE_CHECKING:
    from prune_env.criteria.scorers import Evidence

RANDOM = "random"


@dataclass(frozen=True)
class ExpertsConfig(BenchFlags):
    """Drop experts from every layer by each criterion, and measure."""

    task: str = option("mixtral_shakespeare", "a preset, or package.module:function of a Project")
    dropped: tuple[str, ...] = option(("1", "2", "4"), "experts dropped from every layer")
    criteria: tuple[str, ...] = option(
        ("reap", "frequency", "taylor"), "what decides which experts stay"
    )
    random_seeds: int = option(5, "random orders measured too")
    calibration_rows: int = option(500, "training rows that criteria watch")
    val_rows: int = option(0, "val rows measured on; 0: all")
    seed: int = option(0, "seed of the draw of calibration rows")


def measure(config: ExpertsConfig) -> dict[str, Any]:
    """Cross-entropy and KL of the dense network and of every criterion at every number dropped."""
    from prune_env.calibration.gradients import loss_gradients
    from prune_env.calibration.statistics import calibrate
    from prune_env.criteria.experts import experts_of
    from prune_env.criteria.scorers import Evidence, score_groups
    from prune_env.errors import ConfigError
    from prune_env.experiments.networks.presets import open_named
    from prune_env.pipeline.project import Project
    from prune_env.plan.cut import Candidates
    from prune_env.quality.batches import take_batches
    from prune_env.quality.evaluators import Evaluator

    rows = config.calibration_rows
    # Any plan may be built: the budget only limits what the task itself would propose.
    options = {"criterion": "l1", "budget": 1.0, "seed": config.seed}
    project = open_named(config.task, calibration_samples=rows, reward_samples=1, **options)
    found = experts_of(project.dense, project.task.groups) if isinstance(project, Project) else {}
    if not isinstance(project, Project) or not found:
        raise ConfigError(f"'{config.task}' has no experts, or no val split. Try the default task.")
    groups = [group for group in project.task.groups if group.name in found]
    dense, batches = project.dense, take_batches(_calibration(project, config), rows)
    evaluate = Evaluator.of(dense, take_batches(project.val, config.val_rows or None))
    figures: dict[str, Any] = {
        "dense_loss": evaluate(dense).loss,
        "predicted_tokens": evaluate.samples,
        "experts": {group.name: group.units for group in groups},
        "chosen": {group.name: group.min_keep for group in groups},
    }
    note(f"dense {figures['dense_loss']:.4f}")
    evidence = Evidence(
        calibrate(dense, batches, groups), lambda: loss_gradients(dense, batches), 0, batches
    )
    candidates, results = Candidates(dense, groups), []
    for criterion, seeded in _orders(config, evidence):
        scores = score_groups(criterion, dense, groups, seeded)
        orders = {group.name: group.pattern.order(scores[group.name]) for group in groups}
        for gone in map(int, config.dropped):
            kept = {group.name: group.nearest_level(group.units - gone) for group in groups}
            units = {name: orders[name][:count] for name, count in kept.items()}
            metrics = evaluate(candidates.build(units))
            row = {"criterion": criterion, "seed": seeded.seed, "dropped": gone}
            results.append({**row, "loss": metrics.loss, "kl": metrics.divergence})
            results[-1]["kl_error"] = metrics.divergence_error
            results[-1]["gone"] = {n: orders[n][count:].tolist() for n, count in kept.items()}
            note(
                f"{criterion} {seeded.seed}, {gone} dropped: {metrics.loss:.4f} "
                f"{metrics.divergence:.4f}"
            )
    return {**figures, "rows": results}


def _calibration(project: Any, config: ExpertsConfig) -> Any:
    """The training rows in an order that only the seed decides."""
    from dataclasses import replace

    return replace(project.train, seed=config.seed)


def _orders(config: ExpertsConfig, evidence: Evidence) -> Iterator[tuple[str, Evidence]]:
    """Every criterion once, then the random ones."""
    from dataclasses import replace

    for criterion in config.criteria:
        yield criterion, evidence
    for seed in range(config.random_seeds):
        yield RANDOM, replace(evidence, seed=seed)


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown: a line per criterion, a column per number of experts dropped."""
    rows, settings = figures["rows"], figures["settings"]
    seeds = Counter(name for name, _ in {(row["criterion"], row["seed"]) for row in rows})

    def title(row: Mapping[str, Any]) -> str:
        name = str(row["criterion"])
        return name if seeds[name] == 1 else f"{name}, mean of {seeds[name]} (best)"

    counts = sorted(set(figures["experts"].values()))
    chosen = sorted(set(figures["chosen"].values()))
    return (
        f"# Experts dropped from {settings['task']}, no fine-tuning\n\nKL to the dense network "
        f"(cross-entropy), nats, on {figures['predicted_tokens']:,} predicted val tokens; dense "
        f"{figures['dense_loss']:.4f}. All {len(figures['experts'])} layers of "
        f"{', '.join(map(str, counts))} experts, {', '.join(map(str, chosen))} for each token, "
        "lose the same number.\n\n"
        + pivoted(rows, {"criterion": title}, lambda row: f"{row['dropped']} dropped", _cell)
    )


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    kl, loss = (sum(row[key] for row in rows) / len(rows) for key in ("kl", "loss"))
    best = f"; {min(row['kl'] for row in rows):.4f}" if len(rows) > 1 else ""
    return f"{kl:.4f} ({loss:.4f}){best}"


main = bench("bench_experts", ExpertsConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
