"""Agents without one of their parts, as searchers that comparisons can name.

`prune_env.experiments.sweeps.variants:ppo_no_prior` is PPO with every part but its prior.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

HERE = "prune_env.experiments.sweeps.variants"
FEW_LANES = 8
"""Lanes of the agent that measures every plan: with few, it learns more often."""


@dataclass(frozen=True)
class Variant:
    """An agent without one of its parts.

    Attributes:
        name: of the row.
        said: what was removed, in a sentence.
        course: fields of its `Course` that differ.
        task: fields of its task that differ.
        walks: whether only agents that decide group by group have the part.
    """

    name: str
    said: str
    course: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    walks: bool = False


def variants() -> dict[str, Variant]:
    """What can be removed from an agent. Add a part here."""
    from prune_env.agents.lanes import HELP, at_the_end
    from prune_env.agents.payments import PRACTICE
    from prune_env.mdp.leftover import leave
    from prune_env.mdp.rewards import figure
    from prune_env.mdp.transforms import absolute

    unpaid, worth = replace(HELP, credit=at_the_end), replace(HELP, standing=absolute)
    return {
        "no_prior": Variant(
            "without prior",
            "Offsets start from the uniform plan, and only that is measured beforehand.",
            {"prior": uniform_prior}),
        "no_shaping": Variant(
            "without shaping", "Steps are not paid when they are taken; only the finished plan is.",
            {"help": unpaid}, walks=True),
        "accuracy": Variant(
            "accuracy instead of KL",
            "The reward is accuracy; shown is the KL of the plan that is best by it.",
            task={"reward": figure}),
        "unspent": Variant(
            "without exact spend", "What the last levels leave of the budget is not given back.",
            task={"leftover": leave}),
        "absolute": Variant(
            "without group-relative reward",
            "Plans are paid their worth, not what it is beyond those finished with them.",
            {"help": worth}),
        "no_neighbours": Variant(
            "without neighbours",
            "Only the policy's own plans are measured, none beside the best ones.",
            {"practice": replace(PRACTICE, neighbours=0)}),
        "measured": Variant(
            "without surrogate",
            "Every plan is measured: none is practised or screened, and no step is credited.",
            {"practice": None}),
        "measured_often": Variant(
            f"without surrogate, {FEW_LANES} lanes",
            f"The same with {FEW_LANES} episodes in lockstep, so that it learns more often.",
            {"practice": None, "lanes": FEW_LANES}),
    }  # fmt: skip


def uniform_prior(ledger: Any) -> Any:
    """The uniform path, its plan measured."""
    from prune_env.search.allocators import PATHS, plan_of

    path = PATHS["uniform"](ledger.task)
    ledger.measure([plan_of(ledger.task, path)])
    return path


def search(agent: str, variant: Variant, ledger: Any, seed: int) -> None:
    """The search of an agent without a part."""
    from prune_env.agents.sb3 import COURSE, learn

    ledger.task = replace(ledger.task, **variant.task)
    learn(agent, ledger, seed, replace(COURSE, **variant.course))


def __getattr__(name: str) -> Callable[[Any, int], None]:
    """Searchers "<agent>_<key of variants>", which comparisons call "experiments.variants:..."."""
    for key, variant in variants().items() if not name.startswith("_") else ():
        if name.endswith(f"_{key}"):
            return functools.partial(search, name.removesuffix(f"_{key}"), variant)
    raise AttributeError(f"module '{HERE}' has no attribute '{name}'")
