"""What a searcher may ask of a plan, in words that a journal keeps and that workers understand."""

from __future__ import annotations

from typing import NamedTuple

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask

PLAN, RACE, PROBE, SHARE = "plan", "race", "probe", "share"
WHOLE = (PLAN, RACE, PROBE)
"""Those that a measurement on all samples answers."""


class Question(NamedTuple):
    """A plan, and how it is to be measured.

    Attributes:
        kept: kept units per group.
        asked: "plan" in full, "race 0.5" against the reward to beat, "probe" or "probe 0.1" beyond
            the budget too, on a part of the samples, "share 0.1" on a part of the samples.
    """

    kept: Kept
    asked: str


def kind_of(asked: str) -> str:
    """What was asked for, whatever it was measured against."""
    return RACE if asked.startswith(RACE) else asked


def answer(task: PruningTask, question: Question) -> Outcome:
    """What a plan measures: the expensive part.

    Raises:
        PlanError: it is no plan of this task, or exceeds the budget and is no probe.
    """
    kind, _, number = question.asked.partition(" ")
    if kind == PROBE:
        return task.probe(question.kept, float(number or 1))
    if kind == SHARE:
        return task.glimpse(question.kept, float(number))
    return task.outcome(question.kept, float(number) if kind == RACE else None)
