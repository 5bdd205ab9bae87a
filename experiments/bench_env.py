"""What an episode costs, in dense forward passes over the same samples, and where the rest goes.

    python -m experiments.bench_env
    python -m experiments.bench_env --model resnet20 --data ../shared/data/cifar10_jpeg \\
        --weights ../shared/models/resnet20_cifar10_jpeg/model.safetensors \\
        --reward-samples 2000 --threads 1 --out experiments/results/env_resnet20

An episode is everything one charged evaluation takes: the steps, decoding the plan, stitching the
network from its ladders, repairing it on data, the forward pass, the reward. It stands beside a
plain dense forward pass: eval, inference mode, channels-last, float32, its best batch size. All are
measured in turns within every round, so that a busy machine disturbs all alike; compare the ratios,
which are medians over the rounds, not the seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.benches.subjects import dense_weights, run_config
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown, note

PRECISIONS = ("float32", "bfloat16")
PARTS = ("steps", "build", "repair", "measure", "rest")
BATCHES = (32, 64, 125, 250, 500)
RANKED = 24
"""Random plans whose order in both precisions is compared, and that race."""
STAGE = 256
"""Samples after which a plan of the race may be given up."""


@dataclass(frozen=True)
class BenchConfig(BenchFlags):
    """Time the episodes of the environment."""

    model: str = option("digits", "network, see experiments/networks/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")
    budget: float = option(0.5, "fraction of the dense MACs that may remain")
    repair: str = option(
        "least_squares+batchnorm", "what is done to a candidate before it is measured"
    )
    reward_samples: int = option(1000, "training images each plan is measured on")
    calibration_samples: int = option(500, "training images for the statistics of the repair")
    repair_samples: int = option(128, "of them, those that a repair with data sees for every plan")
    rounds: int = option(7, "rounds timed, of one episode in each precision")
    seed: int = option(0, "seed of everything random")
    threads: int = option(0, "CPU threads of torch; 0: its own choice")
    dense_epochs: int = option(8, "epochs of dense training where no weights are given")
    dense_samples: int = option(0, "training images of it; 0: all")
    dense_learning_rate: float = option(0.1, "peak learning rate of it")
    runs: Path = option(Path("runs"), "where the dense network is trained and kept")  # noqa: RUF009


def measure(config: BenchConfig) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    import torch

    tasks, dense, facts = _tasks(config)
    samples = tasks["float32"].evaluator.quality
    inputs = torch.cat([batch.inputs for batch in samples.batches])
    forward, batch = _dense_forward(dense, inputs)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(config.rounds + 1):
        dense_ms = forward()
        rounds.append(
            {name: {**_episode(task, number), "dense": dense_ms} for name, task in tasks.items()}
        )
        note(f"round {number} of {config.rounds}")
    rounds = rounds[1:]  # the first one fills caches
    figures: dict[str, Any] = {
        "dense_forward_ms": statistics.median(r["float32"]["dense"] for r in rounds),
        "dense_batch": batch,
        "samples": len(inputs),
        "groups": tasks["float32"].length,
        **facts,
        "episode_ms": {},
        "episode_per_dense_forward": {},
        "without_data_repair_per_dense_forward": {},
        "share": {},
    }
    for name in tasks:
        rows = [one[name] for one in rounds]
        whole = statistics.median(row["episode"] for row in rows)
        figures["episode_ms"][name] = whole
        figures["episode_per_dense_forward"][name] = statistics.median(
            row["episode"] / row["dense"] for row in rows
        )
        figures["without_data_repair_per_dense_forward"][name] = statistics.median(
            (row["episode"] - row["repair"]) / row["dense"] for row in rows
        )
        figures["share"][name] = {
            part: statistics.median(row[part] / row["episode"] for row in rows) for part in PARTS
        }
    figures["precision_rank_correlation"] = _agreement(tasks, config.seed)
    figures["convolution_of_16_channels"] = _widths()
    figures["charged_with_a_stage"] = _raced(tasks["bfloat16"], config.seed)
    return figures


def _tasks(config: BenchConfig) -> tuple[dict[str, Any], Any, dict[str, float]]:
    """The task in both precisions, the dense network, and what preparing costs."""
    from prune_env import PruningTask
    from prune_env.calibration.statistics import calibrate
    from prune_env.experiments.stages.stages import open_project
    from prune_env.quality.inference import Inference
    from prune_env.repair.ladder import Ladders

    weights = dense_weights(config)
    project = open_project(run_config(config, weights))
    assert not isinstance(project, PruningTask)
    task, dense = project.task, project.dense
    evaluate: Any = task.evaluator
    tasks = {}
    for name in PRECISIONS:
        way = Inference.of(dense, evaluate.quality.batches[0], name)
        measured = replace(evaluate.quality, inference=way)
        tasks[name] = replace(
            task, evaluator=replace(evaluate, quality=measured, inference=way, cache={})
        )
    pass_ms = _timed(lambda: _forward(dense, [b.inputs for b in evaluate.calibration]))
    found: list[Any] = []
    calibrate_ms = _timed(lambda: found.append(calibrate(dense, evaluate.calibration, task.groups)))
    ladders_ms = _timed(lambda: Ladders.of(dense, task.groups, evaluate.orders, found[-1]))
    facts = {
        "calibration_in_dense_passes": calibrate_ms / pass_ms,
        "ladders_in_dense_passes": ladders_ms / pass_ms,
        "auto_is_bfloat16": float(evaluate.inference.bfloat16),
    }
    return tasks, dense, facts


def _episode(task: Any, seed: int) -> dict[str, float]:
    """Milliseconds of one episode of random actions, whole and in parts."""
    import numpy as np

    from prune_env import PruneEnv

    env, evaluate = PruneEnv(task), task.evaluator
    before = replace(evaluate.clock)
    actions = np.random.default_rng(seed).uniform(0, 2 * task.uniform_sparsity, (task.length, 1))
    env.reset()
    steps = [_timed(lambda action=a: env.step(action)) for a in actions.astype(np.float32)]  # type: ignore[misc]
    parts = {
        name: 1e3 * (getattr(evaluate.clock, name) - getattr(before, name))
        for name in ("build", "repair", "measure")
    }
    rest = steps[-1] - sum(parts.values())
    return {**parts, "steps": sum(steps[:-1]), "rest": rest, "episode": sum(steps)}


def _agreement(tasks: Mapping[str, Any], seed: int) -> float:
    """Spearman's correlation of the KL of random plans, measured in the two precisions."""
    import numpy as np

    from prune_env.experiments.report.correlation import spearman

    plans = _plans(tasks["float32"], seed)
    first, second = (
        np.array([t.evaluator.measure(kept).divergence for kept in plans]) for t in tasks.values()
    )
    return float(spearman(first, second))


def _plans(task: Any, seed: int) -> list[tuple[int, ...]]:
    import numpy as np

    random = np.random.default_rng(seed)
    return [task.decode(random.random(task.length).tolist()) for _ in range(RANKED)]


def _raced(task: Any, seed: int) -> float:
    """Evaluations charged per random plan when hopeless ones are given up at a stage."""
    from prune_env import Ledger

    racing = replace(
        task.evaluator, quality=replace(task.evaluator.quality, stages=(STAGE,)), cache={}
    )
    ledger = Ledger(replace(task, evaluator=racing), RANKED)
    for kept in _plans(task, seed):
        ledger.measure([kept])  # one at a time: the best one so far is the one to beat
    return ledger.charged / ledger.spent


def _widths() -> dict[str, float]:
    """Time of a float32 3 x 3 convolution of 16 channels that loses half of them, on one side.

    Outputs are computed a vector register at a time, so what is below its width is not saved; that
    sets a floor under every candidate of a narrow network.
    """
    import torch

    def timed(inside: int, outside: int) -> float:
        layer = torch.nn.Conv2d(inside, outside, 3, padding=1)
        x = torch.randn(48, inside, 32, 32).contiguous(memory_format=torch.channels_last)
        return min(_timed(lambda: _forward(layer, [x])) for _ in range(12))

    whole = timed(16, 16)
    return {"outputs_halved": timed(16, 8) / whole, "inputs_halved": timed(8, 16) / whole}


def _dense_forward(model: Any, inputs: Any) -> tuple[Callable[[], float], int]:
    """Milliseconds of a plain dense forward pass over the inputs, and its best batch size."""
    sizes = [size for size in BATCHES if size <= len(inputs)]

    def timed(size: int) -> float:
        return _timed(lambda: _forward(model, inputs.split(size)))

    timed(sizes[0])
    best = min(sizes, key=lambda size: min(timed(size) for _ in range(2)))
    return lambda: timed(best), best


def _forward(model: Any, parts: Sequence[Any]) -> None:
    import torch

    with torch.inference_mode():
        for part in parts:
            model(part)


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def page(figures: Mapping[str, Any]) -> str:
    """The figures in words and as a Markdown table."""
    settings = figures["settings"]
    head = ["precision", "episode / dense pass", "without data repair", *PARTS]
    rows = [
        [
            name,
            f"{figures['episode_per_dense_forward'][name]:.2f}",
            f"{figures['without_data_repair_per_dense_forward'][name]:.2f}",
            *(f"{100 * figures['share'][name][part]:.1f} %" for part in PARTS),
        ]
        for name in figures["share"]
    ]
    return (
        f"# Cost of an episode, {settings['model']}, {figures['samples']:,} samples, budget "
        f"{settings['budget']:.0%} of the MACs\n\n"
        f"Dense forward pass: {figures['dense_forward_ms']:.0f} ms in batches of "
        f"{figures['dense_batch']}; {settings['threads']} threads. Shares are of the episode: the "
        "steps before the last, stitching the network, its repair on data "
        f"({settings['repair_samples']} images), the forward passes, and the rest (decoding, "
        "reward).\n\n" + markdown(head, rows) + "\n"
        f"- rank correlation of {RANKED} random plans' KL in the two precisions: "
        f"{figures['precision_rank_correlation']:.3f}\n"
        "- a 3 x 3 convolution of 16 channels in float32 takes "
        f"{figures['convolution_of_16_channels']['outputs_halved']:.2f} of its time with half the "
        f"outputs, {figures['convolution_of_16_channels']['inputs_halved']:.2f} with half the "
        "inputs: outputs come a vector register at a time, a floor under narrow networks\n"
        f"- charged per random plan when those behind the best are given up after {STAGE} "
        f"samples: {figures['charged_with_a_stage']:.2f} evaluations\n"
        f"- `precision auto` takes {'bfloat16' if figures['auto_is_bfloat16'] else 'float32'} on "
        "this processor\n"
        f"- made once per task, in dense passes over the calibration images: statistics "
        f"{figures['calibration_in_dense_passes']:.2f}, ladders "
        f"{figures['ladders_in_dense_passes']:.2f}\n"
    )


main = bench("bench_env", BenchConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
