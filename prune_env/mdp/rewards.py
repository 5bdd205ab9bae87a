"""Rewards: from what a plan measured to named terms that add up.

A reward is one small function from an `Outcome` to terms. To add one, write it and put it into
`REWARDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prune_env.errors import look_up
from prune_env.measure.evaluators import Metrics

FLOPS_WEIGHT = 0.1
"""Pay per fraction of FLOPs saved. Small: the budget is hard, this only breaks ties."""


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


Reward = Callable[[Outcome], dict[str, float]]


def accuracy(outcome: Outcome) -> dict[str, float]:
    """Accuracy, and a little for FLOPs saved."""
    saved = FLOPS_WEIGHT * (1 - outcome.flops_ratio)
    return {"accuracy": outcome.metrics.accuracy, "flops": saved}


def kl(outcome: Outcome) -> dict[str, float]:
    """Closeness to the dense network: -KL in nats, and a little for FLOPs saved.

    Finer than accuracy on the few hundred samples a search can afford.
    """
    return {"kl": -outcome.metrics.kl, "flops": FLOPS_WEIGHT * (1 - outcome.flops_ratio)}


def amc(outcome: Outcome) -> dict[str, float]:
    """-error x log(FLOPs) (He et al. 2018, AMC, eq. 4)."""
    return {"amc": -(1 - outcome.metrics.accuracy) * math.log(max(outcome.flops, 1.0))}


REWARDS: dict[str, Reward] = {"kl": kl, "accuracy": accuracy, "amc": amc}


def reward_named(name: str) -> Reward:
    """The reward called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("reward", name, REWARDS)
