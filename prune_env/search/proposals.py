"""Searchers that propose plans and are told the outcomes: what black-box optimisers look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.search.ledger import Ledger


class Proposer(Protocol):
    """An optimiser that is asked for plans and told what they measured."""

    def propose(self, count: int) -> Sequence[Sequence[int]]:
        """At most so many plans, to be measured side by side; none ends the search."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of all that was proposed last, in that order."""
        ...


def proposing(
    make: Callable[[PruningTask, int], Proposer], together: int = 1
) -> Callable[[Ledger, int], None]:
    """A searcher from what makes a `Proposer` of a task and a seed.

        run_search(task, "mine", 100, seed=0, searcher=proposing(Mine, together=4))

    Args:
        make: a class, or a function.
        together: plans that are asked for at once. Workers measure them side by side; how many
            workers there are does not matter to the search.
    """
    return partial(_propose, make, together)


def _propose(
    make: Callable[[PruningTask, int], Proposer], together: int, ledger: Ledger, seed: int
) -> None:
    proposer = make(ledger.task, seed)
    while plans := proposer.propose(together):
        proposer.tell(ledger.measure(plans))
