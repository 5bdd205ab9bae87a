"""The first steps of a tuning, to see what a network will be worth before it is tuned for long.

Closeness to the dense network before tuning does not rank good plans for what they are worth after
it; closeness after a few dozen steps does (`experiments/results/goal_*.md`). All networks get the
same batches in the same order, and what the teacher says of them is asked once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from prune_env.fingerprint import Identity, identity_of
from prune_env.quality.batches import Batch
from prune_env.quality.evaluators import Evaluator
from prune_env.quality.objectives import Objective
from prune_env.recovery.epoch import Opinion
from prune_env.recovery.masks import KeepMasks
from prune_env.recovery.training import Training, Tuning, seeded, train_pass
from prune_env.structure.entry import copy_of

PASSES = 3
"""Forward passes that a step costs: its own, and a backward pass that takes two."""


@dataclass(frozen=True, eq=False)
class ShortTuning:
    """So many steps, the same for every network.

    Attributes:
        dense: the network that all are cut from: it teaches, and what is frozen there stays.
        batches: of training samples that nothing is measured on, met in this order and again.
        steps: how many.
        objective: what quality means.
        tuning: as in the tuning that it stands for; epochs do not matter.
    """

    dense: nn.Module
    batches: tuple[Batch, ...]
    steps: int
    objective: Objective
    tuning: Tuning = Tuning()  # noqa: RUF009 (frozen)

    @cached_property
    def fingerprint(self) -> Identity:
        """All that decides what becomes of a network."""
        tuning = self.tuning
        return identity_of(
            tuning=[self.steps, tuning.settings, tuning.loss, tuning.optimizer, tuning.scheduler],
            tuning_samples=self.batches,
        )

    @cached_property
    def passes(self) -> int:
        """Predictions that all steps cost, in forward passes.

        What a function of the user's costs beside them is not known: as much, let us say.
        """
        if self.objective.evaluate is not None:
            return 1
        counts = self._known.counts or tuple(map(len, self.batches))
        return PASSES * sum(counts[step % len(counts)] for step in range(self.steps))

    @cached_property
    def _known(self) -> Evaluator:
        """The batches, with what the teacher says of them where it is asked."""
        # A loss of one's own may be of outputs that only train mode gives, which no teacher has.
        if self.tuning.loss is not None or self.objective.evaluate is not None:
            return Evaluator(self.objective, self.batches)
        return Evaluator.of(self.dense, self.batches, objective=self.objective)

    @property
    def _opinion(self) -> Opinion | None:
        said = self._known.dense
        return (lambda batch, place: said[place.step % len(said)]) if said else None

    def __call__(self, network: nn.Module) -> nn.Module:
        """A copy of a network after these steps, in eval mode.

        Raises:
            ConfigError: there is nothing to descend: neither a loss nor a teacher.
            ModelError: the loss becomes NaN or infinite; nothing of the network can be trained.
        """
        student = copy_of(network)
        moves = {name for name, value in self.dense.named_parameters() if value.requires_grad}
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in moves)
        once = dataclasses.replace(self.tuning.settings, epochs=1)
        tuning = dataclasses.replace(self.tuning, settings=once)
        training = Training.of(student, tuning, self._opinion, self.objective, self.steps)
        with KeepMasks.of_network(student).kept(student), seeded(once.seed, 1):
            train_pass(training, self._in_turn(), 1)
        student.zero_grad(set_to_none=True)
        return student.eval()

    def _in_turn(self) -> Sequence[Batch]:
        return [self.batches[step % len(self.batches)] for step in range(self.steps)]
