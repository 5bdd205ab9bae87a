"""What a run is: one frozen dataclass, filled from defaults, a TOML file and the command line.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import config_error, main_guard, parse

__all__ = ["RunConfig", "digest_of", "main_guard", "parse"]


def option(default: Any, help: str, *, identity: bool = True, added: bool = False) -> Any:
    """A field with its help; `identity=False` keeps it out of the digest.

    `added=True` keeps its default out: what was made before there was the field is found again.
    """
    return field(default=default, metadata={"help": help, "identity": identity, "added": added})


def digest_of(config: Any) -> str:
    """Ten hex digits over every field that decides a run's result."""
    facts = {f.name: getattr(config, f.name) for f in fields(config) if _decides(config, f)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _decides(config: Any, entry: Field[Any]) -> bool:
    late = entry.metadata.get("added") and getattr(config, entry.name) == entry.default
    return bool(entry.metadata.get("identity", True)) and not late


@dataclass(frozen=True)
class RunConfig:
    """One run: a dense network on some data, a search under a budget, and the tuning after it."""

    task: str = option("", "task by name ('digits') or as package.module:make_task; empty: --model")
    model: str = option("digits", "network, see experiments/networks/models.py")
    data: str = option("digits", "'digits', a path, or a name under $PRUNE_ENV_DATA")
    weights: str = option("", "file with the dense weights; empty: train them")

    budget: float = option(0.5, "largest fraction of the dense cost that may remain, in (0, 1]")
    on: str = option("macs", "cost that the budget limits: macs, params or bytes")
    units: str = option(
        "structured",
        "what may go: structured, sublayers, unstructured, per_row, 2:4, block:16, joined by +",
    )
    searcher: str = option("ppo", "searcher that looks for the plan, see agents/")
    baselines: tuple[str, ...] = option(
        ("uniform", "global", "random"), "searchers shown beside it, comma separated"
    )
    evaluations: int = option(200, "plans that each searcher may measure")
    seed: int = option(0, "seed of everything random")
    init_policy: str = option("", "policy.safetensors of a search by the same agent, to go on from")

    criterion: str = option("obs", "what makes a unit worth keeping")
    repair: str = option(
        "least_squares+batchnorm", "what is done to a candidate before it is measured"
    )
    reward: str = option("divergence", "reward of an episode")
    reward_samples: int = option(1000, "training images each plan is measured on")
    calibration_samples: int = option(500, "training images for the statistics of the repair")
    repair_samples: int = option(128, "of them, those that a repair with data sees for every plan")
    stages: tuple[int, ...] = option((), "reward samples after which a hopeless plan is given up")
    precision: str = option("auto", "of the reward's measurement: auto, float32 or bfloat16")
    ignore: tuple[str, ...] = option((), "layers left alone: names or globs, comma separated")
    min_sparsity: float = option(0.0, "smallest fraction removed from a group")
    max_sparsity: float = option(0.9, "largest fraction removed from a group, below 1")
    multiple_of: int = option(1, "kept units of a group are a multiple of this")

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
    threads: int = option(0, "CPU threads of torch; 0: its own choice", identity=False)
    tensorboard: bool = option(True, "write TensorBoard files", identity=False)
    progress: bool = option(True, "show progress", identity=False)

    def __post_init__(self) -> None:
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise config_error(f"--{name.replace('_', '-')} is {value}; it must be {rule}.")
        if self.min_sparsity > self.max_sparsity:
            raise config_error(
                f"--min-sparsity {self.min_sparsity} is above --max-sparsity {self.max_sparsity}."
            )

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


_Rule = tuple[Callable[[Any], bool], str]
_AT_LEAST_1: _Rule = (lambda value: value >= 1, "at least 1")
_AT_LEAST_0: _Rule = (lambda value: value >= 0, "at least 0")
_RATE: _Rule = (lambda value: 0 < value < float("inf"), "above 0 and finite")
_FRACTION: _Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_RULES: dict[str, _Rule] = {
    "budget": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "on": (lambda value: value in ("macs", "params", "bytes"), "macs, params or bytes"),
    "evaluations": _AT_LEAST_1,
    "seed": _AT_LEAST_0,
    "reward_samples": _AT_LEAST_1,
    "calibration_samples": _AT_LEAST_1,
    "repair_samples": _AT_LEAST_1,
    "stages": (lambda value: all(stage >= 1 for stage in value), "whole numbers from 1"),
    "precision": (
        lambda value: value in ("auto", "float32", "bfloat16"),
        "auto, float32 or bfloat16",
    ),
    "min_sparsity": _FRACTION,
    "max_sparsity": _FRACTION,
    "multiple_of": _AT_LEAST_1,
    "dense_epochs": _AT_LEAST_0,
    "dense_learning_rate": _RATE,
    "finetune_epochs": _AT_LEAST_0,
    "learning_rate": _RATE,
    "weight_decay": _AT_LEAST_0,
    "distill_weight": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "batch_size": _AT_LEAST_1,
    "threads": _AT_LEAST_0,
}
