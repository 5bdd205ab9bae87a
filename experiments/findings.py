"""What the numbers of a report allow to say: which is best, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.formats import number, percent, points

Results = Mapping[str, Any]
Row = Mapping[str, Any]
Clear = Callable[[int, int], bool]

STAGES = {
    "accuracy_after": "test accuracy after fine-tuning",
    "accuracy_before": "test accuracy without fine-tuning",
    "accuracy_reward": "accuracy on the reward samples",
}
"""Where an accuracy was measured, the most telling first."""


def stage_of(rows: Sequence[Row]) -> str:
    """The most telling accuracy that some row has."""
    return next(
        (key for key in STAGES if any(known(row.get(key)) for row in rows)), "accuracy_reward"
    )


def known(value: Any) -> bool:
    """Whether there is a finite number."""
    return not math.isnan(number(value))


def standard_error(accuracy: float, samples: int) -> float:
    """Binomial standard error of an accuracy measured on `samples` images."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / samples)


def leaders(
    values: Sequence[Any], sign: int = 1, clear: Clear = lambda best, other: True
) -> set[int]:
    """Indices of the best value; none if all are equal or `clear` denies a lead.

    Args:
        values: numbers; None and NaN never lead.
        sign: 1 where more is better, -1 where less is.
        clear: whether the value at the first index really beats the one at the second; by default
            equals share the lead.
    """
    scored = {k: sign * number(value) for k, value in enumerate(values) if known(value)}
    top = max(scored.values(), default=0.0)
    best = {k for k, score in scored.items() if math.isclose(score, top, rel_tol=1e-9)}
    proven = all(clear(k, other) for k in best for other in scored if other != k)
    return best if proven and len(best) < len(scored) else set()


def accuracy_leaders(rows: Sequence[Row], key: str, samples: int | None) -> set[int]:
    """The row whose accuracy leads by more than two standard errors of the difference."""
    values = [number(row.get(key)) for row in rows]
    return leaders(values, 1, lambda a, b: not within_noise(values[a], values[b], samples))


def within_noise(one: float, other: float, samples: int | None) -> bool:
    """Whether two accuracies differ by less than two standard errors of a difference.

    Taken as independent, which is cautious: both networks see the same images. Without the number
    of samples nothing is known of the noise, so nothing is distinguished.
    """
    if not samples:
        return True
    return abs(one - other) <= 2 * math.hypot(
        standard_error(one, samples), standard_error(other, samples)
    )


def latency_leaders(rows: Sequence[Row]) -> set[int]:
    """The row whose quartiles lie wholly below those of the others."""
    times = [row.get("latency_ms") or {} for row in rows]
    return leaders(
        [t.get("median") for t in times],
        -1,
        lambda a, b: number(times[a].get("high")) < number(times[b].get("low")),
    )


def verdict(results: Results) -> str:
    """One or two sentences: what the agent's plan costs and gives, beside the best baseline."""
    rows = results["rows"]
    key = stage_of(rows)
    agent = best_row([row for row in rows if row.get("kind") == "agent"], key)
    rival = best_row([row for row in rows if row.get("kind") != "agent"], key)
    if agent is None:
        return "No agent's plan was measured."
    left = f"{agent['name']} leaves {percent(agent.get('macs_ratio'))} of the dense MACs"
    parts = [f"{left} at {percent(agent[key])} {STAGES[key]}{_against_dense(results, agent, key)}."]
    if rival is not None:
        parts.append(_comparison(agent, rival, key, _samples(results, key)))
    return " ".join(parts)


def best_row(rows: Sequence[Row], key: str) -> Row | None:
    """The row with the highest value."""
    measured = [row for row in rows if known(row.get(key))]
    return max(measured, key=lambda row: number(row[key]), default=None)


def _against_dense(results: Results, row: Row, key: str) -> str:
    dense = results["dense"].get("accuracy_test")
    if key == "accuracy_reward" or not known(dense):
        return ""
    return f" ({points(row[key] - dense)} against the dense network's {percent(dense)})"


def _samples(results: Results, key: str) -> int | None:
    return None if key == "accuracy_reward" else results["dense"].get("test_samples")


def _comparison(agent: Row, rival: Row, key: str, samples: int | None) -> str:
    gap = agent[key] - rival[key]
    said = f"The best baseline, {rival['name']}, has {percent(rival[key])}"
    if not samples:
        return f"{said} ({agent['name']} {points(gap)}); how much of that is noise is not known."
    if not within_noise(agent[key], rival[key], samples):
        word = "ahead of" if gap > 0 else "behind"
        return f"{said}: {agent['name']} is {points(abs(gap), signed=False)} {word} it."
    return (
        f"{said} ({agent['name']} {points(gap)}): on {samples:,} test images that is within noise, "
        "so neither is the winner."
    )
