"""Options that every command has which opens a task: declared here, once.

Imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from prune_env.experiments.config.cli import config_error

Rule = tuple[Callable[[Any], bool], str]
AT_LEAST_1: Rule = (lambda value: value >= 1, "at least 1")
AT_LEAST_0: Rule = (lambda value: value >= 0, "at least 0")
_FRACTION: Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")


def option(default: Any, help: str, *, identity: bool = True, added: bool = False) -> Any:
    """A field with its help; `identity=False` keeps it out of the digest.

    `added=True` keeps its default out: what was made before there was the field is found again.
    """
    return field(default=default, metadata={"help": help, "identity": identity, "added": added})


def require(config: Any, rules: Mapping[str, Rule]) -> None:
    """Check fields of a config.

    Raises:
        ConfigError: names the option, what it is, and what it must be.
    """
    for name, (holds, rule) in rules.items():
        value = getattr(config, name)
        if not holds(value):
            raise config_error(f"--{name.replace('_', '-')} is {value}; it must be {rule}.")


@dataclass(frozen=True)
class TaskFlags:
    """What a task is asked for, but for its budget and seed; see `TaskOptions`."""

    on: str = option("macs", "cost that the budget limits: macs, params or bytes")
    units: str = option(
        "structured",
        "what may go: structured, sublayers, unstructured, per_row, 2:4, block:16, joined by +",
    )
    objective: str = option(
        "auto",
        "what quality means: classification, tokens, segmentation, multilabel, binary, regression "
        "or outputs; auto: by the first batch",
        added=True,
    )
    output: str = option(
        "auto", "part of the model's outputs that is meant, by name or index", added=True
    )
    criterion: str = option("obs", "what makes a unit worth keeping")
    repair: str = option(
        "least_squares+batchnorm", "what is done to a candidate before it is measured"
    )
    reward: str = option("divergence", "reward of an episode: divergence, figure, loss or amc")
    sample_kind: str = option(
        "auto",
        "what calibrates and pays: images as they are (plain), augmented, or half and half; rows "
        "of tokens that are given, or the model's own text; auto: what suits",
        added=True,
    )
    reward_samples: int = option(1000, "training samples each plan is measured on")
    fresh_samples: int = option(
        0,
        "further training samples, of which every plan that is glimpsed at sees its own",
        added=True,
    )
    calibration_samples: int = option(500, "training samples for the statistics of the repair")
    repair_samples: int = option(128, "of them, those that a repair with data sees for every plan")
    goal: str = option(
        "as_is",
        "what plans are for: as_is, used as they are cut and repaired; tuned, and so they are "
        "measured after a few steps of it",
        added=True,
    )
    tuned_steps: int = option(30, "of it, with --goal tuned", added=True)
    stages: tuple[int, ...] = option((), "reward samples after which a hopeless plan is given up")
    precision: str = option("auto", "of the reward's measurement: auto, float32 or bfloat16")
    ignore: tuple[str, ...] = option((), "layers left alone: names or globs, comma separated")
    min_sparsity: float = option(0.0, "smallest fraction removed from a group")
    max_sparsity: float = option(0.9, "largest fraction removed from a group, below 1")
    multiple_of: str = option(
        "1", "kept units of a group are a multiple of this; by layer: 'layer1*=2,layer2*=4'"
    )
    seed: int = option(0, "seed of the task")

    def __post_init__(self) -> None:
        require(self, _RULES)
        if self.min_sparsity > self.max_sparsity:
            raise config_error(
                f"--min-sparsity {self.min_sparsity} is above --max-sparsity {self.max_sparsity}."
            )
        self.multiples  # noqa: B018 (it says what is wrong)

    @property
    def task_options(self) -> dict[str, Any]:
        """The same as keywords of `TaskOptions`; a budget is missing."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(TaskFlags)}
        if self.sample_kind == "auto":
            del named["sample_kind"]  # which projects have, and bare tasks have not
        return {**named, "multiple_of": self.multiples}

    @property
    def multiples(self) -> int | dict[str, int]:
        """`multiple_of` as a task takes it: one for all groups, or by name or glob."""
        parts = [part.strip() for part in self.multiple_of.split(",")]
        pairs = {
            name: value for name, equals, value in (p.rpartition("=") for p in parts) if equals
        }
        counts = list(pairs.values()) if len(pairs) == len(parts) else [self.multiple_of]
        if not all(count.strip().isdigit() and int(count) > 0 for count in counts):
            raise config_error(
                f"--multiple-of is '{self.multiple_of}'; give a whole number from 1, or one for "
                "each layer or glob, as in 'layer1*=2,layer2*=4'."
            )
        return {name: int(n) for name, n in pairs.items()} if pairs else int(self.multiple_of)


_RULES: dict[str, Rule] = {
    "on": (lambda value: value in ("macs", "params", "bytes"), "macs, params or bytes"),
    "seed": AT_LEAST_0,
    "reward_samples": AT_LEAST_1,
    "fresh_samples": AT_LEAST_0,
    "calibration_samples": AT_LEAST_1,
    "repair_samples": AT_LEAST_1,
    "goal": (lambda value: value in ("as_is", "tuned"), "as_is or tuned"),
    "tuned_steps": AT_LEAST_1,
    "stages": (lambda value: all(stage >= 1 for stage in value), "whole numbers from 1"),
    "precision": (
        lambda value: value in ("auto", "float32", "bfloat16"),
        "auto, float32 or bfloat16",
    ),
    "min_sparsity": _FRACTION,
    "max_sparsity": _FRACTION,
}
