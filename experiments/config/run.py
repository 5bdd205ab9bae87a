"""What a run is: one frozen dataclass, filled from defaults, a TOML file and the command line.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import main_guard, parse
from prune_env.experiments.config.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    Rule,
    TaskFlags,
    option,
    require,
)

__all__ = ["RunConfig", "digest_of", "main_guard", "option", "parse"]


def digest_of(config: Any) -> str:
    """Ten hex digits over every field that decides a run's result."""
    facts = {f.name: getattr(config, f.name) for f in fields(config) if _decides(config, f)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _decides(config: Any, entry: Field[Any]) -> bool:
    late = entry.metadata.get("added") and getattr(config, entry.name) == entry.default
    return bool(entry.metadata.get("identity", True)) and not late


@dataclass(frozen=True)
class RunConfig(TaskFlags):
    """One run: a dense network on some data, a search under a budget, and the tuning after it."""

    task: str = option("", "task by name ('digits') or as package.module:make_task; empty: --model")
    model: str = option("digits", "network, see experiments/networks/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")

    budget: float = option(0.5, "largest fraction of the dense cost that may remain, in (0, 1]")
    searcher: str = option("ppo", "searcher that looks for the plan, see agents/")
    baselines: tuple[str, ...] = option(
        ("uniform", "global", "random"), "searchers shown beside it, comma separated"
    )
    evaluations: int = option(200, "plans that each searcher may measure")
    seed: int = option(0, "seed of everything random")
    init_policy: str = option("", "policy.safetensors of a search by the same agent, to go on from")

    dense_epochs: int = option(20, "epochs of dense training")
    dense_learning_rate: float = option(0.1, "peak learning rate of dense training")
    finetune_epochs: int = option(10, "epochs of fine-tuning; 0: none")
    learning_rate: float = option(0.02, "peak learning rate of fine-tuning")
    weight_decay: float = option(5e-4, "weight decay of both")
    distill_weight: float = option(0.5, "share of the dense teacher in the fine-tuning loss")
    batch_size: int = option(128, "images in a training batch")

    runs: Path = option(  # noqa: RUF009 (it makes a field)
        Path("runs"), "folder that holds the run directories", identity=False
    )
    name: str = option("", "name of the run directory; empty: made from the config", identity=False)
    workers: int = option(
        1, "processes that measure plans side by side; what is found is the same", identity=False
    )
    threads: int = option(
        0,
        "CPU threads of torch; 0: its own choice, or the cores shared out to the workers",
        identity=False,
    )
    tensorboard: bool = option(True, "write TensorBoard files", identity=False)
    progress: bool = option(True, "show progress", identity=False)
    dry_run: bool = option(
        False, "say what would be pruned and how long it would take; train nothing", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, _RULES)

    @property
    def task_options(self) -> dict[str, Any]:
        """Keywords of `TaskOptions`."""
        return {"budget": self.budget, **super().task_options}

    @property
    def digest(self) -> str:
        """Names this configuration; fields that cannot change the result do not enter."""
        return digest_of(self)

    @property
    def differences(self) -> dict[str, Any]:
        """The fields that are not at their default, for a title or a log line."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.default is not MISSING and getattr(self, f.name) != f.default
        }


_RATE: Rule = (lambda value: 0 < value < float("inf"), "above 0 and finite")
_RULES: dict[str, Rule] = {
    "budget": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "evaluations": AT_LEAST_1,
    "dense_epochs": AT_LEAST_0,
    "dense_learning_rate": _RATE,
    "finetune_epochs": AT_LEAST_0,
    "learning_rate": _RATE,
    "weight_decay": AT_LEAST_0,
    "distill_weight": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "batch_size": AT_LEAST_1,
    "workers": AT_LEAST_1,
    "threads": AT_LEAST_0,
}
