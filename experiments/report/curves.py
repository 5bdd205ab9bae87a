"""The best plan so far of a search, as a function of what it was charged and of time.

What the best is, `prune_env.mdp.rewards` says; what is read off is its KL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Mapping[str, Any]
Floats = NDArray[np.float64]

SLACK = 1e-9
"""Shares of the samples add up to whole evaluations only nearly."""
NEAR = 0.02
"""How close to the best KL of a cell a search has to come."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A step at each of P plans that were better than all before.

    Attributes:
        charged, seconds: when the plan was known: evaluations charged, and time since the start.
        kl, reward: its figures.
        before: the KL that stands for what precedes the first plan.
        once: whether only one plan was measured: its line is level, and it is done at once.
    """

    charged: Floats
    seconds: Floats
    kl: Floats
    reward: Floats
    before: float
    once: bool

    def at(self, evaluations: Any) -> Floats:
        """KL of the best plan when so many evaluations were charged."""
        return self._read(self.kl, self.charged, evaluations, self.before)

    def at_seconds(self, seconds: Any) -> Floats:
        """KL of the best plan after so much time."""
        return self._read(self.kl, self.seconds, seconds, self.before)

    def reward_at(self, evaluations: Any) -> Floats:
        """Reward of the best plan; NaN before there is one."""
        return self._read(self.reward, self.charged, evaluations, np.nan)

    def until(self, kl: float) -> float | None:
        """Evaluations charged when the best plan first had at most this KL; None: never."""
        reached = np.flatnonzero(self.kl <= kl)
        return float(self.charged[reached[0]]) if len(reached) else None

    def area(self, evaluations: int) -> float:
        """Mean KL of the best plan over the evaluations 1, 2, ..., `evaluations`."""
        return float(self.at(np.arange(1, evaluations + 1)).mean())

    def _read(self, values: Floats, places: Floats, asked: Any, before: float) -> Floats:
        place = np.searchsorted(places, np.asarray(asked, dtype=float) + SLACK, side="right")
        result: Floats = np.concatenate([[before], values])[place]
        return result


def curve_of(run: Run, before: float | None = None) -> Curve:
    """The curve of a run.

    Args:
        run: its rewards, kls, improved, charged and times, one of each per outcome; the last two
            cumulated.
        before: KL that stands for what precedes the first eligible plan; None: that of this plan.
    """
    steps = np.flatnonzero(run["improved"])
    columns = ("charged", "times", "kls", "rewards")
    charged, seconds, kl, reward_ = (np.array(run[c], dtype=float)[steps] for c in columns)
    once = len(run["rewards"]) == 1
    if once:
        seconds = np.zeros_like(seconds)
    return Curve(charged, seconds, kl, reward_, kl[0] if before is None else before, once)


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """Curves of all runs of a cell; the uniform plan stands for what precedes a first plan."""
    uniform = next((run["kl"] for run in runs if run["searcher"] == "uniform"), None)
    return [curve_of(run, uniform) for run in runs]


def common_time(runs: Sequence[Run], evaluations: int) -> float | None:
    """When the quickest of those that spent everything was finished: the median of its seeds.

    None where nobody spent everything, or everybody by measuring a single plan.
    """
    spent = [r for r in runs if r["evaluations"] >= evaluations - SLACK and r["plans"] > 1]
    seconds = [
        [run["seconds"] for run in spent if run["searcher"] == name]
        for name in {run["searcher"] for run in spent}
    ]
    return min((float(np.median(each)) for each in seconds), default=None)


def compared(runs: Sequence[Run], evaluations: int) -> list[dict[str, Any]]:
    """Runs of a cell with what only shows beside the others.

    Adds `until` (evaluations to within `NEAR` of the best KL of the cell, None: never), `area`
    (mean KL of the best so far) and `kl_at_time` (None: there is no common time).
    """
    time, curves = common_time(runs, evaluations), curves_of(runs)
    best = min((run["kl"] for run in runs), default=0.0)
    return [
        {
            **run,
            "until": curve.until(best * (1 + NEAR)),
            "area": curve.area(evaluations),
            "kl_at_time": None if time is None else float(curve.at_seconds(time)),
        }
        for run, curve in zip(runs, curves, strict=True)
    ]
