"""What a comparison is; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.options import TaskFlags, option
from prune_env.experiments.config.run import digest_of


@dataclass(frozen=True)
class CompareConfig(TaskFlags):
    """Several searchers, seeds and budgets on one task, all charged the same evaluations."""

    task: str = option("digits", "task by name, or package.module:make_task")
    budgets: tuple[float, ...] = option(
        (0.5,), "largest fractions of the dense cost that may remain", identity=False
    )
    evaluations: int = option(200, "plans that each search may measure")
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
        super().__post_init__()
        for name in ("evaluations", "seeds", "processes"):
            if getattr(self, name) < 1:
                raise config_error(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.searchers:
            raise config_error("--searchers is empty; name at least one, as in uniform,ppo.")
        if not self.budgets or not all(0 < budget <= 1 for budget in self.budgets):
            said = ",".join(f"{budget:g}" for budget in self.budgets) or "empty"
            raise config_error(f"--budgets is {said}; give fractions above 0 and at most 1.")

    @property
    def folder(self) -> Path:
        """Where the searches are; the same for any choice of budgets, searchers and seeds."""
        return self.runs / f"compare-{digest_of(self)}"

    @property
    def task_options(self) -> dict[str, Any]:
        """Keywords of `TaskOptions`, under the smallest of the budgets."""
        return {"budget": min(self.budgets), **super().task_options}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the figures, JSON-able."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out"}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists, "runs": str(self.runs)}
