"""Where finished plans are measured: all that a task knows of networks stands behind this.

A `CandidateEvaluator` (candidates.py) has a network; a toy has a function of kept units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from prune_env.errors import PlanError
from prune_env.fingerprint import Identity, identity_of
from prune_env.plan.recipe import Recipe
from prune_env.quality.evaluators import Hopeless, Metrics
from prune_env.quality.objectives import CLASSIFICATION, Objective
from prune_env.recovery.training import Tuning

Kept = tuple[int, ...]


class PlanEvaluator(Protocol):
    """Quality of finished plans."""

    @property
    def objective(self) -> Objective:
        """What quality means."""
        ...

    @property
    def dense(self) -> Metrics | None:
        """What the dense network measures."""
        ...

    @property
    def stages(self) -> Sequence[int]:
        """Numbers of samples after which a hopeless plan may be given up."""
        ...

    @property
    def recipe(self) -> Recipe | None:
        """What networks are made with, written into plans."""
        ...

    def unstaged(self) -> PlanEvaluator:
        """The same, without stages: every plan is measured in full."""
        ...

    def measure(
        self, kept: Kept, samples: int | None = None, hopeless: Hopeless | None = None
    ) -> Metrics:
        """Quality, in full or as it is on about the first `samples`; the expensive part."""
        ...

    @property
    def passes(self) -> float:
        """Predictions that a full measurement makes; one that is trained on counts threefold."""
        ...

    def tuned_by(self, tuning: Tuning) -> PlanEvaluator:
        """The same, plans tuned in another way before they are measured, if they are."""
        ...

    @property
    def tunes(self) -> bool:
        """Whether plans are tuned before they are measured in full."""
        ...

    def as_measured(self, network: nn.Module) -> nn.Module:
        """What a full measurement makes of a network that is cut and repaired."""
        ...

    @property
    def fresh_samples(self) -> int:
        """Samples that `look` draws from; 0: there are none."""
        ...

    def look(self, kept: Kept, samples: int, reference: Kept) -> Metrics:
        """What about so many fresh samples, the plan's own, say beside a reference plan."""
        ...

    def predicted_loss(self, group: str, kept: int) -> float | None:
        """Loss that the repair predicts for a group, by name, at a number of kept units.

        None, for all of them, where nothing is predicted.
        """
        ...

    def network(self, kept: Sequence[int]) -> nn.Module:
        """The repaired network of a plan, yours to keep."""
        ...


@dataclass(frozen=True)
class OfFunction:
    """Plans that a function of kept units measures, without any network.

    Attributes:
        function: from kept units to what they measure.
        objective: what that is called.
        dense: what all units measure.
        predicted: loss that a group is expected to have, by name, at a number of kept units.
    """

    function: Callable[[Kept], Metrics]
    objective: Objective = CLASSIFICATION
    dense: Metrics | None = None
    predicted: Callable[[str, int], float] | None = None

    @property
    def fingerprint(self) -> Identity:
        """All that decides what a plan measures, by the name of the part."""
        return identity_of(
            evaluate=self.function, objective=self.objective, dense=self.dense,
            predicted=self.predicted,
        )  # fmt: skip

    @property
    def stages(self) -> Sequence[int]:
        """None: every plan is measured in full."""
        return ()

    def unstaged(self) -> OfFunction:
        """Itself."""
        return self

    @property
    def recipe(self) -> Recipe | None:
        """None: there is no network."""
        return None

    def measure(
        self, kept: Kept, samples: int | None = None, hopeless: Hopeless | None = None
    ) -> Metrics:
        """What the function says."""
        return self.function(kept)

    @property
    def passes(self) -> float:
        """One."""
        return 1.0

    def tuned_by(self, tuning: Tuning) -> OfFunction:
        """Itself: nothing is tuned."""
        return self

    @property
    def tunes(self) -> bool:
        """No."""
        return False

    def as_measured(self, network: nn.Module) -> nn.Module:
        """The network."""
        return network

    @property
    def fresh_samples(self) -> int:
        """None."""
        return 0

    def look(self, kept: Kept, samples: int, reference: Kept) -> Metrics:
        """What the function says."""
        return self.function(kept)

    def predicted_loss(self, group: str, kept: int) -> float | None:
        """What `predicted` says, if anything."""
        return None if self.predicted is None else self.predicted(group, kept)

    def network(self, kept: Sequence[int]) -> nn.Module:
        """There is none.

        Raises:
            PlanError: always.
        """
        raise PlanError("this task has no network. Use PruningTask.from_model.")
