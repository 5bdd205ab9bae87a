"""The preset that needs nothing beside the package; the others are tested where their data is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.experiments.data.images import ImageSet
from prune_env.experiments.data.splits import ImageSplits
from prune_env.experiments.networks.cifar import suited
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


def images_of(network: nn.Module, known: bool, seed: int, size: int) -> ImageSet:
    """Images whose labels are what a network says, or anything."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (200, 3, size, size), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        said = network(images.float() / 255).argmax(1)
    return ImageSet(images, said if known else said[torch.randperm(200, generator=generator)])


@pytest.mark.parametrize(
    ("fitted", "size", "kind"), [(True, 24, "half"), (False, 24, "plain"), (True, 8, "plain")]
)
def test_images_that_a_network_has_fitted_are_mixed_with_augmented_ones(
    fitted: bool, size: int, kind: str
) -> None:
    head = nn.Linear(48, 5, bias=False)
    with torch.no_grad():
        head.weight.copy_(1e3 * torch.randn(5, 48, generator=torch.Generator().manual_seed(0)))
        head.weight -= head.weight.mean(1, keepdim=True)
    dense = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), head)
    train, val, test = (
        images_of(dense, known, n, size) for n, known in enumerate([True, not fitted, True])
    )
    splits = ImageSplits(train, val, test, tuple("abcde"), (0.0,) * 3, (1.0,) * 3)
    found, note = suited(dense, splits, seed=0)
    assert found == kind
    assert "on val" in note
    assert ("half augmented" in note) == (kind == "half")
