"""What the report says is left of a network is counted on the tuned network in the user's hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from delivered import labelled
from torch import Tensor

from prune_env import PruningTask, load
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.report.tables import main_table
from prune_env.experiments.stages.stages import hunts_of, tuning_settings
from prune_env.pipeline import stages
from prune_env.pipeline.project import Project
from prune_env.pipeline.rows import row_of
from prune_env.recovery.training import Tuning
from prune_env.structure.inputs import Inputs
from prune_env.structure.weights import weight_groups
from prune_env.testing import toy_inputs, toy_model

LAYERS = ("features.2", "hidden")
"""Of the toy: those that every kind divides."""


def project(kind: str) -> Project:
    model = toy_model("chain")
    data: list[tuple[Inputs, Tensor]] = labelled(model, partial(toy_inputs, "chain"))
    groups = None if kind == "structured" else weight_groups(model, kind, layers=LAYERS)
    options = {"calibration_samples": 16, "reward_samples": 16, "repair_samples": 16}
    task = PruningTask.from_model(
        model, data, groups=groups, budget=0.6, on="params", precision="float32", **options
    )
    return Project(kind, model, task, data, data, data, partial(toy_model, "chain"))


@pytest.mark.parametrize("kind", ["structured", "unstructured", "per_row", "2:4", "block:2"])
def test_the_report_counts_what_the_tuned_network_has(kind: str, tmp_path: Path) -> None:
    config = RunConfig(finetune_epochs=2, learning_rate=0.05, weight_decay=0.01, progress=False)
    made = project(kind)
    (hunt,) = [hunt for hunt in hunts_of(config) if hunt.name == "uniform"]
    result = stages.search(made.task, hunt, tmp_path)
    tuned = stages.tune(made, result, Tuning(tuning_settings(config, made)), tmp_path / "tune")
    row = {**row_of(made.task, result, "baseline"), **tuned.facts}
    vectors = sum(p.numel() for p in tuned.model.parameters() if p.ndim == 1)
    weights = sum(int((p != 0).sum()) for p in tuned.model.parameters() if p.ndim > 1)
    assert row["params"] == vectors + weights
    assert row["params"] == made.task.costs(result.best.kept)[1]  # what the search was charged
    assert row["params_ratio"] == pytest.approx(result.best.params_ratio)
    assert row["params_ratio"] <= 0.6
    again = load(tmp_path / "tune" / "model", made.factory)
    assert sum(int((p != 0).sum()) for p in again.parameters() if p.ndim > 1) == weights
    dense = {"macs": 1.0, "params": float(made.task.costs.dense[1])}
    table = main_table({"dense": dense, "rows": [row], "quality": "accuracy"}).plain()
    assert f"{row['params_ratio']:.1%}".replace("%", " %") in table
