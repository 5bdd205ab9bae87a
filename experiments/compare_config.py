"""What a comparison is; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments.cli import config_error
from experiments.config import digest_of, option


@dataclass(frozen=True)
class CompareConfig:
    """Several searchers and seeds on one task, all charged the same evaluations."""

    task: str = option("digits", "task by name, or package.module:make_task")
    budget: float = option(0.5, "largest fraction of the dense cost that may remain")
    on: str = option("macs", "cost that the budget limits: macs, params or bytes")
    evaluations: int = option(200, "plans that each search may measure")
    reward: str = option("kl", "reward of an episode")
    units: str = option("structured", "what may go, see --help of experiments.run")
    criterion: str = option("obs", "what makes a unit worth keeping")
    repair: str = option("least_squares+batchnorm", "what is done to a plan before it is measured")
    searchers: tuple[str, ...] = option(
        ("uniform", "global", "random", "ppo"), "comma separated", identity=False
    )
    seeds: int = option(3, "searches per searcher, with seeds 0, 1, ...", identity=False)
    runs: Path = option(Path("runs"), "folder of results", identity=False)  # noqa: RUF009
    processes: int = option(1, "searches at a time, one thread each", identity=False)

    def __post_init__(self) -> None:
        for name in ("evaluations", "seeds", "processes"):
            if getattr(self, name) < 1:
                raise config_error(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.searchers:
            raise config_error("--searchers is empty; name at least one, as in uniform,ppo.")

    @property
    def folder(self) -> Path:
        """Where the searches are; the same for any choice of searchers and seeds."""
        return self.runs / f"compare-{digest_of(self)}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the figures, JSON-able."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "runs": str(self.runs), "searchers": list(self.searchers)}
