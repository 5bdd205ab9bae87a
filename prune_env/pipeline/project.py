"""What an experiment works on: a trained dense network and the splits of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from prune_env.fingerprint import Identity, identity_of
from prune_env.mdp.task import PruningTask
from prune_env.pipeline.yardstick import Yardstick, yardstick_for
from prune_env.recovery.training import Tuning


@dataclass(frozen=True, eq=False)
class Project:
    """A dense network, its data, and how to make tasks of them.

    A function that returns one makes your own network and data known to `experiments.run`:
    `--task mypackage.mymodule:make_project`. It gets task options as keywords. (A function
    that returns a bare `PruningTask` does for the search, without test accuracy and fine-tuning.)

    Attributes:
        name: for titles.
        dense: the trained network; never changed.
        task: the pruning task; measures on training data only.
        train: loader for fine-tuning (shuffled, augmented).
        val: loader that selects epochs.
        test: loader for the final number.
        factory: makes the dense network with any weights, for loading a saved folder.
        quality: the figure that networks are compared by, by name; the objective's first one if it
            is not said.
        recipe: fields of `FinetuneSettings` that suit this network, where the run's config
            leaves them at their default.
        note: what a reader of the report should know about the data.
    """

    name: str
    dense: nn.Module
    task: PruningTask
    train: Iterable[Any]
    val: Iterable[Any]
    test: Iterable[Any]
    factory: Callable[[], nn.Module]
    quality: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def fingerprint(self) -> Identity:
        """All that decides a run's figures beside its settings, by the name of the part."""
        data = identity_of(train_data=self.train, val_data=self.val, test_data=self.test)
        return {**self.task.fingerprint, **data, "quality": self.yardstick.name}

    def tuned_by(self, tuning: Tuning) -> Project:
        """The same, plans measured after the first steps of this tuning, if of any."""
        return replace(self, task=self.task.tuned_by(tuning))

    @property
    def yardstick(self) -> Yardstick:
        """The figure of quality."""
        return yardstick_for(self.task.objective, self.quality)
