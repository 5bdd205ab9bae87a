"""Random plans of one budget: every reward of each, and its accuracy after fine-tuning.

Calibration, reward and tuning images are disjoint parts of train; accuracy is of val. Every
finished plan is a line of a journal, so a killed run loses one plan at most.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.experiments.benches.harness import BenchFlags
from prune_env.experiments.benches.subjects import dense_weights, run_config, training, val_batches
from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.run import digest_of, option
from prune_env.experiments.data.splits import shuffled
from prune_env.experiments.report.publishing import note

SLACK = 250
"""Reward images to spare, for calibration takes whole batches; the largest is of 250."""


@dataclass(frozen=True)
class FidelityConfig(BenchFlags):
    """Correlate every reward with the accuracy after fine-tuning."""

    model: str = option("digits", "network, see experiments/networks/models.py")
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
    repair_samples: int = option(128, "of them, those that a repair with data sees for every plan")
    precision: str = option("auto", "of the measurement: auto, float32 or bfloat16")
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
    runs: Path = option(Path("runs"), "folder of the journal", identity=False)  # noqa: RUF009

    def __post_init__(self) -> None:
        if not self.samples or not all(size.isdigit() and int(size) for size in self.samples):
            raise config_error(f"--samples is {self.samples}; it must be whole numbers from 1.")
        if self.plans < 1:
            raise config_error(f"--plans is {self.plans}; it must be at least 1.")

    @property
    def sizes(self) -> list[int]:
        """The reward sample sizes, growing."""
        return sorted({int(size) for size in self.samples})


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
        from prune_env import PruningTask
        from prune_env.experiments.data.splits import load_splits
        from prune_env.experiments.stages.stages import open_project
        from prune_env.mdp.candidates import CandidateEvaluator

        self.config = config
        weights = dense_weights(config)
        # Only for the dense network and val; the task below has its own part of train.
        run = replace(run_config(config, weights), reward_samples=32, calibration_samples=32)
        project = open_project(run)
        assert not isinstance(project, PruningTask)
        self.dense = project.dense
        self.val = val_batches(project, config.val_samples)
        splits = load_splits(config.data, seed=config.seed)
        rewarded = config.sizes[-1] + SLACK
        plain, tuning = _disjoint(splits, config, rewarded)
        self.train = training(splits, tuning)
        self.task = PruningTask.from_model(
            project.dense,
            plain,
            budget=config.budget,
            criterion=config.criterion,
            repair="least_squares",
            calibration_samples=config.calibration_samples,
            repair_samples=config.repair_samples,
            precision=config.precision,
            reward_samples=rewarded,
        )
        assert isinstance(self.task.evaluator, CandidateEvaluator)
        self.evaluate = self.task.evaluator
        self.parts = [
            replace(part, inference=self.evaluate.inference)
            for part in _parts(self.dense, self.evaluate.quality.batches, config.sizes)  # type: ignore[attr-defined]
        ]
        self.plans = draw(self.task, config)

    def plan(self, number: int) -> dict[str, Any]:
        """All rewards of a plan, and what fine-tuning makes of it."""
        from prune_env.repair.repairs import REPAIRS

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
        evaluate.candidate(kept)  # solves the levels that no plan before asked for
        start = time.process_time()
        model = evaluate.candidate(kept)
        seconds, total, samples, rows = time.process_time() - start, np.zeros(3), 0, []
        for part in self.parts:
            start = time.process_time()
            metrics = part(model)
            seconds += time.process_time() - start
            samples += metrics.samples
            total += metrics.samples * np.array([metrics.figure, metrics.loss, metrics.divergence])
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
        tuned = finetune(
            self.task.network(kept),
            self.train,
            val,
            settings=settings,
            objective=self.task.objective,
        )
        history = tuned.history
        return {
            "before": history[0].val_figure,
            "tuned": history[-1].val_figure,
            "val_samples": sum(len(batch) for batch in self.val),
            "seconds": time.perf_counter() - start,
        }


def _disjoint(splits: Any, config: FidelityConfig, rewarded: int) -> tuple[Any, Any]:
    """A loader of the calibration and reward images, and the images to tune on."""
    from prune_env.errors import DataError
    from prune_env.experiments.data.splits import loader

    measured, count = config.calibration_samples + rewarded, len(splits.train.labels)
    if count < measured + config.tune_samples:
        raise DataError(
            f"'{config.data}' has {count:,} training images; {config.calibration_samples:,} for "
            f"calibration, {rewarded:,} for rewards ({SLACK} to spare) and {config.tune_samples:,} "
            "for tuning are asked. Lower --calibration-samples, --samples or --tune-samples."
        )
    part = slice(measured, measured + config.tune_samples)
    plain = shuffled(splits.train, config.seed, slice(measured))
    batches = loader(plain, batch_size=125, mean=splits.mean, std=splits.std)
    return batches, shuffled(splits.train, config.seed, part)


def _parts(dense: Any, batches: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """An evaluator for the first `sizes[0]` samples, one for those up to `sizes[1]`, ..."""
    from prune_env.quality.batches import Batch, channels_last, take_batches
    from prune_env.quality.evaluators import Evaluator

    size = len(batches[0])
    whole = take_batches(batches, sizes[-1], sizes[-1])[0]
    inputs: Any = whole.inputs
    parts = []
    for low, high in zip([0, *sizes], sizes, strict=False):
        part = Batch(inputs[low:high], whole.targets[low:high])
        split = take_batches([part], None, size)
        parts.append(Evaluator.of(dense, [channels_last(batch) for batch in split]))
    return parts


def draw(task: Any, config: FidelityConfig) -> list[tuple[int, ...]]:
    """Random plans that spend the budget, all different; more plans begin with the same ones."""
    from prune_env.errors import ConfigError

    random, plans = np.random.default_rng(config.seed), dict[tuple[int, ...], None]()
    for _ in range(100 * config.plans):
        if len(plans) == config.plans:
            break
        asked = random.beta(config.concentration, config.concentration, task.length)
        plans[task.decode(asked.tolist())] = None
    if len(plans) < config.plans:
        raise ConfigError(
            f"--plans is {config.plans}, but only {len(plans)} different ones were drawn at budget "
            f"{config.budget:g}. Ask for fewer."
        )
    return list(plans)
