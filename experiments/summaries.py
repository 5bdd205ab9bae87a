"""Several seeds of several searchers as one table: what differs by more than the luck of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.findings import leaders
from experiments.formats import duration, plain
from experiments.page import Cell, Table
from experiments.quality import ACCURACY, Yardstick
from experiments.series import style_of

RESAMPLES = 10_000
MEASURES = ("reward", "kl", "quality", "held_out")
"""Fields of a `Summary` that are spreads; quality is what the yardstick says."""

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
    """One searcher over its seeds; `evaluations` and `seconds` are means per search.

    `quality` is of the reward samples, `held_out` of test (None where the task has none).
    """

    searcher: str
    seeds: int
    evaluations: float
    seconds: float
    reward: Spread
    kl: Spread
    quality: Spread
    held_out: Spread | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> Summary:
        """What `to_dict` gave."""
        spreads = {key: Spread(**entry[key]) for key in MEASURES if entry.get(key)}
        return Summary(**{**entry, **spreads})


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without the lowest and highest quarter (Agarwal et al. 2021)."""
    cut = values.shape[-1] // 4
    inner = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut]
    result: np.ndarray = inner.mean(axis=-1)
    return result


def spread_of(values: Sequence[float], seed: int = 0) -> Spread:
    """Mean, deviation, interquartile mean and its bootstrap interval; the same for one `seed`."""
    sample = np.array(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(interquartile_mean(sample[drawn]), [0.025, 0.975])
    std = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    iqm = float(interquartile_mean(sample))
    return Spread(float(sample.mean()), std, iqm, float(low), float(high))


def summarise(runs: Sequence[Run], yardstick: Yardstick = ACCURACY) -> list[Summary]:
    """One summary per searcher, in the order they appear."""
    result = []
    for name in dict.fromkeys(run["searcher"] for run in runs):
        mine = [run for run in runs if run["searcher"] == name]
        held_out = [run["held_out"] for run in mine if run.get("held_out") is not None]
        result.append(
            Summary(
                searcher=name,
                seeds=len(mine),
                evaluations=float(np.mean([run["evaluations"] for run in mine])),
                seconds=float(np.mean([run["seconds"] for run in mine])),
                reward=spread_of([run["reward"] for run in mine]),
                kl=spread_of([run["kl"] for run in mine]),
                quality=spread_of([run[yardstick.name] for run in mine]),
                held_out=spread_of(held_out) if len(held_out) == len(mine) else None,
            )
        )
    return result


def summary_table(summaries: Sequence[Summary], yardstick: Yardstick = ACCURACY) -> Table:
    """Mean and deviation, and below them the interquartile mean with its interval."""
    signs = {"reward": 1, "kl": -1, "quality": yardstick.sign, "held_out": yardstick.sign}
    if any(summary.held_out is None for summary in summaries):
        del signs["held_out"]
    best = {key: _ahead(summaries, key, sign) for key, sign in signs.items()}
    shows = {key: yardstick.show if key in ("quality", "held_out") else plain for key in signs}
    lines = []
    for k, summary in enumerate(summaries):
        measures = [
            _cell(getattr(summary, key), summary.seeds, show, k in best[key])
            for key, show in shows.items()
        ]
        lines.append(
            (
                Cell(summary.searcher, colour=style_of(summary.searcher).colour),
                Cell(str(summary.seeds)),
                Cell(f"{summary.evaluations:g}"),
                Cell(duration(summary.seconds)),
                *measures,
            )
        )
    columns = ("searcher", "seeds", "evaluations", "time", "reward", "KL, nats", yardstick.name)
    held_out = (f"{yardstick.name}, test",) if "held_out" in signs else ()
    return Table((*columns, *held_out), tuple(lines))


def _ahead(summaries: Sequence[Summary], key: str, sign: int) -> set[int]:
    """The searcher whose interval lies wholly on the better side of all others."""
    spreads = [getattr(summary, key) for summary in summaries]

    def clear(best: int, other: int) -> bool:
        a, b = spreads[best], spreads[other]
        return bool(a.low > b.high if sign > 0 else a.high < b.low)

    return leaders([spread.iqm for spread in spreads], sign, clear)


def _cell(spread: Spread, seeds: int, show: Any, best: bool) -> Cell:
    if seeds == 1:
        return Cell(show(spread.mean), best=best)
    interval = f"IQM {show(spread.iqm)} [{show(spread.low)}, {show(spread.high)}]"
    return Cell(f"{show(spread.mean)} ± {show(spread.std)}", interval, best)
