"""Several seeds of several searchers in one cell, a task under a budget, as one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prune_env.experiments.report.aggregates import iqm_over
from prune_env.experiments.report.findings import leaders
from prune_env.experiments.report.page import Cell, Table
from prune_env.experiments.report.series import style_of
from prune_env.pipeline.formats import MISSING, count, duration, plain
from prune_env.pipeline.yardstick import ACCURACY, Yardstick

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """One measure over seeds.

    Attributes:
        mean, std: over seeds; std is that of a sample (0 for a single seed).
        iqm: interquartile mean, the mean without the lowest and the highest quarter.
        low, high: percentile bootstrap 95 % interval of the interquartile mean. With few seeds it
            is too narrow, for it knows no value that was not seen.
    """

    mean: float
    std: float
    iqm: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One searcher over its seeds.

    Attributes:
        evaluations: charged, mean per search.
        passes: the same in forward passes over 1,000 predictions; None where none are made.
        seconds: median per search.
        until: evaluations to come close to the best of the cell, median; None: never.
        reward, kl, quality: of the best plan on the reward samples; quality as the yardstick says.
        held_out: quality on test, before fine-tuning; None where the task has none.
        kl_held_out: KL on test, where nothing was chosen.
        flattery: the KL on the reward samples minus that.
        area: mean KL of the best plan so far, over all evaluations.
        kl_at_time: KL after the same wall-clock time for all.
    """

    searcher: str
    seeds: int
    evaluations: float
    seconds: float
    until: float | None
    reward: Spread
    kl: Spread
    quality: Spread
    held_out: Spread | None = None
    passes: float | None = None
    kl_held_out: Spread | None = None
    flattery: Spread | None = None
    area: Spread | None = None
    kl_at_time: Spread | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> Summary:
        """What `to_dict` gave."""
        spreads = {k: Spread(**value) for k, value in entry.items() if isinstance(value, Mapping)}
        return Summary(**{**entry, **spreads})


@dataclass(frozen=True)
class Measure:
    """A column of spreads: the field of a `Summary`, its title, which way is better, its look."""

    field: str
    title: str
    sign: int
    show: Callable[[Any], str]


def spread_of(values: Sequence[float], seed: int = 0) -> Spread:
    """Mean, deviation, interquartile mean and its bootstrap interval; the same for one `seed`."""
    sample, found = np.array(values, dtype=np.float64), iqm_over([values], seed)
    std = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    return Spread(float(sample.mean()), std, found.value, found.low, found.high)


def summarise(runs: Sequence[Run], yardstick: Yardstick = ACCURACY) -> list[Summary]:
    """One summary per searcher, in the order they appear."""
    result = []
    for name in dict.fromkeys(run["searcher"] for run in runs):
        mine = [run for run in runs if run["searcher"] == name]
        mine = [{**run, "flattery": flattery(run)} for run in mine]
        plainly = ("reward", "kl", "held_out", "kl_held_out", "flattery", "area", "kl_at_time")
        keys = {**dict.fromkeys(plainly), "quality": yardstick.name}
        until = [math.inf if run.get("until") is None else run["until"] for run in mine]
        usual = float(np.median(until))
        result.append(
            Summary(
                searcher=name,
                seeds=len(mine),
                evaluations=float(np.mean([run["evaluations"] for run in mine])),
                passes=_mean([run.get("passes") for run in mine]),
                seconds=float(np.median([run["seconds"] for run in mine])),
                until=usual if math.isfinite(usual) else None,
                **{
                    field: _spread([run.get(key or field) for run in mine])
                    for field, key in keys.items()
                },  # type: ignore[arg-type]
            )
        )
    return result


def flattery(run: Run) -> float | None:
    """How far the KL that a search reports is from the held-out one; None where that is unknown."""
    true = run.get("kl_held_out")
    return None if true is None else float(run["kl"] - true)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread_of(known) if len(known) == len(values) else None


def measures_of(yardstick: Yardstick) -> tuple[Measure, ...]:
    """The spreads that a table shows."""
    return (
        Measure("kl_held_out", f"{yardstick.apart}, test", -1, nats),
        Measure("flattery", "reported minus that", 0, signed),
        Measure("kl", yardstick.apart, -1, nats),
        Measure("quality", yardstick.name, yardstick.sign, yardstick.show),
        Measure("held_out", f"{yardstick.name}, test", yardstick.sign, yardstick.show),
        Measure("area", f"mean {yardstick.distance} on the way", -1, nats),
        Measure("kl_at_time", f"{yardstick.distance} at equal time", -1, nats),
    )


def summary_table(summaries: Sequence[Summary], yardstick: Yardstick = ACCURACY) -> Table:
    """A searcher a row; spreads are the interquartile mean with its interval."""
    shown = [
        measure
        for measure in measures_of(yardstick)
        if all(getattr(summary, measure.field) is not None for summary in summaries)
    ]
    ahead = {measure.field: _ahead(summaries, measure) for measure in shown}
    counted = all(each.passes is not None for each in summaries)
    lines = []
    for k, summary in enumerate(summaries):
        spreads = [
            _cell(getattr(summary, each.field), each.show, k in ahead[each.field]) for each in shown
        ]
        lines.append(
            (
                Cell(summary.searcher, colour=style_of(summary.searcher).colour),
                Cell(str(summary.seeds)),
                Cell(count(summary.evaluations)),
                *([Cell(count(summary.passes))] if counted else []),
                *spreads,
                Cell(MISSING if summary.until is None else f"{summary.until:.4g}"),
                Cell(duration(summary.seconds)),
            )
        )
    columns = ("searcher", "seeds", "evaluations", *(["passes"] if counted else []),
               *(measure.title for measure in shown))  # fmt: skip
    return Table((*columns, "to within 2 %", "time"), tuple(lines))


def signed(value: Any) -> str:
    """A difference of divergences."""
    return f"{value:+.4f}"


def nats(value: Any) -> str:
    """Four significant digits: KLs of a few thousandths are told apart."""
    if value is None or not math.isfinite(value):
        return plain(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    return plain(value, min(7, max(0, 3 - size)))


def _ahead(summaries: Sequence[Summary], measure: Measure) -> set[int]:
    """The searcher whose interval lies wholly on the better side of all others, if there is one."""
    if not measure.sign:
        return set()
    spreads = [getattr(summary, measure.field) for summary in summaries]

    def clear(best: int, other: int) -> bool:
        a, b = spreads[best], spreads[other]
        return bool(a.low > b.high if measure.sign > 0 else a.high < b.low)

    return leaders([spread.iqm for spread in spreads], measure.sign, clear)


def _cell(spread: Spread, show: Callable[[Any], str], best: bool) -> Cell:
    return interval_cell(spread.iqm, spread.low, spread.high, show, best)


def interval_cell(
    value: float, low: float, high: float, show: Callable[[Any], str], best: bool = False
) -> Cell:
    """A figure with its interval, if that is wide enough to be seen."""
    ends = show(low), show(high)
    return Cell(show(value), "" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}", best)
