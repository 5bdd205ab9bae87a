"""The preset that needs nothing beside the package; the others are tested where their data is."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prune_env.experiments.networks.presets import open_named
from prune_env.mdp.registry import make_task
from prune_env.pipeline.project import Project
from prune_env.pipeline.stages import quality
from prune_env.recovery.epoch import evaluate
from prune_env.tasks.digits import load_digits


@pytest.mark.long
def test_digits_come_with_images_that_the_search_leaves_alone() -> None:
    project = open_named("digits", budget=0.4, reward_samples=64)
    assert isinstance(project, Project)
    splits = load_digits()
    test = DataLoader(TensorDataset(*splits.test), batch_size=100)
    expected = project.yardstick.of(evaluate(project.dense, test))
    assert quality(project, project.dense) == expected > 0.9
    made = project.factory()
    made.load_state_dict(project.dense.state_dict())
    images = splits.val.images[:8]
    assert torch.equal(made.eval()(images), project.dense(images))


@pytest.mark.long
def test_a_preset_of_digits_searches_as_the_task_of_the_package_does() -> None:
    options = {"budget": 0.5, "reward_samples": 64, "calibration_samples": 64}
    project, task = open_named("digits", **options), make_task("digits", **options)
    assert isinstance(project, Project)
    kept = task.decode([0.0] * task.length)
    assert project.task.decode([0.0] * task.length) == kept
    assert (
        project.task.evaluator.measure(kept).divergence == task.evaluator.measure(kept).divergence
    )
