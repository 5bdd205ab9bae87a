"""Rewards: from what a plan measured to named terms that add up.

A reward is one small function from an `Outcome` to terms. To add one, write it and put it into
`REWARDS`. The budget is hard, so a reward pays for quality alone: less cost only breaks ties, in
`Outcome.rank`, which is the one order that searchers, ledgers and tables share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prune_env.errors import ConfigError, look_up
from prune_env.quality.choosing import Wish, wished
from prune_env.quality.evaluators import Metrics
from prune_env.quality.objectives import CLASSIFICATION, OBJECTIVES, Objective

Rank = tuple[bool, float, float, float]


@dataclass(frozen=True)
class Outcome:
    """A finished plan and what it measured.

    Attributes:
        kept: kept units per group, in the task's order.
        metrics: quality on the reward samples.
        flops: FLOPs of the pruned network on one sample (2 x MACs).
        flops_ratio, params_ratio: cost left, as fractions of the dense network.
        terms: the reward, term by term.
        eligible: whether the plan may be the result: it meets the budget and was measured on all
            samples. Probes beyond the budget and glimpses at a few samples are not.
    """

    kept: tuple[int, ...]
    metrics: Metrics
    flops: float
    flops_ratio: float
    params_ratio: float
    terms: Mapping[str, float] = field(default_factory=dict)
    eligible: bool = True

    @property
    def reward(self) -> float:
        """Sum of the terms."""
        return math.fsum(self.terms.values())

    @property
    def rank(self) -> Rank:
        """What outcomes are compared by, the higher the better.

        Those that may be the result come first, then the reward decides, then fewer FLOPs, then
        fewer parameters. A reward that is not a number is worse than any.
        """
        paid = self.reward
        paid = -math.inf if math.isnan(paid) else paid
        return self.eligible, paid, -self.flops_ratio, -self.params_ratio


def best_of(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of the highest rank, the earliest of equals."""
    return max(outcomes, key=lambda outcome: outcome.rank)


def improved(outcomes: Iterable[Outcome]) -> list[bool]:
    """Whether each outcome may be the result and ranks above all before it."""
    best, steps = None, list[bool]()
    for outcome in outcomes:
        steps.append(outcome.eligible and (best is None or outcome.rank > best.rank))
        best = outcome if steps[-1] else best
    return steps


Reward = Callable[[Outcome], dict[str, float]]


def figure(outcome: Outcome) -> dict[str, float]:
    """What people read, such as accuracy on the reward samples; more is better."""
    return {"figure": outcome.metrics.figure}


def figure_down(outcome: Outcome) -> dict[str, float]:
    """What people read, where less is better."""
    return {"figure": -outcome.metrics.figure}


def divergence(outcome: Outcome) -> dict[str, float]:
    """Closeness to the dense network, such as -KL in nats.

    Finer than accuracy on the few hundred samples a search can afford.
    """
    return {"divergence": -outcome.metrics.divergence}


def loss(outcome: Outcome) -> dict[str, float]:
    """Closeness to the targets."""
    return {"loss": -outcome.metrics.loss}


def amc(outcome: Outcome) -> dict[str, float]:
    """-error x log(FLOPs) (He et al. 2018, AMC, eq. 4).

    Trades quality for cost: made for `leftover="leave"` and a budget that does not bind. Under a
    hard budget it prefers a worse network that costs less; the others never do.
    """
    return {"amc": -(1 - outcome.metrics.figure) * math.log(max(outcome.flops, 1.0))}


REWARDS: dict[str, Reward] = {"divergence": divergence, "figure": figure, "loss": loss, "amc": amc}
_OWN = [(objective.distance, objective.figure.name) for objective in OBJECTIVES.values()]
NAMES = tuple(dict.fromkeys([*REWARDS, *(name for pair in _OWN for name in pair)]))
"""What a reward may be called: what every objective has, or the objective's own word for it."""


def require_reward(name: str, wish: Wish) -> None:
    """Check a name before the network is looked at.

    Raises:
        ConfigError: no objective has such a reward, or the one that is given has not.
    """
    objective = wished(wish)
    if isinstance(objective, str):
        objective = OBJECTIVES.get(objective, objective)
    if isinstance(objective, Objective):
        reward_named(name, objective)
    else:
        look_up("reward", name, dict.fromkeys(NAMES))


def reward_named(name: str, objective: Objective = CLASSIFICATION) -> Reward:
    """The reward called `name`, for what an objective measures.

    Raises:
        ConfigError: there is none, or the objective does not measure it.
    """
    own = objective.figure
    by_name = {**REWARDS, objective.distance: divergence, own.name: figure}
    found = look_up(f"reward (for the objective '{objective.name}')", name, by_name)
    if found is amc and not (own.higher and own.unit == "%"):
        raise ConfigError(
            f"the reward 'amc' is made for a fraction that is right, and '{own.name}' is none. "
            "Choose 'divergence'."
        )
    return figure_down if found is figure and not own.higher else found
