"""What is handed over, and what was measured: the same plan cut, applied, and kept by the episode.

    python -m experiments.bench_delivery --out experiments/results/delivery_digits
    python -m experiments.bench_delivery --task resnet20_cifar10

One uniform episode; its plan goes through JSON. Accuracy on test, nothing tuned.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown
from prune_env.pipeline.formats import percent


@dataclass(frozen=True)
class DeliveryConfig(BenchFlags):
    """A network, and how much of it may remain."""

    task: str = option("digits", "project by name, or package.module:make_project")
    budget: float = option(0.5, "fraction of the dense MACs that may remain")
    repair: str = option("least_squares+batchnorm", "what a candidate gets before it is measured")


def measure(config: DeliveryConfig) -> dict[str, Any]:
    """Test accuracy of the dense network and of three that come from one plan.

    Raises:
        ConfigError: the project is a bare task.
    """
    import numpy as np

    from prune_env import PruneEnv, PruningPlan, PruningTask, apply, compact
    from prune_env.errors import ConfigError
    from prune_env.experiments.networks.presets import open_named
    from prune_env.fingerprint import fingerprint
    from prune_env.recovery.epoch import evaluate

    project = open_named(config.task, budget=config.budget, repair=config.repair)
    if isinstance(project, PruningTask):
        raise ConfigError(f"'{config.task}' is a bare task, without test data. Name a project.")
    env = PruneEnv(project.task)
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step(np.array([project.task.uniform_sparsity], dtype=np.float32))
    plan = PruningPlan.from_json(env.plan.to_json())
    samples = project.task.evaluator.calibration  # type: ignore[attr-defined]
    networks = {
        "dense": project.dense,
        "compact: cut, not repaired": compact(project.dense, plan),
        "apply: plan, dense network and data": apply(plan, project.dense, samples),
        "env.network() of the episode": env.network(),
    }
    rows = [
        {"network": name, "test": evaluate(network, project.test).figure,
         "fingerprint": fingerprint(network)}
        for name, network in networks.items()
    ]  # fmt: skip
    promised = {name: info[name] for name in ("accuracy", "kl", "flops_ratio")}
    return {"project": project.name, "promised": promised, "rows": rows}


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    promised = figures["promised"]
    lines = [[row["network"], percent(row["test"], 2)] for row in figures["rows"]]
    return (
        f"# {figures['project']}: delivered and measured\n\n"
        f"A uniform plan at {percent(promised['flops_ratio'], 1)} of the MACs; on the reward "
        f"samples the episode measured an accuracy of {percent(promised['accuracy'], 2)} and a KL "
        f"of {promised['kl']:.4f} to the dense network.\n\n"
        + markdown(["network", "accuracy on test"], lines)
    )


main = bench("bench_delivery", DeliveryConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
