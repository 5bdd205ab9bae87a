"""What a run has delivered: its networks, read back from its folder, and the data they are for."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from prune_env.deploy.bundle import PLAN, load
from prune_env.errors import ConfigError, RunError, look_up
from prune_env.experiments.config.delivered import DeliveredFlags
from prune_env.experiments.config.run import RunConfig, parse
from prune_env.experiments.stages.directory import CONFIG
from prune_env.experiments.stages.stages import open_project
from prune_env.pipeline.project import Project
from prune_env.pipeline.stages import MODEL, TUNE, ended
from prune_env.pipeline.whole import read_results
from prune_env.pipeline.yardstick import yardstick_of
from prune_env.plan.plan import PruningPlan
from prune_env.storage import read_json
from prune_env.structure.inputs import device_of


class Delivered:
    """A finished run.

    Attributes:
        config: its settings.
        project: dense network, task and data, opened again.
        reported: the figure of quality that it said of every network it tuned.
    """

    def __init__(self, asked: DeliveredFlags) -> None:
        """Read what it says; the project is opened when it is asked for.

        Raises:
            ConfigError: it was run on something else than the --task that is given.
            RunError: it is no finished run, or one that tuned nothing.
        """
        self._tuned, results = asked.run / TUNE, read_results(asked.run)
        yardstick, rows = yardstick_of(results), results["rows"]
        self.reported: dict[str, Any] = {
            row["name"]: ended(row, yardstick) for row in rows if self._of(row["name"]).is_dir()
        }
        if not self.reported:
            raise RunError(f"'{asked.run}' holds no network: it was a search only.")
        self.config = _config_of(asked)

    @cached_property
    def project(self) -> Project:
        """What it was run on."""
        project = open_project(self.config)
        assert isinstance(project, Project), "which alone can be tuned"
        return project

    def _of(self, searcher: str) -> Path:
        return self._tuned / searcher / MODEL

    def require(self, searcher: str) -> None:
        """Check a name before anything is opened for it.

        Raises:
            ConfigError: nothing of that name was tuned.
        """
        look_up("searcher of the run", searcher, self.reported)

    def network(self, searcher: str) -> nn.Module:
        """The tuned network of a searcher, beside the dense one.

        Raises:
            RunError, PlanError, ModelError: see `prune_env.load`.
        """
        loaded = load(self._of(searcher), self.project.factory)
        return loaded.to(device_of(self.project.dense))

    def plan(self, searcher: str) -> PruningPlan:
        """What was removed."""
        return PruningPlan.load(self._of(searcher) / PLAN)


def _config_of(asked: DeliveredFlags) -> RunConfig:
    path = asked.run / CONFIG
    ran = read_json(path, "run's config", "Give a finished run directory.").get("task", "")
    if asked.task and asked.task != ran:
        raise ConfigError(f"'{asked.run}' was run on the task '{ran}', not '{asked.task}'.")
    task = ["--task", asked.task] if asked.task else []  # code is named on the command line only
    config = parse(RunConfig, ["--config", str(path), *task])
    return replace(config, runs=asked.run.parent)  # where its dense network is
