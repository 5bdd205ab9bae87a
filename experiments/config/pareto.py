"""What a front is; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import option

PRIOR = 12
"""Evaluations that the choice of a prior may cost."""


@dataclass(frozen=True)
class ParetoConfig(CompareConfig):
    """One search of many budgets beside single ones, with as many evaluations as they have."""

    agent: str = option("ppo", "agent that searches, or surrogate", identity=False)
    budgets: tuple[float, ...] = option(
        (0.7, 0.5, 0.3), "of the single searches, with --evaluations each", identity=False
    )
    front: tuple[float, ...] = option(
        (0.3, 0.36, 0.42, 0.5, 0.56, 0.62, 0.7, 0.8),
        "budgets at which the front of the search of many budgets is shown",
        identity=False,
    )
    searchers: tuple[str, ...] = option(
        ("uniform", "sensitivity"), "searchers shown beside it, comma separated", identity=False
    )
    seeds: int = option(1, "searches of each kind, with seeds 0, 1, ...", identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.front or not all(0 < budget <= 1 for budget in self.front):
            said = ",".join(f"{budget:g}" for budget in self.front) or "empty"
            raise config_error(f"--front is {said}; give fractions above 0 and at most 1.")
        least = len(self.asked) + PRIOR
        if self.charge < least:
            raise config_error(
                f"{len(self.budgets)} times --evaluations is {self.charge}: too few for the prior "
                f"({PRIOR}) and the policy's plans at {len(self.asked)} budgets. Give more."
            )

    @property
    def asked(self) -> tuple[float, ...]:
        """All budgets at which plans are compared, the smallest first."""
        return tuple(sorted({*self.front, *self.budgets}))

    @property
    def charge(self) -> int:
        """Evaluations of the search of many budgets."""
        return len(self.budgets) * self.evaluations

    @property
    def wide(self) -> ParetoConfig:
        """The same comparison, at all budgets."""
        return replace(self, budgets=self.asked)
