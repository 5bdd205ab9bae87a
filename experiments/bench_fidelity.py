"""Which reward says most, per second, of what a plan is worth after fine-tuning?

    python -m experiments.bench_fidelity --samples 64,128,256 --calibration-samples 200 \\
        --tune-samples 300
    nice -n 5 python -m experiments.bench_fidelity --model resnet20 \\
        --data ../shared/data/cifar10_jpeg \\
        --weights ../shared/models/resnet20_cifar10_jpeg/model.safetensors \\
        --tune-epochs 1 --out experiments/results/fidelity_resnet20

Random plans of one budget are measured in every way (repair x metric x samples) and fine-tuned, all
alike, from the network that the repair `least_squares` leaves. The table holds the rank correlation
of each reward with the fine-tuned accuracy on val. Calibration, reward and tuning images are
disjoint parts of train; test is not touched.

Every finished plan is a line of a journal under runs/: a killed run goes on from there. Costs are
processor time of this process, not wall time, so that a busy machine disturbs little.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prune_env.experiments.benches.fidelity import FidelityConfig, measure
from prune_env.experiments.benches.harness import bench
from prune_env.experiments.report.correlation import interval, spearman
from prune_env.experiments.report.publishing import markdown

METRICS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "accuracy": lambda measured: measured["accuracy"],
    "-cross-entropy": lambda measured: -measured["loss"],
    "-KL": lambda measured: -measured["kl"],
}
"""Reward -> its value, higher is better."""
NEAR = 0.05
"""A setting whose correlation is within this of the best is good enough."""


def analyse(config: FidelityConfig, records: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the table, best first, the settings it recommends, and the noise of the target."""
    plans = [record for name, record in records.items() if name.startswith("plan")]
    tuned = np.array([record["tuned"] for record in plans])
    rows = []
    for repair, by_size in plans[0]["rewards"].items():
        for number, measured in enumerate(by_size):
            cells = [record["rewards"][repair][number] for record in plans]
            dense = [record["dense_seconds"][number] for record in plans]
            seconds = [cell["seconds"] for cell in cells]
            cost = float(np.median(seconds) / np.median(dense))
            for metric, value in METRICS.items():
                reward = np.array([value(cell) for cell in cells])
                low, high = interval(reward, tuned, config.resamples, config.seed)
                rows.append(
                    {
                        "repair": repair,
                        "metric": metric,
                        "samples": measured["samples"],
                        "spearman": float(spearman(reward, tuned)),
                        "low": low,
                        "high": high,
                        "dense_passes": cost,
                        "dense_images": cost * measured["samples"],
                    }
                )
    rows.sort(key=lambda row: -row["spearman"] if math.isfinite(row["spearman"]) else math.inf)
    near = [row for row in rows if row["spearman"] >= rows[0]["spearman"] - NEAR]
    return {
        "plans": len(plans),
        "best": rows[0],
        "cheapest_within_0.05": min(near, key=lambda row: row["dense_images"], default=rows[0]),
        "target": target(records),
        "rows": rows,
    }


def target(records: Mapping[str, Any]) -> dict[str, float]:
    """How far the fine-tuned accuracies lie apart, and how much of that is chance.

    `reliability` is the share of the variance that another seed of the tuning repeats; not even a
    perfect forecast of a plan's mean accuracy correlates with one tuning above `ceiling`, its root.
    """
    plans = {n: r for n, r in records.items() if n.startswith("plan")}
    tuned = np.array([record["tuned"] for record in plans.values()])
    first = plans["plan 0"]
    again = {n.partition(" ")[2]: r["tuned"] for n, r in records.items() if n not in plans}
    gaps = np.array([value - plans[f"plan {i}"]["tuned"] for i, value in again.items()])
    variance = float(tuned.var(ddof=1)) if len(tuned) > 1 else math.nan
    chance = float((gaps * gaps).mean() / 2) if len(gaps) else math.nan
    known = variance > 0 and math.isfinite(chance)
    reliability = max(0.0, 1 - chance / variance) if known else math.nan
    mean = float(tuned.mean())
    return {
        "accuracy_before_mean": float(np.mean([r["before"] for r in plans.values()])),
        "accuracy_tuned_mean": mean,
        "accuracy_tuned_min": float(tuned.min()),
        "accuracy_tuned_max": float(tuned.max()),
        "accuracy_tuned_deviation": math.sqrt(variance),
        "binomial_error": math.sqrt(mean * (1 - mean) / first["val_samples"]),
        "seed_deviation": math.sqrt(chance),
        "retuned": float(len(gaps)),
        "reliability": reliability,
        "ceiling": math.sqrt(reliability),
        "tune_seconds_median": float(np.median([r["seconds"] for r in plans.values()])),
    }


def page(figures: Mapping[str, Any]) -> str:
    """What came out, in words and as a Markdown table."""
    settings, goal = figures["settings"], figures["target"]
    best, cheap = figures["best"], figures["cheapest_within_0.05"]
    cells = [
        [
            row["repair"],
            row["metric"],
            f"{row['samples']:,}",
            f"{row['spearman']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['dense_passes']:.2f}",
            f"{row['dense_images']:,.0f}",
        ]
        for row in figures["rows"]
    ]
    head = ["repair", "metric", "samples", "Spearman", "95 % interval", "dense passes", "images"]
    return (
        f"# Rewards against accuracy after fine-tuning, {settings['model']}\n\n"
        f"{figures['plans']} random plans at {settings['budget']:.0%} of the MACs, units in the "
        f"order of {settings['criterion']}, fine-tuned {settings['tune_epochs']} epochs on "
        f"{settings['tune_samples']:,} training images (peak learning rate "
        f"{settings['learning_rate']:g}, no distillation), finetuned with repair least_squares as "
        f"the start; accuracy on {settings['val_samples'] or 'all'} val images.\n\n"
        f"- best: {_named(best)}\n- cheapest within {NEAR}: {_named(cheap)}\n"
        f"- accuracy of the plans before tuning {100 * goal['accuracy_before_mean']:.1f} % in the "
        f"mean, after it {100 * goal['accuracy_tuned_mean']:.1f} (from "
        f"{100 * goal['accuracy_tuned_min']:.1f} to {100 * goal['accuracy_tuned_max']:.1f}, "
        f"deviation {100 * goal['accuracy_tuned_deviation']:.2f} points; binomial error "
        f"{100 * goal['binomial_error']:.2f}, though all plans share the val images)\n"
        f"- {goal['retuned']:.0f} plans tuned with another seed: deviation between seeds "
        f"{100 * goal['seed_deviation']:.2f} points, reliability {goal['reliability']:.2f}, so no "
        f"reward can be expected above {goal['ceiling']:.2f}\n\n"
        "*Dense passes*: processor time of one evaluation (cut, repair, forward) over that of a "
        "plain dense forward pass over the same samples. *Images*: that times the samples. "
        "Statistics and ladders, made once per task, are not in it.\n\n" + markdown(head, cells)
    )


def _named(row: Mapping[str, Any]) -> str:
    return (
        f"{row['repair']}, {row['metric']}, {row['samples']:,} samples: {row['spearman']:.2f} "
        f"({row['low']:.2f} to {row['high']:.2f}), {row['dense_passes']:.2f} dense passes"
    )


def analysed(config: FidelityConfig) -> dict[str, Any]:
    """Measured, or taken from the folder, and put together."""
    return analyse(config, measure(config))


main = bench("bench_fidelity", FidelityConfig, analysed, page)

if __name__ == "__main__":
    sys.exit(main(None))
