"""What worker processes are worth: the same search in one process and in several, in turns.

    python -m experiments.bench_workers --task resnet20_cifar10

The start of the workers, and what they import, is part of a search's time, but for those that are
said to be running already. One thread per process, except in the last row, where one process has as
many threads as there are workers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.options import AT_LEAST_1, require
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown, note


@dataclass(frozen=True)
class WorkersConfig(BenchFlags):
    """A search, and how many measure for it."""

    task: str = option("digits", "task by name, or package.module:make_task")
    budget: float = option(0.5, "fraction of the dense MACs that may remain")
    reward_samples: int = option(1000, "training samples each plan is measured on")
    searchers: tuple[str, ...] = option(("random", "ppo"), "searchers, comma separated")
    evaluations: int = option(60, "of every search")
    workers: int = option(2, "processes")
    rounds: int = option(3, "seeds; every search runs once in each")

    def __post_init__(self) -> None:
        names = ("reward_samples", "evaluations", "workers", "rounds")
        require(self, dict.fromkeys(names, AT_LEAST_1))


def measure(config: WorkersConfig) -> dict[str, Any]:
    """Seconds of every search, and whether they found the same."""
    from prune_env.search.workers import Processes, cores

    several = config.workers
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in config.searchers}
    same = True
    with Processes(several) as running:
        _searched(config, "random", config.rounds, running, 1)  # which starts them
        ways: dict[str, tuple[Any, int]] = {
            "1 process": (1, 1),
            f"{several} processes": (several, 1),
            f"{several} processes, running": (running, 1),
            f"1 process, {several} threads": (1, several),
        }
        for seed in range(config.rounds):
            for name, row in seconds.items():
                plans = []
                for way, (workers, threads) in ways.items():
                    taken, found = _searched(config, name, seed, workers, threads)
                    plans.append(found)
                    row.setdefault(way, []).append(taken)
                    note(f"round {seed + 1} of {config.rounds}, {name}, {way}: {taken:.1f} s")
                same = same and plans[0] == plans[1] == plans[2]
    rows = [
        {"searcher": name, "way": way, "seconds": median(taken), "each": taken,
         "ratio": median(t / one for t, one in zip(taken, row["1 process"], strict=True))}
        for name, row in seconds.items() for way, taken in row.items()
    ]  # fmt: skip
    return {"task": config.task, "cores": cores(), "same_plans": same, "rows": rows}


def _searched(
    config: WorkersConfig, name: str, seed: int, workers: Any, threads: int
) -> tuple[float, list[Any]]:
    """Seconds of a search of a task that has measured nothing yet, and its outcomes."""
    import torch

    from prune_env import PruningTask
    from prune_env.experiments.networks.presets import open_named
    from prune_env.search.searchers import run_search

    torch.set_num_threads(threads)
    opened = open_named(config.task, budget=config.budget, reward_samples=config.reward_samples)
    task = opened if isinstance(opened, PruningTask) else opened.task
    start = time.perf_counter()
    history = run_search(task, name, config.evaluations, seed, workers=workers).history
    return time.perf_counter() - start, [(o.kept, o.reward) for o in history]


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    settings = figures["settings"]
    lines = [
        [row["searcher"], row["way"], f"{row['seconds']:.1f}", f"{row['ratio']:.2f}"]
        for row in figures["rows"]
    ]
    same = "the same plans" if figures["same_plans"] else "OTHER plans"
    return (
        f"# Workers, {figures['task']}, {settings['evaluations']} evaluations\n\n"
        f"{figures['cores']} cores, median of {settings['rounds']} seeds. One process and several "
        f"found {same}.\n\n" + markdown(["searcher", "who measures", "seconds", "ratio"], lines)
    )


main = bench("bench_workers", WorkersConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
