"""What an episode costs: steps, the terminal evaluation split in parts, against a dense forward.

    python -m experiments.bench_env
    python -m experiments.bench_env --model resnet20 --data ../shared/data/cifar10_jpeg \\
        --weights ../shared/models/resnet20_cifar10_jpeg/model.safetensors --reward-samples 2000

All times are medians over rounds in which everything is measured in turns, so that a busy machine
disturbs all alike; compare the ratios, not the seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.config import RunConfig, main_guard, option, parse


@dataclass(frozen=True)
class BenchConfig:
    """Time one episode of the environment."""

    model: str = option("digits", "network, see experiments/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")
    budget: float = option(0.5, "fraction of the dense MACs that may remain")
    repair: str = option(
        "least_squares+batchnorm", "what is done to a candidate before it is measured"
    )
    reward_samples: int = option(1000, "training images each plan is measured on")
    calibration_samples: int = option(500, "training images for the statistics of the repair")
    rounds: int = option(7, "episodes timed")
    threads: int = option(0, "CPU threads of torch; 0: its own choice")
    dense_epochs: int = option(8, "epochs of dense training where no weights are given")
    runs: Path = option(Path("runs"), "where the dense network is trained and kept")  # noqa: RUF009


@main_guard
def main(argv: Sequence[str]) -> int:
    """Print the table and, last, the JSON line."""
    config = parse(BenchConfig, argv, prog="python -m experiments.bench_env")
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    figures = measure(config)
    for name, value in figures.items():
        print(f"{name:<38} {value:.6g}")
    settings = json.loads(json.dumps(asdict(config), default=str))
    print(json.dumps({**figures, "settings": {**settings, "threads": torch.get_num_threads()}}))
    return 0


def measure(config: BenchConfig) -> dict[str, float]:
    """All figures, times in milliseconds."""
    import numpy as np

    from experiments.directory import open_run
    from experiments.stages import open_project
    from prune_env import PruneEnv, PruningTask
    from prune_env.mdp.candidates import CandidateEvaluator

    run = RunConfig(
        **{name: value for name, value in asdict(config).items() if name not in ("rounds",)}
    )
    project = open_project(run, open_run(replace(run, name=f"bench-{run.digest}")))
    assert not isinstance(project, PruningTask)
    task = project.task
    evaluate = task.evaluate
    assert isinstance(evaluate, CandidateEvaluator)
    env, random = PruneEnv(task), np.random.default_rng(0)
    dense = _dense_forward(project.dense, evaluate.measure)
    rows: list[dict[str, float]] = []
    for _ in range(config.rounds + 1):
        steps, before = [], replace(evaluate.clock)
        env.reset()
        for asked in random.uniform(0, 2 * task.uniform_sparsity, (task.length, 1)):
            start = time.perf_counter()
            env.step(asked.astype(np.float32))
            steps.append(1e3 * (time.perf_counter() - start))
        clock = evaluate.clock
        parts = {
            name: 1e3 * (getattr(clock, name) - getattr(before, name))
            for name in ("build", "repair", "measure")
        }
        overhead = steps[-1] - sum(parts.values())
        rows.append(
            {
                "step": statistics.median(steps[:-1]),
                **parts,
                "overhead": overhead,
                "episode": sum(steps),
                "dense": dense(),
            }
        )
    rows = rows[1:]  # the first round fills caches
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratio = statistics.median(row["episode"] / row["dense"] for row in rows)
    charged = statistics.median(
        (row["build"] + row["measure"] + row["overhead"]) / row["dense"] for row in rows
    )
    return {
        "non_terminal_step_ms": median["step"],
        "terminal_step_build_ms": median["build"],
        "terminal_step_repair_ms": median["repair"],
        "terminal_step_evaluate_ms": median["measure"],
        "terminal_step_overhead_ms": median["overhead"],
        "episode_ms": median["episode"],
        "dense_forward_ms": median["dense"],
        "episode_per_dense_forward": ratio,
        "episode_without_repair_per_dense_forward": charged,
        "groups": float(task.length),
        "samples": float(evaluate.measure.samples),  # type: ignore[attr-defined]
    }


def _dense_forward(model: Any, evaluator: Any) -> Callable[[], float]:
    """Milliseconds of a dense forward pass over the reward samples, at its best batch size."""
    import torch

    inputs = torch.cat([batch.inputs for batch in evaluator.batches])

    def timed(size: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for part in inputs.split(size):
                model(part)
        return 1e3 * (time.perf_counter() - start)

    sizes = [size for size in (32, 64, 125, 250, 500) if size <= len(inputs)]
    timed(sizes[0])
    best = min(sizes, key=lambda size: min(timed(size) for _ in range(2)))
    return lambda: timed(best)


if __name__ == "__main__":
    sys.exit(main(None))
