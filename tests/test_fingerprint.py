"""What is told from another by content, and what is said of the difference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.fingerprint import described, differences
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.rewards import Outcome, divergence, figure
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Metrics
from prune_env.quality.objectives import REGRESSION
from prune_env.testing import toy_task


@dataclass
class Point:
    x: object
    y: object = 0


def closing(value: object) -> Callable[[], object]:
    return lambda: value


def loader(value: float) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.full((4, 2), value)), batch_size=2, shuffle=True)


def linear(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    for tensor in layer.parameters():
        nn.init.constant_(tensor, value)
    return layer


class Plain:
    """Nothing says what it is but its type."""


class Saying:
    def __init__(self, value: object) -> None:
        self.fingerprint = {"value": str(value)}

    def method(self) -> None:
        """Bound to what says."""


MAKERS: dict[str, Callable[[Any], object]] = {
    "number": float,
    "text": str,
    "tensor": lambda value: torch.tensor([value]),
    "array": lambda value: np.array([value]),
    "network": linear,
    "list": lambda value: [1, (value, {2})],
    "mapping": lambda value: {"b": 1, "a": value},
    "dataclass": lambda value: Point(Point(value)),
    "closure": closing,
    "default": lambda value: lambda x=value: x,
    "partial": lambda value: functools.partial(closing, value=value),
    "bound method": lambda value: Saying(value).method,
    "saying": Saying,
    "loader": loader,
}


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_equal_content_has_one_text_and_other_content_another(kind: str) -> None:
    make = MAKERS[kind]
    assert described(make(0.25)) == described(make(0.25))
    assert described(make(0.25)) != described(make(0.5))
    assert len(described(make(0.25))) <= 60


def test_functions_are_told_by_code_and_wrappers_by_what_they_wrap() -> None:
    @functools.wraps(divergence)
    def counted(outcome: Outcome) -> dict[str, float]:
        return divergence(outcome)

    one, two = (lambda: 1), (lambda: 2)
    assert described(one) != described(two)
    assert described(counted) == described(divergence) == "divergence"


def test_files_are_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    path.write_text("a")
    before = described(path)
    path.write_text("b")
    assert described(path) != before
    assert described(Path("nothing/there")) == "nothing/there"


def test_an_object_that_does_not_say_is_told_by_its_type() -> None:
    assert described(Plain()) == described(Plain()) == f"{__name__}.Plain"
    itself: list[object] = []
    itself.append(itself)
    assert described(itself) == "[itself]"


def test_differences_are_said_in_words() -> None:
    found = {"reward": "kl", "dense weights": "sha256:aa", "gone": "x"}
    wanted = {"reward": "accuracy", "dense weights": "sha256:bb", "new": "y"}
    said = (
        "reward kl there, accuracy now; dense weights differ; new none there, y now; gone x there"
    )
    assert differences(found, wanted).startswith(said)
    assert differences(found, dict(found)) == ""


def test_every_part_of_a_task_counts() -> None:
    task = toy_task(target=0.3, budget=0.7)
    again = toy_task(target=0.3, budget=0.7)
    assert task.fingerprint == again.fingerprint

    def other(kept: tuple[int, ...]) -> Metrics:
        return task.evaluator.measure(kept)

    others: list[PruningTask] = [
        toy_task(target=0.4, budget=0.7), toy_task(target=0.3, budget=0.8), task.at(0.9),
        toy_task(target=0.3, budget=0.7, width=21), toy_task(target=0.3, budget=0.7, length=5),
        toy_task(target=0.3, budget=0.7, leftover="leave"), replace(task, reward=figure),
        replace(task, evaluator=OfFunction(other)), replace(task, on="params"),
        task.around(task.path),
        replace(task, evaluator=OfFunction(other, objective=REGRESSION)),
    ]  # fmt: skip
    found = [tuple(sorted(each.fingerprint.items())) for each in (task, *others)]
    assert len(set(found)) == len(found)
