"""What `compress` gives: the network, the plan, the figures, and ways out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from prune_env.deploy.bundle import save
from prune_env.deploy.export import export
from prune_env.pipeline.table import Comparison, comparison
from prune_env.plan.plan import PruningPlan
from prune_env.structure.inputs import Inputs

REPORT = "prune_env.experiments.report.report:write_report"
"""Who draws the page, imported when one is asked for."""


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed network and what was measured of it.

    Attributes:
        network: cut, tuned, in eval mode: the one that the figures are of.
        plan: what was removed; `prune_env.apply(plan, model, data)` cuts again.
        results: all figures as plain values, a row per searcher.
        chosen: the searcher whose plan it is.
        example: inputs of one batch, for export.
    """

    network: nn.Module
    plan: PruningPlan
    results: Mapping[str, Any]
    chosen: str
    example: Inputs

    def __repr__(self) -> str:
        return f"Result of {self.results['title']}, plan of {self.chosen}\n{self.table}"

    @cached_property
    def table(self) -> Comparison:
        """Dense, cut and tuned side by side: `print` it, or read `.rows`."""
        return comparison(self.results, self.chosen)

    def report(self, folder: str | Path) -> Path:
        """Write report.html and report.md to `folder`; returns the HTML file.

        Raises:
            RunError: the folder cannot be written.
        """
        module, _, name = REPORT.partition(":")
        page: Path = getattr(import_module(module), name)(self.results, Path(folder))
        return page

    def save(self, folder: str | Path) -> Path:
        """Write network and plan to `folder`, for `prune_env.load`.

        Raises:
            RunError, ModelError: see `prune_env.save`.
        """
        last = self.table.rows[-1]
        facts = {
            self.table.figure: last.value,
            "measured_on": self.table.measured_on,
            "macs_ratio": last.macs_ratio,
            "params_ratio": last.params_ratio,
            "searcher": self.chosen,
        }
        return save(folder, self.network, self.plan, facts)

    def export(self, path: str | Path) -> Path:
        """Write the network for other programs: `.onnx`, `.pt2`, or a folder.

        Raises:
            ConfigError, ModelError, PlanError, RunError: see `prune_env.deploy.export`.
        """
        return export(self.network, self.plan, path, self.example)
