"""Which reward says most, per second, of what a plan is worth after fine-tuning?

    python -m experiments.bench_fidelity
    nice -n 5 python -m experiments.bench_fidelity --model resnet20 \\
        --data ../shared/data/cifar10_jpeg \\
        --weights ../shared/models/resnet20_cifar10_jpeg/model.safetensors \\
        --out experiments/results/fidelity_resnet20

Random plans of one budget are measured in every way (repair x metric x samples) and fine-tuned, all
alike, from the network that the repair `least_squares` leaves. The table holds the rank correlation
of each reward with the fine-tuned accuracy on val. Calibration, reward and tuning images are
disjoint parts of train; test is not touched.

Every finished plan is a line of a journal under runs/: a killed run goes on from there. Costs are
processor time of this process, not wall time, so that a busy machine disturbs little.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.bench_repair import (
    command_of,
    dense_weights,
    markdown,
    note,
    publish,
    run_config,
    settings_of,
    shuffled,
    val_batches,
)
from experiments.config import digest_of, main_guard, option, parse

Floats = NDArray[np.float64]

SLACK = 250
"""Largest batch that measures, see `fitting_batch`."""
METRICS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "accuracy": lambda measured: measured["accuracy"],
    "-cross-entropy": lambda measured: -measured["loss"],
    "-KL": lambda measured: -measured["kl"],
}
"""Reward -> its value, higher is better."""
NEAR = 0.05
"""A setting whose correlation is within this of the best is good enough."""


@dataclass(frozen=True)
class FidelityConfig:
    """Correlate every reward with the accuracy after fine-tuning."""

    model: str = option("digits", "network, see experiments/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")
    budget: float = option(0.5, "fraction of the dense MACs that may remain")
    criterion: str = option("obs", "what makes a unit worth keeping")
    plans: int = option(24, "random plans", identity=False)
    concentration: float = option(
        1.0, "sparsities are drawn from Beta(c, c): 1 is uniform, below 1 prefers the extremes"
    )
    samples: tuple[str, ...] = option(("256", "1000", "5000"), "reward sample sizes, growing")
    calibration_samples: int = option(1000, "training images for the statistics of the repair")
    tune_samples: int = option(5000, "training images of the fine-tuning")
    tune_epochs: int = option(2, "passes over them")
    learning_rate: float = option(0.02, "peak learning rate of the fine-tuning")
    retuned: int = option(6, "plans tuned again with another seed, for the noise", identity=False)
    resamples: int = option(2000, "bootstrap resamples of the plans", identity=False)
    val_samples: int = option(0, "val images measured on; 0: all")
    seed: int = option(0, "seed of everything random")
    dense_epochs: int = option(8, "epochs of dense training where no weights are given")
    dense_samples: int = option(0, "training images of it; 0: all")
    dense_learning_rate: float = option(0.1, "peak learning rate of it")
    threads: int = option(1, "CPU threads of torch; 0: its own choice", identity=False)
    runs: Path = option(Path("runs"), "folder of the journal", identity=False)  # noqa: RUF009
    out: str = option(
        "", "path without suffix of the .md and .json to write; empty: print only", identity=False
    )


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the table and, last, the JSON line."""
    config = parse(FidelityConfig, argv, prog="python -m experiments.bench_fidelity")
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    records = measure(config)
    figures = {**analyse(config, records), "settings": settings_of(config)}
    publish(config.out, command_of("bench_fidelity", argv), page(figures), figures)
    return 0


# --- Measuring: one record per plan -----------------------------------------------------------


def measure(config: FidelityConfig) -> dict[str, Any]:
    """Records by name, `plan i` and `retuned i`, from the journal where it has them."""
    journal = config.runs / f"fidelity-{config.model}-{digest_of(config)}" / "journal.jsonl"
    records = read_journal(journal)
    names = [f"plan {i}" for i in range(config.plans)]
    names += [f"retuned {i}" for i in range(min(config.retuned, config.plans))]
    missing = [name for name in names if name not in records]
    bench = _Bench(config) if missing else None
    for name in missing:
        assert bench is not None
        kind, _, number = name.partition(" ")
        record = {"name": name, **getattr(bench, kind)(int(number))}
        append_journal(journal, record)
        records[name] = record
        note(f"{name}: {record['before']:.2%} -> {record['tuned']:.2%} {record['seconds']:.0f} s")
    return {name: records[name] for name in names}


def read_journal(path: Path) -> dict[str, Any]:
    """Records by name; a last line that a kill cut short is removed from the file."""
    from prune_env.storage import write_text

    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return {record["name"]: record for record in map(json.loads, whole.splitlines())}


def append_journal(path: Path, record: Mapping[str, Any]) -> None:
    """One line more, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


class _Bench:
    """The network, the disjoint parts of train, and the random plans."""

    def __init__(self, config: FidelityConfig) -> None:
        from experiments.data import CropFlip, load_splits, loader
        from experiments.stages import open_project
        from prune_env import PruningTask
        from prune_env.mdp.candidates import CandidateEvaluator

        self.config = config
        self.sizes = sorted(int(size) for size in config.samples)
        weights = dense_weights(config)
        # Only for the dense network and val; the task below has its own part of train.
        run = replace(run_config(config, weights), reward_samples=32, calibration_samples=32)
        project = open_project(run, weights.parent)
        assert not isinstance(project, PruningTask)
        self.dense = project.dense
        self.val = val_batches(project, config.val_samples)
        splits = load_splits(config.data, seed=config.seed)
        shape = {"mean": splits.mean, "std": splits.std}
        # Calibration takes whole batches: SLACK more, so that the reward samples still suffice.
        rewarded = self.sizes[-1] + SLACK
        measured = config.calibration_samples + rewarded
        plain = shuffled(splits.train, config.seed, slice(measured))
        tuning = shuffled(
            splits.train, config.seed, slice(measured, measured + config.tune_samples)
        )
        augment = CropFlip(4) if tuning.images.shape[-1] >= 24 else None
        self.train = loader(tuning, batch_size=128, augment=augment, shuffle=True, **shape)
        self.task = PruningTask.from_model(
            project.dense,
            loader(plain, batch_size=125, **shape),
            budget=config.budget,
            criterion=config.criterion,
            repair="least_squares",
            calibration_samples=config.calibration_samples,
            reward_samples=rewarded,
        )
        assert isinstance(self.task.evaluate, CandidateEvaluator)
        self.evaluate = self.task.evaluate
        self.parts = _parts(self.dense, self.evaluate.measure.batches, self.sizes)  # type: ignore[attr-defined]
        self.plans = draw(self.task, config)

    def plan(self, number: int) -> dict[str, Any]:
        """All rewards of a plan, and what fine-tuning makes of it."""
        from prune_env.surgery.repair import REPAIRS

        kept = self.plans[number]
        rewards = {name: self._rewards(kept, repair) for name, repair in REPAIRS.items()}
        return {
            "kept": list(kept),
            "macs_ratio": float(self.task.costs.ratio(kept, "macs")),
            "dense_seconds": self._dense_seconds(),
            "rewards": rewards,
            **self._tune(kept, self.config.seed),
        }

    def retuned(self, number: int) -> dict[str, Any]:
        """The fine-tuning of a plan again, with another seed."""
        return self._tune(self.plans[number], self.config.seed + 1000)

    def _rewards(self, kept: tuple[int, ...], repair: Any) -> list[dict[str, float]]:
        """What every number of samples measures, and the processor seconds it costs."""
        evaluate = replace(self.evaluate, repair=repair)
        evaluate.build(kept)  # solves the levels that no plan before asked for
        start = time.process_time()
        model = evaluate.build(kept)
        seconds, total, samples, rows = time.process_time() - start, np.zeros(3), 0, []
        for part in self.parts:
            start = time.process_time()
            metrics = part(model)
            seconds += time.process_time() - start
            samples += metrics.samples
            total += metrics.samples * np.array([metrics.accuracy, metrics.loss, metrics.kl])
            accuracy, loss, kl = (total / samples).tolist()
            row = {"accuracy": accuracy, "loss": loss, "kl": kl}
            rows.append({**row, "samples": samples, "seconds": seconds})
        return rows

    def _dense_seconds(self) -> list[float]:
        """Processor seconds of plain dense forward passes over the same samples, summed up."""
        import torch

        seconds, so_far = [], 0.0
        for part in self.parts:
            start = time.process_time()
            with torch.inference_mode():
                for batch in part.batches:
                    self.dense(batch.inputs)
            so_far += time.process_time() - start
            seconds.append(so_far)
        return seconds

    def _tune(self, kept: tuple[int, ...], seed: int) -> dict[str, Any]:
        """Val accuracy before and after the last epoch (no choice among epochs on val)."""
        from prune_env import FinetuneSettings, finetune

        settings = FinetuneSettings(
            epochs=self.config.tune_epochs, learning_rate=self.config.learning_rate, seed=seed
        )
        start = time.perf_counter()
        val = [(batch.inputs, batch.targets) for batch in self.val]
        history = finetune(self.task.network(kept), self.train, val, settings=settings).history
        return {
            "before": history[0].val_accuracy,
            "tuned": history[-1].val_accuracy,
            "val_samples": sum(len(batch) for batch in self.val),
            "seconds": time.perf_counter() - start,
        }


def _parts(dense: Any, batches: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """An evaluator for the first `sizes[0]` samples, one for those up to `sizes[1]`, ..."""
    from prune_env.measure.batches import Batch, channels_last, take_batches
    from prune_env.measure.evaluators import ClassifierEvaluator

    size = len(batches[0])
    whole = take_batches(batches, sizes[-1], sizes[-1])[0]
    parts = []
    for low, high in zip([0, *sizes], sizes, strict=False):
        part = Batch(whole.inputs[low:high], whole.targets[low:high])
        split = take_batches([part], None, size)
        parts.append(ClassifierEvaluator.of(dense, [channels_last(batch) for batch in split]))
    return parts


def draw(task: Any, config: FidelityConfig) -> list[tuple[int, ...]]:
    """Random plans that spend the budget, all different; more plans begin with the same ones."""
    random, plans = np.random.default_rng(config.seed), dict[tuple[int, ...], None]()
    for _ in range(100 * config.plans):
        if len(plans) == config.plans:
            break
        asked = random.beta(config.concentration, config.concentration, task.length)
        plans[task.decode(asked.tolist())] = None
    return list(plans)


# --- Judging ----------------------------------------------------------------------------------


def ranks(values: Floats) -> Floats:
    """Ranks from 1 along the last axis; ties share the mean of their ranks."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    result: Floats = below + (equal + 1) / 2
    return result


def spearman(x: Floats, y: Floats) -> Floats:
    """Pearson correlation of the ranks along the last axis; NaN where one side is constant."""
    a, b = (ranks(np.asarray(values)) for values in (x, y))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    defined = np.where(scale > 0, scale, np.nan)
    result: Floats = (a * b).sum(-1) / defined
    return result


def interval(x: Floats, y: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over the pairs: 95 % interval of their Spearman correlation."""
    index = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    values = spearman(x[index], y[index])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return low, high


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
    reliability = max(0.0, 1 - chance / variance) if variance > 0 else math.nan
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


if __name__ == "__main__":
    sys.exit(main(None))
