"""What a comparison is; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.run import RunConfig, digest_of, option


def _as_in_a_run(name: str) -> Any:
    """The option of a run with this name: its default and its help."""
    (entry,) = (entry for entry in fields(RunConfig) if entry.name == name)
    return option(entry.default, entry.metadata["help"])


@dataclass(frozen=True)
class CompareConfig:
    """Several searchers, seeds and budgets on one task, all charged the same evaluations."""

    task: str = option("digits", "task by name, or package.module:make_task")
    budgets: tuple[float, ...] = option(
        (0.5,), "largest fractions of the dense cost that may remain", identity=False
    )
    on: str = _as_in_a_run("on")
    evaluations: int = option(200, "plans that each search may measure")
    reward: str = _as_in_a_run("reward")
    units: str = _as_in_a_run("units")
    criterion: str = _as_in_a_run("criterion")
    repair: str = _as_in_a_run("repair")
    reward_samples: int = _as_in_a_run("reward_samples")
    calibration_samples: int = _as_in_a_run("calibration_samples")
    repair_samples: int = _as_in_a_run("repair_samples")
    stages: tuple[int, ...] = _as_in_a_run("stages")
    precision: str = _as_in_a_run("precision")
    ignore: tuple[str, ...] = _as_in_a_run("ignore")
    min_sparsity: float = _as_in_a_run("min_sparsity")
    max_sparsity: float = _as_in_a_run("max_sparsity")
    multiple_of: str = option(
        "1", "kept units of a group are a multiple of this; by layer: 'layer1*=2,layer2*=4'"
    )
    seed: int = option(0, "seed of the task; the searches have seeds of their own")
    init_policy: str = option(
        "",
        "policy.safetensors of a search, that the agents compared go on from",
        added=True,
    )
    searchers: tuple[str, ...] = option(
        ("uniform", "global", "random", "ppo"), "comma separated", identity=False
    )
    seeds: int = option(3, "searches per searcher, with seeds 0, 1, ...", identity=False)
    runs: Path = option(Path("runs"), "folder of results", identity=False)  # noqa: RUF009
    processes: int = option(1, "searches at a time, one thread each", identity=False)
    out: str = option("", "also write OUT.md and OUT.json, to keep", identity=False)

    def __post_init__(self) -> None:
        for name in ("evaluations", "seeds", "processes"):
            if getattr(self, name) < 1:
                raise config_error(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.searchers:
            raise config_error("--searchers is empty; name at least one, as in uniform,ppo.")
        if not self.budgets or not all(0 < budget <= 1 for budget in self.budgets):
            said = ",".join(f"{budget:g}" for budget in self.budgets) or "empty"
            raise config_error(f"--budgets is {said}; give fractions above 0 and at most 1.")
        self.run_config, self.multiples  # noqa: B018 (both say what is wrong)

    @property
    def folder(self) -> Path:
        """Where the searches are; the same for any choice of budgets, searchers and seeds."""
        return self.runs / f"compare-{digest_of(self)}"

    @property
    def run_config(self) -> RunConfig:
        """The run with the same task."""
        common = {f.name for f in fields(RunConfig)} & {f.name for f in fields(self)}
        return RunConfig(**{name: getattr(self, name) for name in common - {"multiple_of"}})

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

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the figures, JSON-able."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out"}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists, "runs": str(self.runs)}
