"""Scenes: what one plain forward pass does not reach is cut with the rest, or said to be left."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import close, identical, outputs, snapshot, unaccounted
from zoo import image

from prune_env.errors import ModelError
from prune_env.mdp.task import PruningTask
from prune_env.plan.cut import compact, masked
from prune_env.plan.plan import PruningPlan
from prune_env.recovery.finetune import FinetuneSettings, finetune
from prune_env.structure.blame import naming_layer
from prune_env.structure.coverage import NOT_FOLLOWED
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.testing import conv

Forward = Callable[["Branches", Tensor], Tensor | tuple[Tensor, Tensor]]


class Branches(nn.Module):
    """A stem and two layers that may read it; `way` says which of them run."""

    def __init__(self, way: Forward, left: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.way, self.mode = conv(3, 8), way, "right"
        self.left, self.right = left or nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.pixel = x[0, 0, 0, 0]
        return self.way(self, self.stem(x))

    def ends(self, y: Tensor) -> Tensor:
        out: Tensor = self.head(y.relu().mean((2, 3)))
        return out


def auxiliary(net: Branches, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    main = net.ends(net.right(y))
    return (main, net.ends(net.left(y))) if net.training else main


def by_value(net: Branches, y: Tensor) -> Tensor:
    return net.ends(net.left(y) if net.pixel > 1e6 else net.right(y))


def by_number(net: Branches, y: Tensor) -> Tensor:
    return net.ends(net.left(y) if net.pixel.item() > 0 else net.right(y))


def in_a_loop(net: Branches, y: Tensor) -> Tensor:
    while net.pixel > 1e6:
        y = y + 1
    return net.ends(net.right(y))


def by_height(net: Branches, y: Tensor) -> Tensor:
    return net.ends(net.left(y) if y.shape[2] > 8 else net.right(y))


def by_setting(net: Branches, y: Tensor) -> Tensor:
    return net.ends(net.left(y) if net.mode == "left" else net.right(y))


def halved(model: nn.Module, groups: tuple[PrunableGroup, ...]) -> PruningPlan:
    return PruningPlan.uniform(model, [group for group in groups if not group.frozen], 0.5)


def readers(groups: tuple[PrunableGroup, ...], name: str = "stem.0") -> set[str]:
    group = next(group for group in groups if group.name == name)
    assert not group.frozen
    return {axis.tensor for axis in group.axes if axis.role == "in"}


@pytest.mark.parametrize("way", [auxiliary, by_value, by_number])
def test_a_layer_that_a_plain_pass_leaves_out_is_cut_too(way: Forward) -> None:
    model = Branches(way).eval()
    groups = find_groups(model, image())
    assert readers(groups) == {"left.weight", "right.weight"}
    assert all(group.verified or group.frozen for group in groups)
    small = compact(model, halved(model, groups))
    assert small.get_parameter("left.weight").shape == (3, 4, 1, 1)
    small.train()(image())
    small.eval()(1e9 * image().abs())
    small(-1e9 * image().abs())


def test_the_other_answer_does_not_hang_a_loop() -> None:
    groups = find_groups(Branches(in_a_loop).eval(), image())
    assert "right.weight" in readers(groups)


def test_experts_that_no_token_chose_are_cut_with_the_others() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)
            self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x).relu()
            chosen = torch.zeros(len(x), dtype=torch.int64)  # the last two never
            for number, expert in enumerate(self.experts):
                if (chosen == number).any():
                    y = y + expert(y)
            return self.down(y)

    groups = find_groups(Experts().eval(), torch.randn(4, 6))
    assert {f"experts.{n}.weight" for n in range(3)} <= readers(groups, "up")


def test_every_batch_is_looked_at() -> None:
    model, tall = Branches(by_height).eval(), image(size=10)
    assert readers(find_groups(model, image(), more_inputs=[image(), tall])) == {
        "left.weight", "right.weight",
    }  # fmt: skip
    assert readers(find_groups(model, image())) == {"right.weight"}
    assert readers(find_groups(model, tall)) == {"left.weight"}
    groups = find_groups(model, tall, more_inputs=[image()])
    plan = halved(model, groups)
    small = compact(model, plan)
    for inputs in (image(), tall):
        with masked(model, plan):
            zeroed = outputs(model, inputs)
        assert close(zeroed, outputs(small, inputs), 1e-5)


def test_a_conflict_between_scenes_freezes_with_a_reason() -> None:
    def way(net: Branches, y: Tensor) -> Tensor:
        return net.ends(net.right(y.softmax(1) if net.training else y))

    group = find_groups(Branches(way).eval(), image())[0]
    assert (group.name, group.frozen) == ("stem.0", "normalised across units")


def test_code_that_fixes_a_width_in_train_mode_freezes_with_the_reason() -> None:
    def way(net: Branches, y: Tensor) -> Tensor:
        return net.ends(net.right(y.view(2, 8, 64).view(2, 8, 8, 8) if net.training else y))

    group = find_groups(Branches(way).eval(), image())[0]
    assert group.frozen.startswith("compact network fails in train mode: shape '[2, 8,")


def test_what_nothing_reaches_is_listed_with_the_cure_and_its_error_names_it() -> None:
    model = Branches(by_setting).eval()
    groups = find_groups(model, image())
    assert not unaccounted(model, groups)
    left = next(group for group in groups if group.name == "left")
    assert left.frozen.startswith(NOT_FOLLOWED)
    assert "'left' (Conv2d)" in left.frozen
    assert "give an example" in left.frozen
    small = compact(model, halved(model, groups))
    assert isinstance(small, Branches)
    small.mode = "left"
    where = r"'left' \(Conv2d, weight \(6, 8, 1, 1\), input \(2, 4"
    with pytest.raises(ModelError, match=where), naming_layer():
        small(image())
    data = [(image(), torch.tensor([0, 1]))]
    with pytest.raises(ModelError, match=where):
        finetune(small, data, data, settings=FinetuneSettings(epochs=1))


def test_a_sample_that_runs_what_calibration_did_not_names_the_layer() -> None:
    data = [((image(4, size),), torch.arange(4)) for size in (8, 8, 8, 10)]
    options = {"calibration_samples": 8, "reward_samples": 8, "repair_samples": 8}
    task = PruningTask.from_model(Branches(by_height).eval(), data, **options)
    with pytest.raises(ModelError, match=r"'left' \(Conv2d.*`more_inputs`"):
        task.evaluator.measure(tuple(group.levels[0] for group in task.groups))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (nn.Sequential(nn.Flatten(2), nn.LSTM(64, 64)), "'left.1' (LSTM)"),
        (nn.PReLU(), "a single value, for all units alike, in 'left' (PReLU)"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 1)), "remove_parametrizations"),
    ],
)
def test_what_is_not_followed_has_op_module_and_cure(left: nn.Module, said: str) -> None:
    def way(net: Branches, y: Tensor) -> Tensor:
        net.left(y)
        return net.ends(net.right(y))

    model = Branches(way, left).eval()
    groups = find_groups(model, image())
    assert not unaccounted(model, groups)
    reasons = [group.frozen for group in groups if group.frozen.startswith(NOT_FOLLOWED)]
    assert any(said in reason for reason in reasons)


def test_pooling_in_channels_last_freezes_nothing_wherever_the_order_changes() -> None:
    def way(net: Branches, y: Tensor) -> Tensor:
        y = net.right(y.to(memory_format=torch.channels_last))
        return net.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))

    found = [(group.name, group.frozen) for group in find_groups(Branches(way).eval(), image())]
    assert found[:2] == [("stem.0", ""), ("right", "")]


def test_a_task_offers_what_find_groups_offers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()  # fmt: skip
    data = [(image(8), torch.randint(0, 5, (8,))) for _ in range(4)]
    task = PruningTask.from_model(model, data, calibration_samples=16, reward_samples=16)
    groups = find_groups(model, image())
    assert [group.name for group in task.groups] == [g.name for g in groups if not g.frozen]
    assert [group.frozen for group in task.frozen] == [g.frozen for g in groups if g.frozen]


def test_a_task_looks_at_every_calibration_batch() -> None:
    torch.manual_seed(0)
    data = [((image(4, size),), torch.randint(0, 5, (4,))) for size in (8, 8, 10, 8, 10, 8)]
    options = {"calibration_samples": 12, "reward_samples": 12, "repair_samples": 12}
    task = PruningTask.from_model(Branches(by_height).eval(), data, **options)
    assert readers(task.groups) == {"left.weight", "right.weight"}
    small = task.network([group.levels[0] for group in task.groups])
    small(image()), small(image(size=10))


class Restless(nn.Module):
    """Draws random numbers of three kinds and keeps what it saw, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.seen = conv(3, 8), nn.Linear(8, 5), 0
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.stem(x))
        if self.training:
            self.seen += 1
            self.head.bias.add_(random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_users_changes(training: bool) -> None:
    model = Restless().train(training)
    before = copy.deepcopy(model)
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    groups = find_groups(model, image())
    assert [group.frozen for group in groups] == ["", "tied to the output"]
    assert identical(snapshot(before), snapshot(model))
    assert (model.seen, model.training) == (0, training)
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), drawn[2])


def test_one_sample_is_enough_for_train_mode() -> None:
    """BatchNorm over 1 x 1 maps asks for two: the sample is taken twice."""

    def way(net: Branches, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return auxiliary(net, y.mean((2, 3), keepdim=True))

    model = Branches(way, nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1))).eval()
    assert readers(find_groups(model, image(1))) == {"left.1.weight", "right.weight"}


def test_a_task_over_a_network_with_an_auxiliary_head_trains_after_cutting() -> None:
    """Its reader has no statistics, since eval mode never calls it: it is cut without repair."""
    torch.manual_seed(0)
    model = Branches(auxiliary).eval()
    data = [(image(8), torch.randint(0, 5, (8,))) for _ in range(4)]
    options = {"calibration_samples": 16, "reward_samples": 16, "repair_samples": 16}
    task = PruningTask.from_model(model, data, **options)
    small = task.network([max(1, group.units // 2) for group in task.groups])
    assert small.get_parameter("left.weight").shape == (3, 4, 1, 1)
    both = small.train()(image())
    assert [tuple(out.shape) for out in both] == [(2, 5), (2, 5)]
