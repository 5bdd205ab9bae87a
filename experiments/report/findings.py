"""What the numbers of a report allow to say: which is best, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prune_env.pipeline.formats import number, percent
from prune_env.pipeline.yardstick import (
    ACCURACY,
    YARDSTICKS,
    Yardstick,
    binomial_error,
    yardstick_of,
)

Results = Mapping[str, Any]
Row = Mapping[str, Any]
Clear = Callable[[int, int], bool]
Error = Callable[[float], float]
"""The standard error of a figure of quality."""

STAGES = {
    "after": "{on} {figure} after fine-tuning",
    "before": "{on} {figure} without fine-tuning",
    "reward": "{figure} on the reward samples",
}
"""Where a quality was measured, the most telling first."""


def stage_of(rows: Sequence[Row], yardstick: Yardstick = ACCURACY) -> str:
    """The most telling stage whose quality some row has."""
    return next(
        (stage for stage in STAGES if any(known(row.get(yardstick.key(stage))) for row in rows)),
        "reward",
    )


def measured_on(results: Results) -> str:
    """The data of the figures before and after tuning: test, or val where there was none."""
    return str(results.get("measured_on", "test"))


def known(value: Any) -> bool:
    """Whether there is a finite number."""
    return not math.isnan(number(value))


def standard_error(accuracy: float, samples: int) -> float:
    """Binomial standard error of an accuracy measured on `samples` images."""
    return binomial_error(accuracy, samples)


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


def quality_leaders(results: Results, stage: str) -> set[int]:
    """The row whose quality leads by more than two standard errors of the difference."""
    yardstick, error = yardstick_of(results), error_of(results)
    values = [number(row.get(yardstick.key(stage))) for row in results["rows"]]
    return leaders(values, yardstick.sign, lambda a, b: not hidden(values[a], values[b], error))


def error_of(results: Results) -> Error | None:
    """The standard error of test figures; None where the number of test samples is not known."""
    samples = results["dense"].get("test_samples")
    spread = results["dense"].get("test_loss_std", 0.0)
    if not samples:
        return None
    yardstick = yardstick_of(results)
    error = yardstick.error
    if yardstick.name not in YARDSTICKS and not (spread > 0 and math.isfinite(spread)):
        return None  # nothing is known of it from the dense network, which is at no distance
    return lambda value: error(value, samples, spread)


def hidden(one: float, other: float, error: Error | None) -> bool:
    """Whether two figures differ by less than two standard errors of a difference.

    Taken as independent, which is cautious: both networks see the same samples. Without an error
    nothing is known of the noise, so nothing is distinguished.
    """
    return error is None or abs(one - other) <= 2 * math.hypot(error(one), error(other))


def within_noise(one: float, other: float, samples: int | None) -> bool:
    """`hidden`, for accuracies measured on `samples` images."""
    return hidden(one, other, partial(binomial_error, samples=samples) if samples else None)


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
    rows, yardstick = results["rows"], yardstick_of(results)
    stage = stage_of(rows, yardstick)
    agent = best_row([row for row in rows if row.get("kind") == "agent"], stage, yardstick)
    rival = best_row([row for row in rows if row.get("kind") != "agent"], stage, yardstick)
    if agent is None:
        return "No agent's plan was measured."
    left = f"{agent['name']} leaves {percent(agent.get('macs_ratio'))} of the dense MACs"
    value = yardstick.show(agent[yardstick.key(stage)])
    where = STAGES[stage].format(figure=yardstick.name, on=measured_on(results))
    parts = [f"{left} at {value} {where}{_against_dense(results, agent, stage)}."]
    if rival is not None:
        parts.append(_comparison(results, agent, rival, stage))
    return " ".join(parts)


def best_row(rows: Sequence[Row], stage: str, yardstick: Yardstick = ACCURACY) -> Row | None:
    """The row with the best quality at a stage."""
    key = yardstick.key(stage)
    measured = [row for row in rows if known(row.get(key))]
    return max(measured, key=lambda row: yardstick.sign * number(row[key]), default=None)


def _against_dense(results: Results, row: Row, stage: str) -> str:
    yardstick = yardstick_of(results)
    dense = results["dense"].get(yardstick.key("test"))
    if stage == "reward" or not known(dense):
        return ""
    gap = yardstick.gap(row[yardstick.key(stage)] - dense)
    return f" ({gap} against the dense network's {yardstick.show(dense)})"


def _comparison(results: Results, agent: Row, rival: Row, stage: str) -> str:
    yardstick = yardstick_of(results)
    mine, best = agent[yardstick.key(stage)], rival[yardstick.key(stage)]
    error = None if stage == "reward" else error_of(results)
    gap = yardstick.gap(mine - best)
    said = f"The best baseline, {rival['name']}, has {yardstick.show(best)}"
    if error is None:
        return f"{said} ({agent['name']} {gap}); how much of that is noise is not known."
    if not hidden(mine, best, error):
        word = "ahead of" if yardstick.sign * (mine - best) > 0 else "behind"
        distance = yardstick.gap(abs(mine - best), signed=False)
        return f"{said}: {agent['name']} is {distance} {word} it."
    count, on = results["dense"]["test_samples"], measured_on(results)
    samples = f"{count:,} {on} {yardstick.predictions}"
    return (
        f"{said} ({agent['name']} {gap}): on {samples} that is within noise, so neither is the "
        "winner."
    )
